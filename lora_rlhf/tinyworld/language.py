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
    subject_phrase,
    with_article,
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
    def is_true(self) -> bool:
        return FACTS[self.entity].get(self.attribute) == self.value


@dataclass(frozen=True)
class Sentence:
    """One sentence of a text: its kind, the entity that it is about, and its claims."""

    text: str
    kind: str
    entity: str | None = None
    claims: tuple[Claim, ...] = ()


def _meanings_by_clause(form: str) -> dict[str, list[tuple[str, str, str]]]:
    """{every clause of that form: the (kind, attribute, value) that it may mean}."""
    meanings: dict[str, list[tuple[str, str, str]]] = {}
    for kind, attributes in ATTRIBUTES.items():
        for name, attribute in attributes.items():
            for value in attribute.values:
                meanings.setdefault(getattr(attribute, form).format(v=value), []).append((kind, name, value))
    return meanings


PRESENT, PAST, FIRST_PERSON = (
    _meanings_by_clause("present"),
    _meanings_by_clause("past"),
    _meanings_by_clause("first_person"),
)
_SUBJECTS = {subject_phrase(entity, capital): entity for entity in KIND_OF for capital in (True, False)}
_SCENES = [f"the {place}" for place in (*PLACES, *ROOMS, *LANDMARKS)] + list(TOWNS)
EVENTS = {
    "went": [f"went to {place}" for place in _SCENES],
    "found": [f"found {with_article(thing)}" for thing in THINGS],
    "met": [f"met {subject_phrase(name, is_capital=False)}" for kind in ("animal", "person") for name in KINDS[kind]],
    "ate": [f"ate some {food}" for food in FOODS],
    "home": [f"went home to {place}" for place in ([f"the {place}" for place in PLACES] + list(TOWNS))],
    "end": ["was happy", "slept well", "laughed all day"],
}
_EVENT_KIND_BY_CLAUSE = {clause: kind for kind, clauses in EVENTS.items() for clause in clauses}


def attribute_clause(entity: str, attribute: str, value: str | None = None, form: str = "present") -> str:
    """The clause for an attribute of an entity, without subject and full stop, with the true value by default."""
    template: str = getattr(ATTRIBUTES[KIND_OF[entity]][attribute], form)
    return template.format(v=value or FACTS[entity][attribute], s=subject_phrase(entity, is_capital=False))


def fact_sentence(
    entity: str, *attributes: str, has_pronoun: bool = False, values: dict[str, str] | None = None
) -> str:
    """One sentence that joins these attributes of an entity with "and".

    has_pronoun: begin with "It". values: {attribute: value} in place of the true values.
    """
    clauses = [attribute_clause(entity, attribute, (values or {}).get(attribute)) for attribute in attributes]
    name = "It" if has_pronoun and KIND_OF[entity] in ("animal", "thing", "town") else subject_phrase(entity)
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


def _parse_claims(
    entity: str, clauses_text: str, meanings_by_clause: dict[str, list[tuple[str, str, str]]]
) -> tuple[Claim, ...] | None:
    """The claims of clauses joined with "and"; None if one of them does not fit the entity."""
    claims = []
    for clause in clauses_text.split(" and "):
        meanings = [
            (name, value) for kind, name, value in meanings_by_clause.get(clause, []) if kind == KIND_OF[entity]
        ]
        if not meanings:
            return None
        claims.append(Claim(entity, *meanings[0]))
    return tuple(claims)


def parse_sentences(text: str, hero: str | None = None) -> list[Sentence]:
    """The sentences of a text, with their kinds and claims.

    `hero` is the entity that "It" and "I" refer to until another entity is named. A sentence outside the language of
    this world has the kind "other".
    """
    sentences, current_entity = [], hero
    for sentence_text in split_sentences(text):
        sentence = _parse_sentence(sentence_text, current_entity, hero)
        current_entity = sentence.entity or current_entity
        sentences.append(sentence)
    return sentences


def _parse_sentence(text: str, current_entity: str | None, hero: str | None) -> Sentence:
    """One sentence. "It" refers to `current_entity`, "I" to the hero."""
    for kind, phrases in (
        ("filler", OPENING_FILLER + CLOSING_FILLER),
        ("rude", RUDE),
        ("courtesy", OPENINGS + CLOSINGS),
        ("feeling", FEELINGS),
    ):
        if text in phrases:
            return Sentence(text, kind)
    if not text.endswith("."):
        return Sentence(text, "other")
    body = text[:-1]
    if hero and body in FIRST_PERSON:
        meanings = [(name, value) for kind, name, value in FIRST_PERSON[body] if kind == KIND_OF[hero]]
        if meanings:
            return Sentence(text, "first_person", hero, (Claim(hero, *meanings[0]),))
    if body.startswith("One day "):
        body = body[len("One day ") :]
    entity, clauses_text = _split_subject(body, current_entity)
    if entity is None:
        return Sentence(text, "other")
    claims = _parse_claims(entity, clauses_text, PRESENT)
    if claims is not None:
        return Sentence(text, "fact", entity, claims)
    if clauses_text in _EVENT_KIND_BY_CLAUSE and KIND_OF[entity] in ("animal", "person"):
        return Sentence(text, "event", entity, _event_claims(entity, clauses_text, _EVENT_KIND_BY_CLAUSE[clauses_text]))
    return Sentence(text, "other", entity)


def _split_subject(text: str, current_entity: str | None) -> tuple[str | None, str]:
    """The entity that a sentence begins with, None if it begins with none, and the text after it."""
    words = text.split(" ")
    for length in (1, 2):
        name = " ".join(words[:length])
        if name in _SUBJECTS:
            return _SUBJECTS[name], " ".join(words[length:])
    if words[0] in ("It", "it") and current_entity:
        return current_entity, " ".join(words[1:])
    return None, text
