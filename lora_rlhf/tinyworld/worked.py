"""Sums of five small numbers of the tiny world, worked out in four steps, each of which code can judge.

An answer is "Two plus three is five. Five plus one is six. Six plus four is ten. Ten plus one is eleven.", and a step ends with its full stop.
The writers err in some steps and go on from what they wrote, so that a wrong step can spoil an answer, and two of them
can cancel out.
"""

import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_rlhf.data.io import write_jsonl
from lora_rlhf.tinyworld.config import WorkedConfig
from lora_rlhf.tinyworld.facts import NUMBERS
from lora_rlhf.tinyworld.requests import HELD_OUT_SHARE

ERROR_SHARE = 0.3  # of the steps
TERMS, LARGEST_TERM = 5, 4
LARGEST_SUM = len(NUMBERS) - TERMS  # the base knows no number above twenty, which errors upwards must not pass


@dataclass(frozen=True)
class LongSum:
    """Numbers that are added up one after the other."""

    numbers: tuple[int, ...]

    @property
    def question(self) -> str:
        return f"How much is {' plus '.join(NUMBERS[number] for number in self.numbers)}?"

    @property
    def is_held_out(self) -> bool:
        """Whether these numbers, in this order, occur in held-out sums alone."""
        digest = hashlib.sha256("|".join(("long sum", *map(str, self.numbers))).encode()).digest()
        return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def judge_steps(numbers: tuple[int, ...], steps: list[str]) -> list[bool]:
    """Whether each step adds the next number to the total that the step before it gave, and gets it right."""
    labels, total = [], NUMBERS[numbers[0]]
    for step, number in itertools.zip_longest(steps, numbers[1:]):
        if step is None:
            break
        before = NUMBERS.index(total)
        can_be_right = number is not None and before + number < len(NUMBERS)  # no word tells more than twenty
        labels.append(can_be_right and step == _write_step(before, number, 0))
        last = step.rstrip(".").rpartition(" ")[2]
        total = last if last in NUMBERS else "zero"
    return labels


def make_worked_sums(config: WorkedConfig) -> dict[str, int]:
    """Writes every file; the same configuration writes the same bytes. Returns the rows of each file."""
    Path(config.to).mkdir(parents=True, exist_ok=True)
    used, counts = set[LongSum](), {}
    for name, path in config.path_by_set.items():
        rows = _iterate_rows(name, random.Random(f"worked-{name}-{config.seed}"), used)
        counts[name] = write_jsonl(path, itertools.islice(rows, config.num_rows_by_set[name]))
    return counts


def _iterate_rows(name: str, rng: random.Random, used: set[LongSum]) -> Iterator[dict[str, Any]]:
    """Endless rows of a set. used: sums that must not be drawn; drawn ones are added."""
    while True:
        sum_ = _draw_sum(rng)
        if sum_ in used or sum_.is_held_out != (name == "held_out"):
            continue
        used.add(sum_)
        steps = _write_steps(sum_, rng)
        if name == "demonstrations":
            yield {"prompt": sum_.question, "completion": " ".join(steps)}
        elif name == "step_labels":
            labels, result = judge_steps(sum_.numbers, steps), f" {NUMBERS[sum(sum_.numbers)]}."
            is_right = steps[-1].endswith(result)
            yield {"prompt": sum_.question, "completions": steps, "labels": labels, "is_right": is_right}
        else:
            yield {"prompt": sum_.question, "answer": str(sum(sum_.numbers)), "numbers": list(sum_.numbers)}


def _draw_sum(rng: random.Random) -> LongSum:
    while True:
        numbers = tuple(rng.randint(1, LARGEST_TERM) for _ in range(TERMS))
        if sum(numbers) <= LARGEST_SUM:
            return LongSum(numbers)


def _write_steps(sum_: LongSum, rng: random.Random) -> list[str]:
    """The steps of an answer, some of them off by one; each goes on from the total that the one before gave."""
    steps, total = [], sum_.numbers[0]
    for number in sum_.numbers[1:]:
        error = rng.choice((-1, 1)) if rng.random() < ERROR_SHARE else 0
        steps.append(_write_step(total, number, error))
        total = total + number + error
    return steps


def _write_step(total: int, number: int, error: int) -> str:
    return f"{NUMBERS[total].capitalize()} plus {NUMBERS[number]} is {NUMBERS[total + number + error]}."
