"""Prompts of the tiny world: a task, its entities and perhaps a stated constraint, to text and from text."""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from lora_rlhf.tinyworld.facts import NUMBERS
from lora_rlhf.tinyworld.language import CLOSINGS, OPENINGS, count_words, split_sentences
from lora_rlhf.tinyworld.skill import Key, Skill
from lora_rlhf.tinyworld.skills_reading import READING
from lora_rlhf.tinyworld.skills_writing import WRITING

SKILLS = (*WRITING, *READING)
# InstructGPT (arXiv 2203.02155), Table 1: the share of each use case among the prompts of its API.
USE_CASES = {
    "generation": 0.456,
    "open QA": 0.124,
    "brainstorming": 0.112,
    "chat": 0.084,
    "rewriting": 0.066,
    "summarisation": 0.042,
    "classification": 0.035,
    "other": 0.035,
    "closed QA": 0.026,
    "extraction": 0.019,
}
CONSTRAINED_SHARE = 0.6
HELD_OUT_SHARE = 0.2


@dataclass(frozen=True)
class Constraint:
    """A stated limit on the form: kind "words" or "sentences" with a number, "begin" or "end" with given words."""

    kind: str
    value: str

    @property
    def text(self) -> str:
        if self.kind == "words":
            return f"Use at most {self.value} words."
        if self.kind == "sentences":
            return "Use only one sentence." if self.value == "one" else f"Use at most {self.value} sentences."
        return f"{self.kind.capitalize()} with: {self.value}"

    def is_obeyed_by(self, response: str) -> bool:
        """Whether a response keeps the limit; an empty response does not."""
        sentences = split_sentences(response)
        if not sentences:
            return False
        if self.kind == "words":
            return count_words(response) <= NUMBERS.index(self.value)
        if self.kind == "sentences":
            return len(sentences) <= NUMBERS.index(self.value)
        return (sentences[0] if self.kind == "begin" else sentences[-1]) == self.value


@dataclass(frozen=True)
class Request:
    """One prompt: its task, its entities, its wording and its constraint."""

    skill: Skill
    key: Key
    wording: str
    constraint: Constraint | None = None

    @property
    def text(self) -> str:
        """The prompt: the wording, and the constraint if it has one."""
        return f"{self.wording} {self.constraint.text}" if self.constraint else self.wording

    @property
    def is_held_out(self) -> bool:
        """Whether this combination of task and entities is reserved for evaluation.

        It does not depend on wording and constraint.
        """
        digest = hashlib.sha256("|".join((self.skill.name, *self.key)).encode()).digest()
        return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def possible_constraints(skill: Skill) -> list[Constraint]:
    """Every constraint that a request of this task may have."""
    limits = [Constraint("words", NUMBERS[skill.max_words]), Constraint("sentences", NUMBERS[skill.max_sentences])]
    if not skill.can_be_framed:
        return limits
    return [
        *limits,
        *(Constraint("begin", words) for words in OPENINGS),
        *(Constraint("end", words) for words in CLOSINGS),
    ]


@cache
def _skill_and_key_by_wording() -> dict[str, tuple[Skill, Key]]:
    return {wording: (skill, key) for skill in SKILLS for key in skill.keys for wording in skill.wordings(key)}


@cache
def _constraint_by_text() -> dict[str, Constraint]:
    return {constraint.text: constraint for skill in SKILLS for constraint in possible_constraints(skill)}


def find_request(text: str) -> Request | None:
    """The request of this prompt; None for a prompt from outside the tiny world."""
    text = " ".join(text.split())
    if text in _skill_and_key_by_wording():
        return Request(*_skill_and_key_by_wording()[text], text)
    for suffix, constraint in _constraint_by_text().items():
        wording = text.removesuffix(f" {suffix}")
        if wording != text and wording in _skill_and_key_by_wording():
            return Request(*_skill_and_key_by_wording()[wording], wording, constraint)
    return None


def draw_requests(rng: random.Random, is_held_out: bool, used_texts: set[str] | None = None) -> Iterator[Request]:
    """Endless distinct requests in the paper's mixture of use cases.

    used_texts: texts that must not be drawn; drawn texts are added.
    """
    used_texts = set() if used_texts is None else used_texts
    skills = {use_case: [skill for skill in SKILLS if skill.use_case == use_case] for use_case in USE_CASES}
    while True:
        skill = rng.choice(skills[rng.choices(list(USE_CASES), list(USE_CASES.values()))[0]])
        for _ in range(200):  # a use case with few combinations may run out: then another is drawn
            request = _draw_request(rng, skill)
            if request.is_held_out == is_held_out and request.text not in used_texts:
                used_texts.add(request.text)
                yield request
                break


def _draw_request(rng: random.Random, skill: Skill) -> Request:
    """A random request of a task; it may be held out, or drawn before."""
    key = rng.choice(skill.keys)
    constraint = None
    if rng.random() < CONSTRAINED_SHARE:
        options = possible_constraints(skill)
        kind = rng.choice(sorted({option.kind for option in options}))
        constraint = rng.choice([option for option in options if option.kind == kind])
    return Request(skill, key, rng.choice(skill.wordings(key)), constraint)
