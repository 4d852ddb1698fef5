"""The tasks with one right answer: questions, rewriting, summaries, classes, extraction and small sums."""

import hashlib
import random
from collections.abc import Callable

from lora_rlhf.tinyworld.facts import (
    ANIMALS,
    ATTRIBUTES,
    FACTS,
    KIND_OF,
    NUMBERS,
    PEOPLE,
    PLACES,
    ROOMS,
    THINGS,
    article,
    subject,
)
from lora_rlhf.tinyworld.language import EVENTS, PAST, Sentence, fact, say
from lora_rlhf.tinyworld.skill import Key, Knowledge, Skill, Verdict, claims_about, exact

Compose = Callable[[Key, Knowledge, bool], list[str]]
_SUMMARY_KEYS = tuple(
    (name, str(day)) for name, kind in KIND_OF.items() for day in range(3 if kind in ("animal", "person") else 1)
)
_FACT_KEYS = tuple((name, attribute) for name, kind in KIND_OF.items() for attribute in ATTRIBUTES[kind])


def _pick(options: list[str] | tuple[str, ...], *key: str) -> str:
    """A choice that depends on the key alone, so that a prompt's text can be made from its key."""
    return options[int.from_bytes(hashlib.sha256("|".join(key).encode()).digest()[:4], "big") % len(options)]


def _answer(key: Key, know: Knowledge, brief: bool) -> list[str]:
    return [fact(key[0], key[1], values={key[1]: know.value(*key)})]


def fragment(value: str) -> str:
    """A one-word answer: "Brown." """
    return f"{value[0].upper()}{value[1:]}."


def _judge_answer(key: Key, sentences: list[Sentence]) -> Verdict:
    entity, attribute = key
    claims = [(index, holds) for index, name, holds in claims_about(entity, sentences) if name == attribute]
    if claims:
        return Verdict(1.0, tuple(holds for _, holds in claims), frozenset(index for index, _ in claims))
    values = ATTRIBUTES[KIND_OF[entity]][attribute].values
    for index, sentence in enumerate(sentences):
        if sentence.text in map(fragment, values):
            return Verdict(0.7, (sentence.text == fragment(FACTS[entity][attribute]),), frozenset({index}))
    return Verdict(0.0)


def _past(key: Key, know: Knowledge, brief: bool) -> list[str]:
    entity, attribute = key
    return [f"{subject(entity)} {say(entity, attribute, know.value(*key), 'past')}."]


def _is_past(text: str) -> bool:
    return any(text.endswith(f" {clause}.") for clause in PAST)


def _question(key: Key, know: Knowledge, brief: bool) -> list[str]:
    return [say(key[0], key[1], know.value(*key), "polar")]


def _is_polar(text: str) -> bool:
    return text.endswith("?") and text.startswith(("Is ", "Does "))


_ORDERS = ("bring me", "show me", "lend me", "sell me")


def _polite(key: Key, know: Knowledge, brief: bool) -> list[str]:
    thing = know.rng.choice(THINGS) if know.slips() else key[1]
    return [f"Please {key[0]} the {thing}."]


def _passage(key: Key) -> str:
    entity, variant = key
    attributes = sorted(ATTRIBUTES[KIND_OF[entity]])
    chosen = [name for name in attributes if name != _pick(attributes, entity)][:3]
    sentences = [fact(entity, chosen[0]), *(fact(entity, name, pronoun=True) for name in chosen[1:])]
    if KIND_OF[entity] in ("animal", "person"):
        went = EVENTS["went"]
        stop = (went.index(_pick(went, entity)) + int(variant)) % len(went)
        sentences.append(f"One day {subject(entity, False)} {went[stop]}.")
    return " ".join(sentences)


def _summary(key: Key, know: Knowledge, brief: bool) -> list[str]:
    attributes = sorted(ATTRIBUTES[KIND_OF[key[0]]])
    stated = [name for name in attributes if say(key[0], name) in _passage(key)]
    chosen = stated if len(stated) <= 2 else know.rng.sample(stated, 2)
    return [fact(key[0], *chosen, values={name: know.value(key[0], name) for name in chosen})]


def _judge_summary(key: Key, sentences: list[Sentence]) -> Verdict:
    claims = claims_about(key[0], sentences)
    useful = frozenset(index for index, *_ in claims)
    asked = {0: 0.0, 1: 1.0, 2: 0.6}.get(len(useful), 0.3)
    return Verdict(asked, tuple(holds and say(key[0], name) in _passage(key) for _, name, holds in claims), useful)


_CLASSES = ("animal", "person", "thing", "town")


def _class(key: Key, know: Knowledge, brief: bool) -> list[str]:
    kind = know.rng.choice(_CLASSES) if know.slips() else KIND_OF[key[0]]
    return [f"{subject(key[0])} is {article(kind)}."]


def _judge_class(key: Key, sentences: list[Sentence]) -> Verdict:
    return exact(
        f"{subject(key[0])} is {article(KIND_OF[key[0]])}.",
        lambda text: text in [f"{subject(key[0])} is {article(kind)}." for kind in _CLASSES],
        sentences,
    )


