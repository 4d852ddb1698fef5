"""The tiny world's data files and the files of its labelers."""

import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.data.sources import Source, read_prompts, read_rankings, read_texts
from lora_rlhf.system.errors import UserError
from lora_rlhf.tinyworld.config import LabelConfig, TinyworldConfig, num_prompts
from lora_rlhf.tinyworld.datasets import label, make
from lora_rlhf.tinyworld.requests import find_request

SIZES = {
    "demonstrations": 120,
    "ranking_prompts": 80,
    "ppo_prompts": 150,
    "evaluation_prompts": 90,
    "selection_prompts": 40,
    "pretraining": 30,
}


def config(folder: Path, **changes: Any) -> TinyworldConfig:
    return TinyworldConfig(**({"to": str(folder)} | {f"num_{name}": count for name, count in SIZES.items()} | changes))


def prompts(path: Path) -> list[str]:
    return [prompt.messages[-1].content for prompt in read_prompts(str(path), strict=True)[0]]


def test_every_file_has_its_rows_and_reads_back(tmp_path: Path) -> None:
    assert make(config(tmp_path)) == SIZES
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.jsonl" for name in SIZES)
    assert len(list(Source(str(tmp_path / "demonstrations.jsonl"), "demonstrations", strict=True))) == 120
    assert len(read_texts(str(tmp_path / "pretraining.jsonl"), strict=True)[0]) == 30
    row = json.loads((tmp_path / "ppo_prompts.jsonl").read_text().splitlines()[0])
    assert row.keys() == {"prompt", "use_case"}


def test_no_prompt_is_in_two_files_and_the_held_out_share_nothing_with_training(tmp_path: Path) -> None:
    make(config(tmp_path))
    files = {name: prompts(tmp_path / f"{name}.jsonl") for name in SIZES if name != "pretraining"}
    assert max(Counter(prompt for rows in files.values() for prompt in rows).values()) == 1
    tasks = {
        name: {(find_request(row).skill.name, find_request(row).key) for row in rows} for name, rows in files.items()
    }
    held_out = tasks["evaluation_prompts"] | tasks["selection_prompts"]
    assert not held_out & (tasks["demonstrations"] | tasks["ranking_prompts"] | tasks["ppo_prompts"])


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("repeated", 0), ("other", 1)):
        make(config(tmp_path / name, seed=seed))
    for name in SIZES:
        runs = [(tmp_path / run / f"{name}.jsonl").read_bytes() for run in ("first", "repeated", "other")]
        assert runs[0] == runs[1] != runs[2]


def test_faults_name_the_value_and_the_bound(tmp_path: Path) -> None:
    assert config(tmp_path).faults() == []
    assert config(Path(""), to="").faults() == ["to is empty; name a folder"]
    assert config(tmp_path, num_pretraining=0).faults() == ["num_pretraining is 0, must be at least 1"]
    most = num_prompts(is_held_out=True) // 2
    (fault,) = config(tmp_path, num_evaluation_prompts=most).faults()
    assert f"is {most + 40}, must be at most {most}" in fault


# Labelers


