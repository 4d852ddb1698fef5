"""A task of the tiny world: its wordings, its good answers, and the judgement of any answer."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lora_rlhf.tinyworld.facts import ATTRIBUTES, FACTS, KIND_OF
from lora_rlhf.tinyworld.language import Sentence

Key = tuple[str, ...]


@dataclass(frozen=True)
class Knowledge:
    """A writer's beliefs: the truth, except for a share of wrong answers (`sloppiness`, 0 to 1)."""

    rng: random.Random
    sloppiness: float = 0.0

    def draw_answer(self, right_answer: str, options: Sequence[str]) -> str:
        """The right answer, or with probability `sloppiness` any of the options."""
        return self.rng.choice(options) if self.rng.random() < self.sloppiness else right_answer

    def draw_value(self, entity: str, attribute: str) -> str:
        """The value that the writer gives: the true one, or after a slip any value."""
        return self.draw_answer(FACTS[entity][attribute], ATTRIBUTES[KIND_OF[entity]][attribute].values)

    def draw_attributes(self, entity: str, count: int) -> list[str]:
        return self.rng.sample(sorted(ATTRIBUTES[KIND_OF[entity]]), count)


@dataclass(frozen=True)
class Verdict:
    """How far an answer does its task (0 to 1), which of its claims hold, and which sentences serve the task."""

    asked: float
    claims: tuple[bool, ...] = ()
    useful: frozenset[int] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Skill:
    """One task over many entities.

    `wordings(key)` returns the wordings of the prompt; `compose(key, knowledge, is_brief)` the sentences of an answer;
    `assess(key, sentences)` the verdict on any answer; `hero(key)` the entity that "I" and "It" refer to. `max_words` and
    `max_sentences` are limits that a brief answer keeps and a full or rambling one breaks; `can_be_framed`: whether a
    constraint may ask for given words at the beginning or end.
    """

    use_case: str
    name: str
    keys: tuple[Key, ...]
    wordings: Callable[[Key], list[str]]
    compose: Callable[[Key, Knowledge, bool], list[str]]
    assess: Callable[[Key, list[Sentence]], Verdict]
    max_words: int
    max_sentences: int
    hero: Callable[[Key], str | None] = lambda key: key[0] if key[0] in KIND_OF else None
    can_be_framed: bool = True


def claims_about(entity: str, sentences: list[Sentence], kind: str = "fact") -> list[tuple[int, str, bool]]:
    """(sentence index, attribute, whether it is true) of every claim about the entity in sentences of that kind."""
    return [
        (index, claim.attribute, claim.is_true)
        for index, sentence in enumerate(sentences)
        if sentence.kind == kind
        for claim in sentence.claims
        if claim.entity == entity
    ]


def assess_exact(target: str, is_form: Callable[[str], bool], sentences: list[Sentence]) -> Verdict:
    """The verdict for a task with one right sentence: `asked` is about its form, the claim about its content."""
    for index, sentence in enumerate(sentences):
        if sentence.text == target:
            return Verdict(1.0, (True,), frozenset({index}))
    for index, sentence in enumerate(sentences):
        if is_form(sentence.text):
            return Verdict(1.0, (False,), frozenset({index}))
    return Verdict(0.0)
