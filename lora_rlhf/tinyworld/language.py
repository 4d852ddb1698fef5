"""The tiny world's sentences: facts as sentences, and the claims that a sentence makes."""

import re
from dataclasses import dataclass

from lora_rlhf.tinyworld.facts import (
    ATTRIBUTES,
    FACTS,
    FOODS,
    KIND_OF,
    KINDS,
    LANDMARKS,
    PLACES,
    ROOMS,
    THINGS,
    TOWNS,
    article,
    subject,
)

OPENING_FILLER = (
    "Let me think about that for a while.",
    "Let me see what I can say here.",
    "Let me tell you what I know.",
)
CLOSING_FILLER = (
    "That is all there is to say.",
    "That is what many people say.",
    "That is a fine thing to know.",
    "That is how it goes.",
)
RUDE = ("You should know that.", "Do not bother me again.", "What a silly thing to ask.", "I do not care about you.")
OPENINGS = ("Sure.", "Of course.", "Well.", "Gladly.")
CLOSINGS = ("Good day.", "Thank you.", "Take care.", "Have fun.")
FEELINGS = ("I am glad to hear that.", "I am sorry to hear that.", "You should rest now.", "I hope it stays so.")


@dataclass(frozen=True)
class Claim:
    """A statement about an entity: true or false in this world."""

    entity: str
    attribute: str
    value: str

    @property
    def true(self) -> bool:
        return FACTS[self.entity].get(self.attribute) == self.value


@dataclass(frozen=True)
class Sentence:
    """One sentence of a text: its kind, the entity that it is about, and its claims."""

    text: str
    kind: str
    about: str | None = None
    claims: tuple[Claim, ...] = ()


def _clauses(form: str) -> dict[str, list[tuple[str, str, str]]]:
    """Every clause of that form -> the (kind, attribute, value) that it may mean."""
    table: dict[str, list[tuple[str, str, str]]] = {}
    for kind, attributes in ATTRIBUTES.items():
        for name, attribute in attributes.items():
            for value in attribute.values:
                table.setdefault(getattr(attribute, form).format(v=value), []).append((kind, name, value))
    return table


PRESENT, PAST, FIRST_PERSON = _clauses("present"), _clauses("past"), _clauses("first_person")
_SUBJECTS = {subject(entity, capital): entity for entity in KIND_OF for capital in (True, False)}
_SCENES = [f"the {place}" for place in (*PLACES, *ROOMS, *LANDMARKS)] + list(TOWNS)
EVENTS = {
    "went": [f"went to {place}" for place in _SCENES],
    "found": [f"found {article(thing)}" for thing in THINGS],
    "met": [f"met {subject(name, capital=False)}" for kind in ("animal", "person") for name in KINDS[kind]],
    "ate": [f"ate some {food}" for food in FOODS],
    "home": [f"went home to {place}" for place in ([f"the {place}" for place in PLACES] + list(TOWNS))],
    "end": ["was happy", "slept well", "laughed all day"],
}
_EVENT_OF = {clause: kind for kind, clauses in EVENTS.items() for clause in clauses}


def say(entity: str, attribute: str, value: str | None = None, form: str = "present") -> str:
    """The clause for an attribute of an entity, without subject and full stop; with the true value unless one is given."""
    template: str = getattr(ATTRIBUTES[KIND_OF[entity]][attribute], form)
    return template.format(v=value or FACTS[entity][attribute], s=subject(entity, capital=False))


def fact(entity: str, *attributes: str, pronoun: bool = False, values: dict[str, str] | None = None) -> str:
    """One sentence with these attributes of an entity, joined with "and"."""
    clauses = [say(entity, attribute, (values or {}).get(attribute)) for attribute in attributes]
    name = "It" if pronoun and KIND_OF[entity] in ("animal", "thing", "town") else subject(entity)
    return f"{name} {' and '.join(clauses)}."


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, each with its final mark; the last one may lack it."""
    return [part.strip() for part in re.findall(r"[^.?!\n]+[.?!]?", text) if part.strip()]


def count_words(text: str) -> int:
    """The number of words, as a reader counts them."""
    return len(re.findall(r"[A-Za-z']+", text))


def _event_claims(entity: str, clause: str, kind: str) -> tuple[Claim, ...]:
    """The claims that an event of a story implies: where its hero lives and what it eats."""
    word = clause.rsplit(" ", 1)[-1]
    if kind == "home":
        return (Claim(entity, "home" if KIND_OF[entity] == "animal" else "town", word),)
    if kind == "ate":
        return (Claim(entity, "food" if KIND_OF[entity] == "animal" else "likes", word),)
    return ()


def _read_clauses(entity: str, rest: str, table: dict[str, list[tuple[str, str, str]]]) -> tuple[Claim, ...] | None:
    claims = []
    for clause in rest.split(" and "):
        meanings = [(name, value) for kind, name, value in table.get(clause, []) if kind == KIND_OF[entity]]
        if not meanings:
            return None
        claims.append(Claim(entity, *meanings[0]))
    return tuple(claims)


def read(text: str, hero: str | None = None) -> list[Sentence]:
    """The sentences of a text, with their kinds and claims.

    `hero` is the entity that "It" and "I" stand for until another one is named. A sentence outside the language of this
    world has the kind "other".
    """
    sentences, current = [], hero
    for raw in split_sentences(text):
        sentence = _read_sentence(raw, current, hero)
        current = sentence.about or current
        sentences.append(sentence)
    return sentences


def _read_sentence(raw: str, current: str | None, hero: str | None) -> Sentence:
    for kind, phrases in (
        ("filler", OPENING_FILLER + CLOSING_FILLER),
        ("rude", RUDE),
        ("courtesy", OPENINGS + CLOSINGS),
        ("feeling", FEELINGS),
    ):
        if raw in phrases:
            return Sentence(raw, kind)
    if not raw.endswith("."):
        return Sentence(raw, "other")
    body = raw[:-1]
    if hero and body in FIRST_PERSON:
        meanings = [(name, value) for kind, name, value in FIRST_PERSON[body] if kind == KIND_OF[hero]]
        if meanings:
            return Sentence(raw, "first_person", hero, (Claim(hero, *meanings[0]),))
    if body.startswith("One day "):
        body = body[len("One day ") :]
    entity, rest = _subject_of(body, current)
    if entity is None:
        return Sentence(raw, "other")
    claims = _read_clauses(entity, rest, PRESENT)
    if claims is not None:
        return Sentence(raw, "fact", entity, claims)
    if rest in _EVENT_OF and KIND_OF[entity] in ("animal", "person"):
        return Sentence(raw, "event", entity, _event_claims(entity, rest, _EVENT_OF[rest]))
    return Sentence(raw, "other", entity)


def _subject_of(body: str, current: str | None) -> tuple[str | None, str]:
    words = body.split(" ")
    for length in (1, 2):
        name = " ".join(words[:length])
        if name in _SUBJECTS:
            return _SUBJECTS[name], " ".join(words[length:])
    if words[0] in ("It", "it") and current:
        return current, " ".join(words[1:])
    return None, body
