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
    subject_phrase,
    with_article,
)
from lora_rlhf.tinyworld.language import EVENTS, PAST, Sentence, attribute_clause, fact_sentence
from lora_rlhf.tinyworld.skill import Key, Knowledge, Skill, Verdict, assess_exact, claims_about

# A `_compose_` function returns the sentences of an answer. is_brief: as few words as possible, where there is a choice.
Compose = Callable[[Key, Knowledge, bool], list[str]]
_SUMMARY_KEYS = tuple(
    (name, str(day)) for name, kind in KIND_OF.items() for day in range(3 if kind in ("animal", "person") else 1)
)
_FACT_KEYS = tuple((name, attribute) for name, kind in KIND_OF.items() for attribute in ATTRIBUTES[kind])


def _pick_by_key(options: list[str] | tuple[str, ...], *key: str) -> str:
    """A choice that depends on the key alone, so that a prompt's text can be made from its key."""
    return options[int.from_bytes(hashlib.sha256("|".join(key).encode()).digest()[:4], "big") % len(options)]


def _compose_fact(key: Key, knowledge: Knowledge, is_brief: bool) -> list[str]:
    entity, attribute = key
    return [fact_sentence(entity, attribute, values={attribute: knowledge.draw_value(entity, attribute)})]


def one_word_answer(value: str) -> str:
    """A one-word answer: "Brown." """
    return f"{value[0].upper()}{value[1:]}."


def _assess_fact(key: Key, sentences: list[Sentence]) -> Verdict:
    """The verdict on the answer to a question: full for a sentence, 0.7 of the task for a single word."""
    entity, attribute = key
    claims = [(index, holds) for index, name, holds in claims_about(entity, sentences) if name == attribute]
    if claims:
        return Verdict(1.0, tuple(holds for _, holds in claims), frozenset(index for index, _ in claims))
    values = ATTRIBUTES[KIND_OF[entity]][attribute].values
    for index, sentence in enumerate(sentences):
        if sentence.text in map(one_word_answer, values):
            return Verdict(0.7, (sentence.text == one_word_answer(FACTS[entity][attribute]),), frozenset({index}))
    return Verdict(0.0)


def _compose_past(key: Key, knowledge: Knowledge, is_brief: bool) -> list[str]:
    entity, attribute = key
    return [f"{subject_phrase(entity)} {attribute_clause(entity, attribute, knowledge.draw_value(*key), 'past')}."]


def _is_past_sentence(text: str) -> bool:
    return any(text.endswith(f" {clause}.") for clause in PAST)


def _compose_question(key: Key, knowledge: Knowledge, is_brief: bool) -> list[str]:
    entity, attribute = key
    return [attribute_clause(entity, attribute, knowledge.draw_value(entity, attribute), "polar")]


def _is_polar_question(text: str) -> bool:
    return text.endswith("?") and text.startswith(("Is ", "Does "))


_ORDER_VERBS = ("bring me", "show me", "lend me", "sell me")


def _compose_polite_order(key: Key, knowledge: Knowledge, is_brief: bool) -> list[str]:
    order, thing = key
    return [f"Please {order} the {knowledge.draw_answer(thing, THINGS)}."]


def _passage_text(key: Key) -> str:
    """The passage that is to be summed up: three facts, and an event without a claim for people and animals."""
    entity, variant = key
    attributes = sorted(ATTRIBUTES[KIND_OF[entity]])
    stated = [name for name in attributes if name != _pick_by_key(attributes, entity)][:3]
    sentences = [fact_sentence(entity, name, has_pronoun=index > 0) for index, name in enumerate(stated)]
    if KIND_OF[entity] in ("animal", "person"):
        journeys = EVENTS["went"]
        index = (journeys.index(_pick_by_key(journeys, entity)) + int(variant)) % len(journeys)
        sentences.append(f"One day {subject_phrase(entity, False)} {journeys[index]}.")
    return " ".join(sentences)


def _compose_summary(key: Key, knowledge: Knowledge, is_brief: bool) -> list[str]:
    entity, _ = key
    attributes = sorted(ATTRIBUTES[KIND_OF[entity]])
    stated = [name for name in attributes if attribute_clause(entity, name) in _passage_text(key)]
    chosen = stated if len(stated) <= 2 else knowledge.rng.sample(stated, 2)
    return [fact_sentence(entity, *chosen, values={name: knowledge.draw_value(entity, name) for name in chosen})]


def _assess_summary(key: Key, sentences: list[Sentence]) -> Verdict:
    """The verdict on a summary: one sentence is best, and only facts of the passage count."""
    entity, _ = key
    claims = claims_about(entity, sentences)
    useful = frozenset(index for index, *_ in claims)
    asked = {0: 0.0, 1: 1.0, 2: 0.6}.get(len(useful), 0.3)
    are_true = (holds and attribute_clause(entity, name) in _passage_text(key) for _, name, holds in claims)
    return Verdict(asked, tuple(are_true), useful)


_CLASSES = ("animal", "person", "thing", "town")


def _compose_class(key: Key, knowledge: Knowledge, is_brief: bool) -> list[str]:
    (entity,) = key
    return [f"{subject_phrase(entity)} is {with_article(knowledge.draw_answer(KIND_OF[entity], _CLASSES))}."]


def _assess_class(key: Key, sentences: list[Sentence]) -> Verdict:
    """The verdict on a sentence that names the kind of an entity."""
    (entity,) = key
    answers = {kind: f"{subject_phrase(entity)} is {with_article(kind)}." for kind in _CLASSES}
    return assess_exact(answers[KIND_OF[entity]], lambda text: text in answers.values(), sentences)


