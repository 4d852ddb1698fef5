"""Held-out prompts are looked for in the data that the manifests name, in bounded time, where those are still read."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.configs.stages import PPOConfig, RewardConfig, SFTConfig
from lora_rlhf.configs.values import to_yaml
from lora_rlhf.data.schema import Prompt
from lora_rlhf.evaluation import seen
from lora_rlhf.evaluation.frozen import read_tool_rows
from lora_rlhf.evaluation.seen import count_seen_prompts, seen_warning
from lora_rlhf.evaluation.systems import RunStages
from lora_rlhf.runs.folder import Parent

PROMPTS = [Prompt.of(f"Question {number}?") for number in range(6)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def stage(folder: Path, config: Any, data: dict[str, Any]) -> Parent:
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    return Parent(folder, {"data": data})


def record(path: str, sha256: str | None = "changed") -> dict[str, Any]:
    return {"path": path, "sha256": sha256}


@pytest.fixture
def evaluated(tmp_path: Path) -> str:
    return write(tmp_path / "held_out.jsonl", [{"prompt": prompt.messages[0].content} for prompt in PROMPTS])


def sft_on(tmp_path: Path, name: str, sha256: str | None = "changed", format: str | None = None) -> RunStages:
    config = SFTConfig(run=str(tmp_path), model="m", demonstrations=name, format=format)
    return RunStages({"sft": stage(tmp_path / "sft", config, {"demonstrations": record(name, sha256)})})


def test_prompts_are_the_same_by_key_in_every_stage(tmp_path: Path, evaluated: str) -> None:
    demonstrations = write(
        tmp_path / "d.jsonl",
        [{"prompt": "QUESTION  1?", "completion": "a"}, {"prompt": "Else?", "completion": "b"}, {"prompt": ""}],
    )
    pairs = write(
        tmp_path / "r.jsonl", [{"prompt": f"Question {n}?", "chosen": "a", "rejected": "b"} for n in (1, 2, 2)]
    )
    other = write(tmp_path / "p.jsonl", [{"prompt": "New?"}])
    common: dict[str, Any] = {"run": str(tmp_path)}
    stages = RunStages(
        {
            "sft": stage(
                tmp_path / "sft",
                SFTConfig(model="m", demonstrations="d", **common),
                {"demonstrations": record(demonstrations)},
            ),
            "reward": stage(
                tmp_path / "reward",
                RewardConfig(rankings="r", **common),
                {"rankings": record(pairs), "agreement": record(evaluated)},
            ),
            "ppo": stage(tmp_path / "ppo", PPOConfig(prompts="p", **common), {"prompts": record(other)}),
        }
    )
    found = count_seen_prompts(stages, evaluated, PROMPTS)
    assert [(row.stage, row.seen, row.compared) for row in found.stages] == [
        ("sft", 1, "all"),
        ("reward", 2, "all"),
        ("ppo", 0, "all"),
    ]
    assert (found.prompts, found.seen) == (6, 2)
    assert seen_warning(found).startswith(
        "2 of 6 prompts also in training data (sft 1, reward 2): figures on these flatter"
    )


def test_each_answer_of_a_conversation_has_been_trained_on(tmp_path: Path) -> None:
    """As the rows of --tools are asked: at every turn, with the tools that may be called."""
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    turns = [{"role": "user", "content": "How many?"}, call, {"role": "tool", "content": "3"}]
    tools = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}]
    rows = [{"messages": [*turns, {"role": "assistant", "content": "Three."}], "tools": tools}]
    path = write(tmp_path / "d.jsonl", rows)
    asked = [row.prompt for row in read_tool_rows(path, strict=True)]
    assert len(asked) == 2
    found = count_seen_prompts(sft_on(tmp_path, path), str(tmp_path / "other.jsonl"), asked)
    assert (found.prompts, found.seen) == (2, 2)


def test_the_data_of_other_runs_count_too(tmp_path: Path, evaluated: str) -> None:
    names = ("own", "other", "again")
    paths = [write(tmp_path / f"{name}.jsonl", [{"prompt": f"Question {n}?"}]) for n, name in enumerate(names, start=1)]
    for name in names:
        (tmp_path / name).mkdir()
    own, other, again = (sft_on(tmp_path / name, path) for name, path in zip(names, paths, strict=True))
    other.sft.manifest["id"] = again.sft.manifest["id"] = "one and the same"
    found = count_seen_prompts(own, evaluated, PROMPTS, {"other": other, "again": again})
    assert [(row.stage, row.seen) for row in found.stages] == [("sft", 1), ("other:sft", 1)]
    assert found.seen == 2 and "(sft 1, other:sft 1)" in seen_warning(found)


def test_nothing_seen_is_nothing_said(tmp_path: Path, evaluated: str) -> None:
    found = count_seen_prompts(sft_on(tmp_path, write(tmp_path / "d.jsonl", [{"prompt": "New?"}])), evaluated, PROMPTS)
    assert found.seen == 0 and seen_warning(found) == ""
    none = count_seen_prompts(RunStages({"sft": Parent(tmp_path, {})}), evaluated, PROMPTS)
    assert (none.seen, none.stages, seen_warning(none)) == (0, [], "")


def test_data_that_are_gone_are_told_by_their_hash_or_called_unknown(tmp_path: Path, evaluated: str) -> None:
    gone = str(tmp_path / "gone.jsonl")
    same = hashlib.sha256(Path(evaluated).read_bytes()).hexdigest()
    (tmp_path / "a").mkdir()
    found = count_seen_prompts(sft_on(tmp_path / "a", gone, same), evaluated, PROMPTS)
    assert (found.seen, found.stages[0].compared) == (6, "all")
    (tmp_path / "b").mkdir()
    found = count_seen_prompts(sft_on(tmp_path / "b", gone), evaluated, PROMPTS)
    assert (found.seen, found.stages[0].compared) == (0, "none")
    assert seen_warning(found) == f"prompts not compared with all training data of sft ({gone})"


def test_the_hub_is_not_asked(tmp_path: Path, evaluated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_rlhf.data.containers.hub_rows", lambda _: pytest.fail("the hub was asked"))
    stages = sft_on(tmp_path, "owner/name", None)
    assert count_seen_prompts(stages, evaluated, PROMPTS).stages[0].compared == "none"
    found = count_seen_prompts(stages, "owner/name", PROMPTS)
    assert (found.seen, found.stages[0].compared) == (6, "all")


def test_the_stages_format_is_used(tmp_path: Path, evaluated: str) -> None:
    rows = [{"prompt": "Other?", "question": "Question 1?", "response": "b"}]
    stages = sft_on(tmp_path, write(tmp_path / "d.jsonl", rows), format="orca")
    assert count_seen_prompts(stages, evaluated, PROMPTS).seen == 1


def test_reading_ends_when_it_takes_too_long_or_all_is_known(
    tmp_path: Path, evaluated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"Question {number}?"} for number in range(1000)]
    stages = sft_on(tmp_path, write(tmp_path / "d.jsonl", rows))
    read = []
    key: Any = vars(Prompt)["key"].fget
    monkeypatch.setattr(Prompt, "key", property(lambda prompt: read.append(prompt) or key(prompt)))
    assert count_seen_prompts(stages, evaluated, PROMPTS).seen == 6
    assert len(read) < 50, "all six stand at the beginning"
    monkeypatch.setattr(seen, "MOST_SECONDS", 0.0)
    found = count_seen_prompts(stages, evaluated, [*PROMPTS, Prompt.of("Not there")])
    assert (found.seen, found.stages[0].compared) == (1, "part")
    assert "1 of 7 prompts" in seen_warning(found) and "not compared with all" in seen_warning(found)