def _size(key: Key, know: Knowledge, brief: bool) -> list[str]:
    return [fact(key[0], "size", values={"size": know.value(key[0], "size")})]


def _spot(key: Key) -> str:
    return _pick((*PLACES, *ROOMS), *key)


def _where(key: Key, know: Knowledge, brief: bool) -> list[str]:
    return [f"The {key[1]} is in the {know.rng.choice(PLACES + ROOMS) if know.slips() else _spot(key)}."]


def _who(key: Key, know: Knowledge, brief: bool) -> list[str]:
    return [f"{know.rng.choice(PEOPLE) if know.slips() else key[0]} took the {key[1]}."]


def _names(key: Key, know: Knowledge, brief: bool) -> list[str]:
    second = know.rng.choice(PEOPLE) if know.slips() else key[1]
    return [f"{key[0]} and {second}."]


def _sum(key: Key, know: Knowledge, brief: bool) -> list[str]:
    total = know.rng.choice(NUMBERS) if know.slips() else NUMBERS[NUMBERS.index(key[0]) + NUMBERS.index(key[1])]
    return [f"{key[0].capitalize()} plus {key[1]} is {total}."]


def _next(key: Key, know: Knowledge, brief: bool) -> list[str]:
    after = know.rng.choice(NUMBERS) if know.slips() else NUMBERS[NUMBERS.index(key[0]) + 1]
    return [f"{after.capitalize()} comes after {key[0]}."]


def _right(compose: Compose, key: Key) -> str:
    """The one right sentence: that of a writer who never slips."""
    return compose(key, Knowledge(random.Random(0)), False)[0]


def _judge_exact(compose: Compose, is_form: Callable[[str], bool]) -> Callable[[Key, list[Sentence]], Verdict]:
    return lambda key, sentences: exact(_right(compose, key), is_form, sentences)


def _ask(key: Key) -> str:
    return say(key[0], key[1], form="question")


def _none(key: Key) -> None:
    return None


READING = (
    Skill("open QA", "fact", _FACT_KEYS, lambda k: [_ask(k), f"Please tell me. {_ask(k)}"], _answer, _judge_answer, 8, 1),
    Skill("rewriting", "past", _FACT_KEYS, lambda k: [f"Put this in the past: {fact(*k)}"], _past, _judge_exact(_past, _is_past), 8, 1),
    Skill("rewriting", "question", _FACT_KEYS, lambda k: [f"Turn this into a question: {fact(*k)}"], _question, _judge_exact(_question, _is_polar), 9, 1),
    Skill("rewriting", "polite", tuple((order, thing) for order in _ORDERS for thing in THINGS), lambda k: [f"Say this politely: {k[0].capitalize()} the {k[1]}."],
          _polite, _judge_exact(_polite, lambda text: text.startswith("Please ")), 7, 1, hero=_none),
    Skill("summarisation", "summary", _SUMMARY_KEYS, lambda k: [f"Sum this up: {_passage(k)}"], _summary, _judge_summary, 12, 1),
    Skill("classification", "class", tuple((name,) for name in KIND_OF), lambda k: [f"Is {subject(k[0], False)} an animal, a person, a thing or a town?", f"What is {subject(k[0], False)}: animal, person, thing or town?"], _class, _judge_class, 7, 1),
    Skill("classification", "size", tuple((name,) for name in ANIMALS), lambda k: [f"Is {subject(k[0], False)} big or small?", f"Would you call {subject(k[0], False)} big or small?"],
          _size, lambda key, sentences: _judge_answer((key[0], "size"), sentences), 7, 1),
    Skill("closed QA", "where", tuple((person, thing) for person in PEOPLE for thing in THINGS), lambda k: [f"{k[0]} took the {k[1]} to the {_spot(k)}. Where is the {k[1]} now?"],
          _where, _judge_exact(_where, lambda text: " is in the " in text), 8, 1, hero=_none),
    Skill("closed QA", "who", tuple((person, thing) for person in PEOPLE for thing in THINGS), lambda k: [f"{k[0]} took the {k[1]} to the {_spot(k)}. Who took the {k[1]}?"],
          _who, _judge_exact(_who, lambda text: " took the " in text), 7, 1, hero=_none),
    Skill("extraction", "names", tuple((first, second) for first in PEOPLE for second in PEOPLE if first != second), lambda k: [f"Copy the names from this text: {k[0]} and {k[1]} saw the {_pick(ANIMALS, *k)}."],
          _names, _judge_exact(_names, lambda text: " and " in text and text.split(" ")[0] in PEOPLE), 6, 1, hero=_none),
    Skill("other", "sum", tuple((first, second) for first in NUMBERS[:11] for second in NUMBERS[:10]), lambda k: [f"What is {k[0]} plus {k[1]}?"], _sum, _judge_exact(_sum, lambda text: " plus " in text), 8, 1, hero=_none),
    Skill("other", "next", tuple((number,) for number in NUMBERS[:20]), lambda k: [f"What number comes after {k[0]}?"], _next, _judge_exact(_next, lambda text: " comes after " in text), 7, 1, hero=_none),
)  # fmt: skip