def write_candidates(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def candidates(folder: Path) -> str:
    animals = ("fox", "owl", "cat", "dog", "bear", "wolf")
    rows = [
        {
            "prompt": f"Where does the {animal} live?",
            "responses": [f"The {animal} lives in the {place}." for place in ("barn", "pond", "mill", "cave")]
            + ["I do not care about you.", "The hen is big."],
            "use_case": "open QA",
        }
        for animal in animals
    ]
    return write_candidates(folder / "candidates.jsonl", rows)


def labelled(folder: Path, name: str, **changes: Any) -> LabelConfig:
    options = {"responses": candidates(folder), "to": str(folder / "new" / f"{name}.jsonl"), **changes}
    return LabelConfig(**options)


def test_rankings_hold_every_response_and_read_back(tmp_path: Path) -> None:
    settings = labelled(tmp_path, "one")
    assert label(settings) is None
    rankings = read_rankings(settings.to, strict=True)[0]
    assert [ranking.prompt.messages[-1].content[:18] for ranking in rankings[:2]] == [
        "Where does the fox",
        "Where does the owl",
    ]
    assert all(len(ranking.responses) == 6 and ranking.labeler for ranking in rankings)
    assert rankings[0].prompt.meta == {"use_case": "open QA"}
    nonsense = [ranking.ranks[-1] for ranking in rankings]
    assert sum(nonsense) / len(nonsense) > 3.5  # worthless answers come last more often than not


def test_empty_and_repeated_candidates_are_not_ranked(tmp_path: Path) -> None:
    row = {"prompt": "Where does the fox live?", "responses": ["In the den.", "", " \n", "In the den. ", "In a tree."]}
    to = tmp_path / "rankings.jsonl"
    label(LabelConfig(responses=write_candidates(tmp_path / "candidates.jsonl", [row]), to=str(to)))
    (ranking,) = read_rankings(str(to))[0]
    assert [response.strip() for response in ranking.responses] == ["In the den.", "In a tree."]


def test_labels_depend_on_the_seed_alone(tmp_path: Path) -> None:
    runs = [labelled(tmp_path, name, seed=seed) for name, seed in (("first", 0), ("repeated", 0), ("other", 1))]
    for settings in runs:
        label(settings)
    files = [Path(settings.to).read_bytes() for settings in runs]
    assert files[0] == files[1] != files[2]


def test_shuffled_labels_keep_the_ranks_and_lose_the_order(tmp_path: Path) -> None:
    plain, mixed = labelled(tmp_path, "plain"), labelled(tmp_path, "mixed", shuffle_labels=True)
    label(plain), label(mixed)
    true, shuffled = (read_rankings(settings.to, strict=True)[0] for settings in (plain, mixed))
    assert [ranking.responses for ranking in true] == [ranking.responses for ranking in shuffled]
    assert sorted(true[0].ranks) == sorted(shuffled[0].ranks)  # of the same labeler
    assert [ranking.ranks for ranking in true] != [ranking.ranks for ranking in shuffled]


def test_the_agreement_file_has_several_people_for_each_prompt(tmp_path: Path) -> None:
    settings = labelled(tmp_path, "one", agreement_to=str(tmp_path / "new" / "agreement.jsonl"), overlap=4)
    measured = label(settings)
    rankings = read_rankings(str(settings.agreement_to), strict=True)[0]
    people = Counter((ranking.prompt.key, ranking.labeler) for ranking in rankings)
    assert len(rankings) == 4 * 5 == len(people)
    agreeing = total = 0
    for first, second in combinations(rankings, 2):
        if first.prompt == second.prompt:
            for a, b in combinations(range(6), 2):
                product = (first.ranks[a] - first.ranks[b]) * (second.ranks[a] - second.ranks[b])
                agreeing, total = agreeing + (product > 0), total + (product != 0)
    assert measured is not None
    assert list(measured) == pytest.approx([agreeing / total, total])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Where does the fox live?"}, "no list of responses"),
        (
            {"prompt": "Where does the fox live?", "responses": ["In the meadow."]},
            "at least 2 different responses, got 1",
        ),
        (
            {"prompt": "Where does the fox live?", "responses": ["A.", " ", "A. "]},
            "at least 2 different responses, got 1",
        ),
        ({"prompt": "Where does the fox live?", "responses": ["In the meadow.", 7]}, "no list of responses"),
        ({"prompt": "What is love?", "responses": ["This.", "That."]}, "'What is love?' is not a prompt of the tiny"),
    ],
)
def test_what_labelers_cannot_rank_is_a_clear_message(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write_candidates(
        tmp_path / "bad.jsonl", [{"prompt": "Where does the owl live?", "responses": ["A.", "B."]}, row]
    )
    with pytest.raises(UserError, match=r"bad.jsonl:2: .*" + message.replace("?", r"\?")):
        label(LabelConfig(responses=path, to=str(tmp_path / "rankings.jsonl")))
    assert not (tmp_path / "rankings.jsonl").exists()


def test_label_faults() -> None:
    assert LabelConfig(responses="a", to="b").faults() == []
    faults = LabelConfig(responses="", to="", overlap=0).faults()
    assert faults == [
        "responses is empty; name a file",
        "to is empty; name a file",
        "overlap is 0, must be at least 1",
    ]
