"""Demonstrations by writers of mixed quality: habits that a model learns and that preferences can correct."""

import dataclasses
import random
from dataclasses import dataclass

from lora_rlhf.tinyworld.language import CLOSING_FILLER, OPENING_FILLER, RUDE
from lora_rlhf.tinyworld.requests import Request
from lora_rlhf.tinyworld.skill import Knowledge
from lora_rlhf.tinyworld.skills_reading import one_word_answer

NUM_WRITERS = 20


@dataclass(frozen=True)
class Writer:
    """One person's habits, each as its probability in an answer."""

    ignores_constraint: float
    rambles: float
    curt: float
    rude: float
    sloppy: float

    def write(self, request: Request, rng: random.Random) -> str:
        """Writes an answer with this writer's habits."""
        knowledge = Knowledge(rng, self.sloppy)
        if request.constraint and rng.random() >= self.ignores_constraint:
            return compliant_answer(request, knowledge)
        if rng.random() < self.curt:
            return _curt_answer(request, knowledge)
        sentences = request.skill.compose(request.key, knowledge, False)
        is_rambling = rng.random() < self.rambles
        if is_rambling and rng.random() < 0.4:
            sentences.insert(0, rng.choice(OPENING_FILLER))
        elif is_rambling:
            sentences.append(rng.choice(CLOSING_FILLER))
        if rng.random() < self.rude:
            sentences.append(rng.choice(RUDE))
        return " ".join(sentences)


def compliant_answer(request: Request, knowledge: Knowledge) -> str:
    """An answer that obeys the stated constraint and wastes no words; with exact knowledge, the best possible one."""
    constraint = request.constraint
    has_limit = constraint is not None and constraint.kind in ("words", "sentences")
    sentences = request.skill.compose(request.key, knowledge, has_limit)
    if constraint and constraint.kind == "begin":
        sentences.insert(0, constraint.value)
    elif constraint and constraint.kind == "end":
        sentences.append(constraint.value)
    return " ".join(sentences)


def _curt_answer(request: Request, knowledge: Knowledge) -> str:
    """A minimal answer: one word to a question, one sentence to any other task."""
    if request.skill.name == "fact":
        return one_word_answer(knowledge.draw_value(*request.key))
    return request.skill.compose(request.key, knowledge, True)[0]


@dataclass(frozen=True)
class Habits:
    """Averages of a group of writers."""

    ignores_constraint: float
    rambles: float
    curt: float = 0.15
    rude: float = 0.20
    sloppy: float = 0.12


# Most demonstrators ignore a stated constraint and add an empty sentence, so that the model's most probable answer does
# so too: a lower temperature does not correct these habits, preferences can.
DEMONSTRATORS = Habits(ignores_constraint=0.80, rambles=0.75)
WEB_AUTHORS = Habits(ignores_constraint=0.60, rambles=0.60)


def make_writers(habits: Habits = DEMONSTRATORS, seed: int = 0) -> list[Writer]:
    """The writers of a group; each has habits near the group's averages."""
    rng = random.Random(f"writers-{seed}")

    def draw_around(mean: float) -> float:
        return min(0.95, max(0.02, rng.gauss(mean, 0.35 * mean)))

    return [Writer(*(draw_around(mean) for mean in dataclasses.astuple(habits))) for _ in range(NUM_WRITERS)]