def _compose_size(key: Key, knowledge: Knowledge, is_brief: bool) -> list[str]:
    (entity,) = key
    return [fact_sentence(entity, "size", values={"size": knowledge.draw_value(entity, "size")})]


def _place_of_thing(key: Key) -> str:
    """The place to which the key's person took the key's thing."""
    return _pick_by_key((*PLACES, *ROOMS), *key)


def _compose_place(key: Key, knowledge: Knowledge, is_brief: bool) -> list[str]:
    _, thing = key
    return [f"The {thing} is in the {knowledge.draw_answer(_place_of_thing(key), PLACES + ROOMS)}."]


def _compose_person(key: Key, knowledge: Knowledge, is_brief: bool) -> list[str]:
    person, thing = key
    return [f"{knowledge.draw_answer(person, PEOPLE)} took the {thing}."]


def _compose_names(key: Key, knowledge: Knowledge, is_brief: bool) -> list[str]:
    first, second = key
    return [f"{first} and {knowledge.draw_answer(second, PEOPLE)}."]


def _compose_sum(key: Key, knowledge: Knowledge, is_brief: bool) -> list[str]:
    first, second = key
    total = NUMBERS[NUMBERS.index(first) + NUMBERS.index(second)]
    return [f"{first.capitalize()} plus {second} is {knowledge.draw_answer(total, NUMBERS)}."]


def _compose_next_number(key: Key, knowledge: Knowledge, is_brief: bool) -> list[str]:
    (number,) = key
    next_number = knowledge.draw_answer(NUMBERS[NUMBERS.index(number) + 1], NUMBERS)
    return [f"{next_number.capitalize()} comes after {number}."]


def _right_sentence(compose: Compose, key: Key) -> str:
    """The one right sentence: that of a writer who never slips."""
    return compose(key, Knowledge(random.Random(0)), False)[0]


def _make_exact_assessment(
    compose: Compose, is_form: Callable[[str], bool]
) -> Callable[[Key, list[Sentence]], Verdict]:
    return lambda key, sentences: assess_exact(_right_sentence(compose, key), is_form, sentences)


def _question_text(key: Key) -> str:
    entity, attribute = key
    return attribute_clause(entity, attribute, form="question")


def _no_hero(key: Key) -> None:
    return None


READING = (
    Skill("open QA", "fact", _FACT_KEYS, lambda k: [_question_text(k), f"Please tell me. {_question_text(k)}"], _compose_fact, _assess_fact, 8, 1),
    Skill("rewriting", "past", _FACT_KEYS, lambda k: [f"Put this in the past: {fact_sentence(*k)}"], _compose_past, _make_exact_assessment(_compose_past, _is_past_sentence), 8, 1),
    Skill("rewriting", "question", _FACT_KEYS, lambda k: [f"Turn this into a question: {fact_sentence(*k)}"], _compose_question, _make_exact_assessment(_compose_question, _is_polar_question), 9, 1),
    Skill("rewriting", "polite", tuple((order, thing) for order in _ORDER_VERBS for thing in THINGS), lambda k: [f"Say this politely: {k[0].capitalize()} the {k[1]}."],
          _compose_polite_order, _make_exact_assessment(_compose_polite_order, lambda text: text.startswith("Please ")), 7, 1, hero=_no_hero),
    Skill("summarisation", "summary", _SUMMARY_KEYS, lambda k: [f"Sum this up: {_passage_text(k)}"], _compose_summary, _assess_summary, 12, 1),
    Skill("classification", "class", tuple((name,) for name in KIND_OF), lambda k: [f"Is {subject_phrase(k[0], False)} an animal, a person, a thing or a town?", f"What is {subject_phrase(k[0], False)}: animal, person, thing or town?"], _compose_class, _assess_class, 7, 1),
    Skill("classification", "size", tuple((name,) for name in ANIMALS), lambda k: [f"Is {subject_phrase(k[0], False)} big or small?", f"Would you call {subject_phrase(k[0], False)} big or small?"],
          _compose_size, lambda key, sentences: _assess_fact((key[0], "size"), sentences), 7, 1),
    Skill("closed QA", "where", tuple((person, thing) for person in PEOPLE for thing in THINGS), lambda k: [f"{k[0]} took the {k[1]} to the {_place_of_thing(k)}. Where is the {k[1]} now?"],
          _compose_place, _make_exact_assessment(_compose_place, lambda text: " is in the " in text), 8, 1, hero=_no_hero),
    Skill("closed QA", "who", tuple((person, thing) for person in PEOPLE for thing in THINGS), lambda k: [f"{k[0]} took the {k[1]} to the {_place_of_thing(k)}. Who took the {k[1]}?"],
          _compose_person, _make_exact_assessment(_compose_person, lambda text: " took the " in text), 7, 1, hero=_no_hero),
    Skill("extraction", "names", tuple((first, second) for first in PEOPLE for second in PEOPLE if first != second), lambda k: [f"Copy the names from this text: {k[0]} and {k[1]} saw the {_pick_by_key(ANIMALS, *k)}."],
          _compose_names, _make_exact_assessment(_compose_names, lambda text: " and " in text and text.split(" ")[0] in PEOPLE), 6, 1, hero=_no_hero),
    Skill("other", "sum", tuple((first, second) for first in NUMBERS[:11] for second in NUMBERS[:10]), lambda k: [f"What is {k[0]} plus {k[1]}?"], _compose_sum, _make_exact_assessment(_compose_sum, lambda text: " plus " in text), 8, 1, hero=_no_hero),
    Skill("other", "next", tuple((number,) for number in NUMBERS[:20]), lambda k: [f"What number comes after {k[0]}?"], _compose_next_number, _make_exact_assessment(_compose_next_number, lambda text: " comes after " in text), 7, 1, hero=_no_hero),
)  # fmt: skip
