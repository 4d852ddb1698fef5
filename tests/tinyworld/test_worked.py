"""Sums in steps: every label says whether the step's arithmetic holds, worked out here from the texts alone."""

import json
import re
from pathlib import Path

from lora_rlhf.cli.main import main
from lora_rlhf.data.schema import StepLabels
from lora_rlhf.data.sources import Source
from lora_rlhf.tinyworld.config import WorkedConfig
from lora_rlhf.tinyworld.facts import NUMBERS
from lora_rlhf.tinyworld.worked import judge_steps


def words(text: str) -> list[int]:
    return [NUMBERS.index(word) for word in re.findall(r"[a-z]+", text.lower()) if word in NUMBERS]


def test_labels_are_those_of_the_arithmetic(tmp_path: Path) -> None:
    sizes = "--num_demonstrations 20 --num_step_labels 100 --num_prompts 20 --num_held_out 20"
    assert main(f"tinyworld worked --to {tmp_path} {sizes}".split()) == 0
    found = []
    for row in Source[StepLabels](str(tmp_path / "step_labels.jsonl"), "steps"):
        first, *others = words(row.prompt.messages[0].content)
        for step, label, number in zip(row.steps, row.labels, others, strict=True):
            one, other, total = words(step)
            assert (one, other) == (first, number) and label == (one + other == total)
            first = total
            found.append(label)
        is_right = first == sum(words(row.prompt.messages[0].content))
        assert row.prompt.meta["is_right"] == is_right
    assert 0.6 < sum(found) / len(found) < 0.8
    rows = {name: path.read_text() for name, path in WorkedConfig(to=str(tmp_path)).path_by_set.items()}
    asked = [json.loads(line)["prompt"] for text in rows.values() for line in text.splitlines()]
    assert len(set(asked)) == len(asked) == 160


def test_any_steps_are_judged() -> None:
    steps = ["One plus two is four.", "Three plus one is four.", "Four plus one is five.", "Good day."]
    assert judge_steps((1, 2, 1, 1), steps) == [False, False, True, False]
    assert judge_steps((1, 2, 1), ["One plus two is three."]) == [True]


def test_a_step_beyond_the_last_number_is_wrong() -> None:
    """A model's own total can be any number."""
    steps = ["Four plus four is nineteen.", "Nineteen plus four is twenty."]
    assert judge_steps((4, 4, 4), steps) == [False, False]


def test_more_than_there_are_is_refused() -> None:
    assert "there are 779 such sums" in WorkedConfig(to="x", num_prompts=700).faults()[0]
