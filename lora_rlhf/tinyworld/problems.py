"""The tiny world's corner of problems: sums with a right answer, and limits on the form, that code can check.

No prompt or response has a digit, since the base knows number words alone; the rows name the answer in digits too, as
GSM8K's do. Like the other demonstrations, most of these have faults: so SFT learns the faults, and the checks must
teach the rest.
"""

import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_rlhf.data.io import write_jsonl
from lora_rlhf.tinyworld.config import ProblemsConfig
from lora_rlhf.tinyworld.facts import NUMBERS, PEOPLE, THINGS
from lora_rlhf.tinyworld.language import CLOSINGS
from lora_rlhf.tinyworld.requests import HELD_OUT_SHARE, SKILLS, Constraint, Request
from lora_rlhf.tinyworld.writers import Habits, Writer, make_writers

SUM = next(skill for skill in SKILLS if skill.name == "sum")
MOST_WORDS = "eight"  # a sum has five words, and any filler at least five more
STORY_SHARE = 0.8
# One too few is the commonest answer, so that a lower temperature does not help.
ONE_TOO_FEW = 0.80
HABITS = Habits(ignores_constraint=0.80, rambles=0.75, rude=0.05, sloppy=0.05)


@dataclass(frozen=True)
class Problem:
    """A sum of two number words, in a wording, with a limit on the form or none."""

    numbers: tuple[str, str]
    wording: str
    constraint: Constraint | None

    @property
    def request(self) -> Request:
        return Request(SUM, self.numbers, self.wording, self.constraint)

    @property
    def total(self) -> int:
        return sum(map(NUMBERS.index, self.numbers))

    @property
    def is_held_out(self) -> bool:
        """Whether these two numbers, in this order, occur in held-out problems alone."""
        digest = hashlib.sha256("|".join(("problem", *self.numbers)).encode()).digest()
        return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32

    @property
    def row(self) -> dict[str, Any]:
        """The problem as in GSM8K, with the arguments of the built-in functions length_window and regex."""
        limits: dict[str, Any] = {}
        if self.constraint is not None and self.constraint.kind == "words":
            limits = {"most": NUMBERS.index(self.constraint.value)}
        elif self.constraint is not None:
            limits = {"pattern": self.constraint.value.replace(".", r"\.") + "$"}
        solution = f"{self.numbers[0].capitalize()} plus {self.numbers[1]} is {NUMBERS[self.total]}."
        return {"question": self.request.text, "answer": f"{solution}\n#### {self.total}", **limits}


def make_problems(config: ProblemsConfig) -> dict[str, int]:
    """Writes every file; the same configuration writes the same bytes. Returns the rows of each file."""
    Path(config.to).mkdir(parents=True, exist_ok=True)
    used, counts = set[str](), {}
    for name, path in config.path_by_set.items():
        rows = _iterate_rows(name, random.Random(f"problems-{name}-{config.seed}"), used)
        counts[name] = write_jsonl(path, itertools.islice(rows, config.num_rows_by_set[name]))
    return counts


def _iterate_rows(name: str, rng: random.Random, used: set[str]) -> Iterator[dict[str, Any]]:
    """Endless rows of a set. used: texts of problems that must not be drawn; drawn texts are added."""
    writers = make_writers(HABITS)
    while True:
        problem = _draw_problem(rng)
        text = problem.request.text
        if text in used or problem.is_held_out != (name == "held_out"):
            continue
        used.add(text)
        if name == "demonstrations":
            yield {"prompt": text, "completion": _write_answer(problem, rng.choice(writers), rng)}
        else:
            yield problem.row


def _draw_problem(rng: random.Random) -> Problem:
    first, second = rng.choice(SUM.keys)
    wording = f"How much is {first} plus {second}?"
    if rng.random() < STORY_SHARE:
        (one, other), thing = rng.sample(PEOPLE, 2), rng.choice(THINGS)
        things = f"{thing}es" if thing.endswith("x") else f"{thing}s"
        owned = [f"{number} {thing if number == 'one' else things}" for number in (first, second)]
        wording = f"{one} has {owned[0]}. {other} has {owned[1]}. How many {things} do they have?"
    constraints = [None, Constraint("words", MOST_WORDS), Constraint("end", rng.choice(CLOSINGS))]
    return Problem((first, second), wording, rng.choice(constraints))


def _write_answer(problem: Problem, writer: Writer, rng: random.Random) -> str:
    """An answer with the writer's habits; more often than not it is one too few."""
    text = writer.write(problem.request, rng)
    if problem.total and rng.random() < ONE_TOO_FEW:
        text = text.replace(f" is {NUMBERS[problem.total]}.", f" is {NUMBERS[problem.total - 1]}.")
    return text
