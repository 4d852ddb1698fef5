"""A task of the tiny world: its wordings, its good answers, and the judgement of any answer."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from lora_rlhf.tinyworld.facts import ATTRIBUTES, FACTS, KIND_OF
from lora_rlhf.tinyworld.language import Sentence

Key = tuple[str, ...]


@dataclass(frozen=True)
class Knowledge:
    """A writer's beliefs: the truth, except for a share of wrong answers (`sloppiness`, 0 to 1)."""

    rng: random.Random
    sloppiness: float = 0.0

    def slips(self) -> bool:
        return self.rng.random() < self.sloppiness

    def value(self, entity: str, attribute: str) -> str:
        values = ATTRIBUTES[KIND_OF[entity]][attribute].values
        return self.rng.choice(values) if self.slips() else FACTS[entity][attribute]

    def attributes(self, entity: str, count: int) -> list[str]:
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

    `phrase(key)` returns the wordings of the prompt; `compose(key, knowledge, brief)` the sentences of an answer;
    `judge(key, sentences)` the verdict on any answer. `max_words` and `max_sentences` are limits that a brief answer
    keeps and a full or rambling one breaks; `frames`: whether an answer may have to begin or end with given words.
    """

    use_case: str
    name: str
    keys: tuple[Key, ...]
    phrase: Callable[[Key], list[str]]
    compose: Callable[[Key, Knowledge, bool], list[str]]
    judge: Callable[[Key, list[Sentence]], Verdict]
    max_words: int
    max_sentences: int
    hero: Callable[[Key], str | None] = lambda key: key[0] if key[0] in KIND_OF else None
    frames: bool = True


def claims_about(entity: str, sentences: list[Sentence], kind: str = "fact") -> list[tuple[int, str, bool]]:
    """(sentence index, attribute, holds) of every claim about the entity in sentences of that kind."""
    return [
        (index, claim.attribute, claim.true)
        for index, sentence in enumerate(sentences)
        if sentence.kind == kind
        for claim in sentence.claims
        if claim.entity == entity
    ]


def exact(target: str, is_form: Callable[[str], bool], sentences: list[Sentence]) -> Verdict:
    """For tasks with one right sentence: `asked` is about its form, the claim about its content."""
    for index, sentence in enumerate(sentences):
        if sentence.text == target:
            return Verdict(1.0, (True,), frozenset({index}))
    for index, sentence in enumerate(sentences):
        if is_form(sentence.text):
            return Verdict(1.0, (False,), frozenset({index}))
    return Verdict(0.0)
