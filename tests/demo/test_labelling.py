"""Labelling without a page: which task comes, what is saved and taken back, who agrees, and that nothing is lost."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from lora_rlhf_demo.label import Labelling, Workload
from lora_rlhf_demo.label_value import Label, label_from_page
from lora_rlhf_demo.rows import RowFile
from lora_rlhf_demo.tasks import Task, make_task, parse_labeler_name, read_qualification, read_tasks

from lora_rlhf.configs.stages import RewardConfig, SFTConfig
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Prompt
from lora_rlhf.data.sources import read_rankings
from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.open import describe_base
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import ADAPTER, StageFolder
from lora_rlhf.stages import reward
from lora_rlhf.system.errors import UserError
from tests.support.labels import WORDS, plain, save_all, some_tasks

SPAWN = multiprocessing.get_context("spawn")


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def rankings(tmp_path: Path) -> RowFile:
    return RowFile(tmp_path / "rankings.jsonl")


# Tasks


def test_tasks_are_read_from_what_sample_writes(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "One?", "responses": ["a", "b ", "b", " ", "c"], "use_case": "chat"},
        {
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Two?"}],
            "responses": ["x", "y"],
        },
        {"prompt": "Three?", "responses": ["alone", " alone "]},
        {"prompt": "Four?", "responses": [str(number) for number in range(10)]},
        {"prompt": "Five?"},
        {"prompt": "One?", "responses": ["a", "b ", "b", " ", "c"]},
    ]
    tasks, refused = read_tasks(write(tmp_path / "candidates.jsonl", rows))
    assert [task.responses for task in tasks] == [("a", "b ", "c"), ("x", "y")]
    assert tasks[0].prompt.meta == {"use_case": "chat"}
    assert [message.role for message in tasks[1].prompt.messages] == ["system", "user"]
    assert refused.count == 3


def test_a_file_without_responses_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lora-rlhf sample"):
        read_tasks(write(tmp_path / "prompts.jsonl", [{"prompt": "One?"}]))


@pytest.mark.parametrize("row", ["x", {"prompt": "One?"}])  # refused by the reader of rows; for its lack of responses
def test_a_file_of_rows_without_tasks_is_not_read_to_its_end(tmp_path: Path, row: Any) -> None:
    path = write(tmp_path / "candidates.jsonl", [{"prompt": "One?", "responses": ["a", "b"]}, *[row] * 5_001])
    with pytest.raises(UserError, match=r"candidates.jsonl:5002: .*; nor can 5,000 rows before it") as caught:
        read_tasks(path)
    assert "\n" not in str(caught.value)
    write(path, [{"prompt": "One?", "responses": ["a", "b"]}, *[row] * 5_000])
    assert len(read_tasks(path)[0]) == 1


def test_every_labeler_has_an_order_of_their_own_that_stays(tmp_path: Path) -> None:
    task, again = some_tasks(1, 4)[0], some_tasks(1, 4)[0]
    orders = {name: task.display_order(name) for name in (f"labeler {number}" for number in range(400))}
    assert orders == {name: again.display_order(name) for name in orders}
    first = Counter(order[0] for order in orders.values())
    assert all(60 < first[place] < 140 for place in range(4))  # 100 each on average, sd 8.7


@pytest.mark.parametrize("name", ["Ann", " Ann  Lee ", "José", "李雷", "o'Neil-2@lab.org"])
def test_names_that_people_have(name: str) -> None:
    assert parse_labeler_name(name) == " ".join(name.split())


@pytest.mark.parametrize("name", ["", "  ", None])
def test_a_name_is_asked_for(name: object) -> None:
    with pytest.raises(UserError, match="Write your name first"):
        parse_labeler_name(name)


@pytest.mark.parametrize("name", ["a" * 41, "../x", "<b>", "a\x00b", "-x", "a\u202eb"])
def test_what_is_no_name(name: object) -> None:
    with pytest.raises(UserError, match="A name has 1 to 40"):
        parse_labeler_name(name)


# The flow


def test_a_labeler_goes_on_where_they_stopped(rankings: RowFile) -> None:
    tasks = some_tasks()
    Labelling(tasks, rankings).save("Ann", tasks[0], plain(tasks[0]), 2.0)
    Labelling(tasks, rankings).save("Ann", tasks[1], plain(tasks[1]), 2.0)
    again = Labelling(some_tasks(), rankings)  # another process, after a reload
    assert again.next_task("Ann") == tasks[2]
    assert again.next_task("Ben") == tasks[0]
    assert again.progress("Ann")[:3] == (2, 5, 0)


def test_what_was_skipped_comes_again_at_the_end(rankings: RowFile) -> None:
    tasks = some_tasks(3)
    labelling = Labelling(tasks, rankings)
    labelling.skip("Ann", tasks[0])
    seen = []
    while (task := labelling.next_task("Ann")) is not None:
        seen.append(task)
        labelling.save("Ann", task, plain(task), 1.0)
    assert seen == [tasks[1], tasks[2], tasks[0]]
    assert labelling.progress("Ann")[:3] == (3, 3, 0)


def test_undo_takes_back_the_last_thing_that_this_labeler_did(rankings: RowFile) -> None:
    tasks = some_tasks(3)
    labelling = Labelling(tasks, rankings)
    label = Label((2, 1, 1), (3, None, 7), (("opinion",), (), ("violent", "sexual")), ("unclear",))
    labelling.save("Ann", tasks[0], label, 1.0)
    labelling.skip("Ann", tasks[1])
    labelling.save("Ben", tasks[0], plain(tasks[0]), 1.0)
    assert labelling.undo_last("Ann") == (tasks[1], None)
    assert labelling.undo_last("Ann") == (tasks[0], label)
    assert labelling.undo_last("Ann") is None
    assert [row["labeler"] for row in rankings.rows()] == ["Ben"]
    assert labelling.next_task("Ann") == tasks[0]


def test_a_task_that_is_in_no_file_is_saved_and_taken_back_too(rankings: RowFile) -> None:
    labelling = Labelling([], rankings)
    live = make_task(Prompt.of("Live?"), ["a", "b"])
    labelling.save("Ann", live, plain(live, (2, 1)), 1.0)
    back = labelling.undo_last("Ann")
    assert back is not None and back[0] == live
    assert back[1] == plain(live, (2, 1))


# Who is given what


def label_all(labelling: Labelling, labeler: str, most: int = 99) -> list[Task]:
    """Ranks what this labeler is given, in order."""
    done: list[Task] = []
    while len(done) < most and (task := labelling.next_task(labeler)) is not None:
        labelling.save(labeler, task, plain(task), 1.0)
        done.append(task)
    return done


def test_a_prompt_is_given_to_so_many_people_and_what_is_begun_comes_first(rankings: RowFile) -> None:
    tasks = some_tasks(4)
    labelling = Labelling(tasks, rankings, (), Workload(people_per_prompt=2))
    assert label_all(labelling, "Ann", 2) == tasks[:2]
    assert labelling.next_task("Cleo") == tasks[0], "she has not ranked it yet"
    assert label_all(labelling, "Ben") == [tasks[1], tasks[2], tasks[3]], "the first is Ann's and Cleo's"
    assert label_all(labelling, "Cleo") == [tasks[0], tasks[2], tasks[3]]
    assert labelling.next_task("Dan") is None and labelling.progress("Dan")[:2] == (0, 0)
    assert Counter(row["task"] for row in rankings.rows()) == {task.id: 2 for task in tasks}


def test_nobody_is_given_more_than_the_quota(rankings: RowFile) -> None:
    labelling = Labelling(some_tasks(5), rankings, (), Workload(quota=2))
    assert labelling.progress("Ann")[:2] == (0, 2)
    assert len(label_all(labelling, "Ann")) == 2
    assert labelling.progress("Ann")[:2] == (2, 2)


def test_a_row_may_name_who_is_to_rank_it(tmp_path: Path, rankings: RowFile) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "One?", "responses": ["a", "b"], "labelers": ["Ann"], "ended": [True, False]},
        {"prompt": "Two?", "responses": ["a", "b"]},
        {"prompt": "Three?", "responses": ["a", "b"], "labelers": "Ann"},
        {"prompt": "Four?", "responses": ["a", "b"], "labelers": ["<b>"]},
        {"prompt": "Five?", "responses": ["a", "b"], "ended": [True]},
    ]
    tasks, refused = read_tasks(write(tmp_path / "candidates.jsonl", rows))
    assert refused.count == 3 and tasks[0].ended == (True, False)
    labelling = Labelling(tasks, rankings)
    assert label_all(labelling, "Ben") == [tasks[1]]
    assert label_all(labelling, "Ann") == tasks
    assert read_rankings(str(rankings.path), strict=True)[0][1].ended == (True, False)


def test_the_rankings_of_a_person_are_removed_with_a_trace(rankings: RowFile) -> None:
    labelling = Labelling(some_tasks(2), rankings)
    for labeler in ("Ann", "Ben"):
        label_all(labelling, labeler)
    count, path = labelling.remove_labeler("Ann", "too fast")
    assert count == 2 and [row["labeler"] for row in rankings.rows()] == ["Ben", "Ben"]
    assert [(row["labeler"], row["reason"]) for row in RowFile(path).rows()] == [("Ann", "too fast")] * 2
    assert labelling.next_task("Ann") is not None


def test_figures_of_people_by_hand(rankings: RowFile) -> None:
    tasks = some_tasks(4)
    labelling = Labelling(tasks, rankings)
    for task in tasks:  # 6 words of prompt and 6 of answers: 1.2 s at 10 words a second
        labelling.save("Ann", task, plain(task, (1, 2, 3)), 5.0)
        labelling.save("Ben", task, plain(task, (1, 3, 2) if task is tasks[2] else (1, 2, 3)), 0.5)
    figures = labelling.people()
    ann, ben = figures.people
    assert (ann.name, ann.rankings, ann.seconds, ann.num_fast, ann.is_too_fast) == ("Ann", 4, 5.0, 0, False)
    assert (ben.num_fast, ben.is_too_fast) == (4, True)
    assert ann.agreement == ben.agreement == (11 / 12, 12)
    assert [prompt.agreement for prompt in figures.disagreements] == [(2 / 3, 3)]
    assert figures.disagreements[0].rankings[0].prompt.messages[0].text == tasks[2].prompt.messages[0].text
    assert figures.prompts_by_people == {2: 4}


# What is saved


def test_what_is_saved_is_a_ranking_with_the_rest_beside_it(rankings: RowFile) -> None:
    task = make_task(Prompt(Prompt.of("Who?").messages, {"use_case": "chat"}), ["a", "b", "c"])
    label = Label((2, 1, 2), (4, 7, None), (("hallucination",), (), ()), ("ambiguous",))
    Labelling([task], rankings).save("Ann", task, label, 12.34)
    found, refused = read_rankings(str(rankings.path))
    assert refused.count == 0
    (ranking,) = found
    assert (ranking.responses, ranking.ranks, ranking.labeler) == (("a", "b", "c"), (2, 1, 2), "Ann")
    meta = ranking.prompt.meta
    assert meta["ratings"] == [4, 7, None]
    assert meta["flags"] == [["hallucination"], [], []]
    assert (meta["prompt_flags"], meta["seconds"], meta["use_case"]) == (["ambiguous"], 12.3, "chat")
    assert sorted(meta["shown"]) == [0, 1, 2]


def test_the_page_speaks_of_the_order_shown_and_the_file_of_the_responses() -> None:
    task = make_task(Prompt.of("Who?"), ["first", "second", "third"])
    labeler = next(name for name in map(str, range(99)) if task.display_order(name) == (2, 0, 1))
    # shown: third, first, second
    value = {"id": task.id, "ranks": [1, 2, 3], "ratings": [7, 4, 1], "flags": [["opinion"], [], []]}
    label = label_from_page(value, task, labeler)
    assert label.ranks == (2, 3, 1)
    assert label.ratings == (4, 1, 7)
    assert label.flags == ((), (), ("opinion",))


@pytest.mark.parametrize(
    "change",
    [
        {"id": "another"},
        {"ranks": [1, 2]},
        {"ranks": [1, 3, 4]},
        {"ranks": [0, 1, 2]},
        {"ranks": [1, 2, True]},
        {"ranks": [1.0, 2, 3]},
        {"ranks": ["1", 2, 3]},
        {"ranks": [[], {}, 1]},
        {"ranks": None},
        {"ratings": [0, 1, 2]},
        {"ratings": [8, None, None]},
        {"ratings": [True, None, None]},
        {"flags": [["unknown"], [], []]},
        {"flags": [[{}], [], []]},
        {"flags": "abc"},
        {"flags": ["opinion", [], []]},
    ],
)
def test_what_no_page_would_send_is_refused(change: dict[str, Any]) -> None:
    task = make_task(Prompt.of("Who?"), ["a", "b", "c"])
    value = {"id": task.id, "ranks": [1, 2, 2], "ratings": [None] * 3, "flags": [[], [], []]}
    assert label_from_page(value, task, "Ann")
    with pytest.raises(UserError):
        label_from_page(value | change, task, "Ann")
    with pytest.raises(UserError):
        label_from_page([], task, "Ann")  # type: ignore[arg-type]


def test_a_full_disk_is_said_and_nothing_is_half_written(rankings: RowFile, monkeypatch: pytest.MonkeyPatch) -> None:
    task = some_tasks(1)[0]
    Labelling([task], rankings).save("Ann", task, plain(task), 1.0)
    before = rankings.path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Labelling([task], rankings).save("Ben", task, plain(task), 1.0)
    assert rankings.path.read_bytes() == before


# The qualification


def exam_tasks() -> list[Task]:
    return [make_task(Prompt.of(f"Exam {number}?"), ["a", "b", "c"], (1, 2, 3)) for number in range(2)]


def test_a_new_labeler_does_the_qualification_first_and_it_is_no_training_data(rankings: RowFile) -> None:
    exam, tasks = exam_tasks(), some_tasks(2)
    labelling = Labelling(tasks, rankings, exam)
    assert labelling.next_task("Ann") == exam[0]
    labelling.save("Ann", exam[0], plain(exam[0], (1, 2, 3)), 1.0)  # 3 of 3 pairs
    labelling.save("Ann", exam[1], plain(exam[1], (2, 1, 1)), 1.0)  # a over b no, a over c no, b over c tied: 0.5
    assert labelling.qualification("Ann") == (3.5 / 6, 6)
    assert labelling.qualification("Ben") == (None, 0)
    assert labelling.next_task("Ann") == tasks[0]
    assert labelling.next_task("Ben") == exam[0]
    assert labelling.progress("Ann") == (0, 2, 0, 2, 2)
    assert rankings.rows() == []
    assert labelling.undo_last("Ann") is not None
    assert labelling.next_task("Ann") == exam[1]


def test_the_qualification_is_read_from_rankings(tmp_path: Path) -> None:
    rows = [{"prompt": "One?", "responses": ["a", "b"], "ranks": [2, 1]}]
    (task,) = read_qualification(write(tmp_path / "known.jsonl", rows))
    assert (task.responses, task.known_ranks) == (("a", "b"), (2, 1))
    with pytest.raises(UserError):
        read_qualification(write(tmp_path / "none.jsonl", [{"prompt": "One?", "responses": ["a", "b"]}]))


# Agreement


def test_agreement_of_labelers_by_hand(rankings: RowFile) -> None:
    (task,) = some_tasks(1)
    labelling = Labelling([task], rankings)
    labelling.save("Ann", task, Label((1, 2, 3), (7, 4, 1), ((),) * 3), 1.0)
    labelling.save("Ben", task, Label((1, 3, 2), (7, 4, 1), ((),) * 3), 1.0)
    found = labelling.labeler_agreement()
    assert (found.labelers, found.rankings) == (2, 2)
    assert found.pairs == (2 / 3, 3)
    assert found.ratings.alpha == 1.0
    # units (1, 1), (1, 1), (1, -1), or with the sign of a unit the other way round; the alpha follows from the counts
    assert found.preferences.units == 3 and found.preferences.values == 6


# Two at once, and kills


@pytest.mark.kill
def test_two_labelers_at_once_and_kills_at_random_instants_lose_nothing(tmp_path: Path) -> None:
    path, count = tmp_path / "rankings.jsonl", 150
    noted = tmp_path / "rankings.jsonl.killed"
    rng = random.Random(5)
    steady = SPAWN.Process(target=save_all, args=(str(path), "steady", count))
    steady.start()
    for _ in range(3):
        before = noted.stat().st_size if noted.exists() else 0
        killed = SPAWN.Process(target=save_all, args=(str(path), "killed", count))
        killed.start()
        while killed.is_alive() and not (noted.exists() and noted.stat().st_size > before):
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        assert killed.is_alive() and killed.pid is not None, "it is killed at work"
        os.kill(killed.pid, signal.SIGKILL)
        killed.join(60)
    save_all(str(path), "killed", count)  # who was killed goes on
    steady.join(120)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    wanted = {task.id for task in some_tasks(count)}
    for labeler in ("steady", "killed"):
        ids = [row["task"] for row in rows if row["labeler"] == labeler]
        saved = (tmp_path / f"rankings.jsonl.{labeler}").read_text().split()
        assert set(saved) <= set(ids) == wanted
        assert len(ids) == count, "no task was labelled twice by one person"
    assert read_rankings(str(path))[1].count == 0


# Training on it


@pytest.mark.slow
def test_the_saved_file_trains_a_reward_model(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    base = tiny_model("llama")
    model = SharedModel(load_base(BaseSpec(str(base), "none"), "cpu"))
    model.add_role("sft", LoraSettings(rank=4, alpha=8))
    run = tmp_path / "run"
    folder = StageFolder(SFTConfig(run=str(run), model=str(base), demonstrations="d.jsonl"), "sft")
    folder.begin(describe_base(model), {}, {})
    model.save_role("sft", folder.path / ADAPTER)
    folder.finish({})
    demonstrations = [{"prompt": f"Where is the {word}?", "completion": f"The {word} is here."} for word in WORDS]
    write(tmp_path / "demonstrations.jsonl", demonstrations)

    rankings = RowFile(run / "rankings.jsonl")
    tasks = [
        make_task(Prompt.of(f"Where is the {a} {b}?"), [f"The {a} is here.", "What?", f"Say {b} thank you"])
        for a in WORDS for b in WORDS[:4]
    ]  # fmt: skip
    labelling = Labelling(tasks, rankings)
    for labeler in ("Ann", "Ben"):
        while (task := labelling.next_task(labeler)) is not None:
            labelling.save(labeler, task, plain(task, (1, 3, 2)), 1.0)
    config = RewardConfig(
        run=str(run), rankings=str(rankings.path), demonstrations=str(tmp_path / "demonstrations.jsonl"), device="cpu",
        max_prompt_tokens=48, max_response_tokens=24, validation_fraction=0.2, learning_rate=2e-2,
    )  # fmt: skip
    reward.train(config)
    results = json.loads((run / "reward" / "manifest.json").read_text())["results"]
    assert results["accuracy"]["rate"] > 0.8
    assert results["label_agreement"] == 1.0


def test_a_task_needs_two_to_nine_responses() -> None:
    with pytest.raises(BadRow):
        make_task(Prompt.of("Who?"), ["a", " a"])
    with pytest.raises(BadRow):
        make_task(Prompt.of("Who?"), [str(number) for number in range(10)])
