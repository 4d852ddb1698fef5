"""The open-ended tasks: descriptions, stories, notes, riddles, lists and small talk."""

import re

from lora_rlhf.tinyworld.facts import (
    ANIMALS,
    ATTRIBUTES,
    FACTS,
    KIND_OF,
    KINDS,
    NUMBERS,
    PEOPLE,
    THINGS,
    entities_with_value,
    subject_phrase,
    with_article,
)
from lora_rlhf.tinyworld.language import EVENTS, FEELINGS, Sentence, attribute_clause, fact_sentence
from lora_rlhf.tinyworld.skill import Key, Knowledge, Skill, Verdict, claims_about

# A `_compose_` function returns the sentences of an answer, an `_assess_` function the verdict on any answer.


def _fact_sentences(entity: str, knowledge: Knowledge, count: int, is_joined: bool) -> list[str]:
    """Sentences about `count` attributes of an entity; is_joined: in one sentence."""
    attributes = knowledge.draw_attributes(entity, count)
    values = {attribute: knowledge.draw_value(entity, attribute) for attribute in attributes}
    if is_joined:
        return [fact_sentence(entity, *attributes, values=values)]
    return [
        fact_sentence(entity, attribute, has_pronoun=index > 0, values=values)
        for index, attribute in enumerate(attributes)
    ]


def _compose_description(key: Key, knowledge: Knowledge, is_brief: bool) -> list[str]:
    """Two facts in one sentence, or all facts in a sentence each."""
    (entity,) = key
    num_facts = 2 if is_brief else len(ATTRIBUTES[KIND_OF[entity]])
    return _fact_sentences(entity, knowledge, num_facts, is_joined=is_brief)


def _assess_description(key: Key, sentences: list[Sentence]) -> Verdict:
    """The verdict on a description: two different attributes do the task."""
    (entity,) = key
    claims = claims_about(entity, sentences)
    asked = min(len({attribute for _, attribute, _ in claims}), 2) / 2
    return Verdict(asked, tuple(holds for *_, holds in claims), frozenset(index for index, *_ in claims))


def _compose_story(key: Key, knowledge: Knowledge, is_brief: bool) -> list[str]:
    """Three sentences with the hero's discovery and return, or five with an event between them and an end."""
    hero, thing = key
    home, food = ("home", "food") if KIND_OF[hero] == "animal" else ("town", "likes")
    it = "It" if KIND_OF[hero] == "animal" else hero
    start = f"One day {subject_phrase(hero, is_capital=False)} {knowledge.rng.choice(EVENTS['went'])}."
    discovery = f"{it} found {with_article(thing)}."
    destination = f"{'the ' if home == 'home' else ''}{knowledge.draw_value(hero, home)}"
    return_home = f"{it} went home to {destination}."
    if is_brief:
        return [start, discovery, return_home]
    middle = knowledge.rng.choice(
        [f"{it} {knowledge.rng.choice(EVENTS['met'])}.", f"{it} ate some {knowledge.draw_value(hero, food)}."]
    )
    return [start, discovery, middle, return_home, f"{it} {knowledge.rng.choice(EVENTS['end'])}."]


def _assess_story(key: Key, sentences: list[Sentence]) -> Verdict:
    """The verdict on a story: it begins with "One day", finds the thing, and has three events."""
    hero, thing = key
    event_indices = [
        index for index, sentence in enumerate(sentences) if sentence.kind == "event" and sentence.entity == hero
    ]
    has_start = any(sentences[index].text.startswith("One day ") for index in event_indices[:1])
    has_discovery = any(sentences[index].text.endswith(f"found {with_article(thing)}.") for index in event_indices)
    asked = 0.3 * has_start + 0.3 * has_discovery + 0.4 * min(len(event_indices), 3) / 3
    claims = [claim.is_true for index in event_indices for claim in sentences[index].claims]
    return Verdict(asked if event_indices else 0.0, tuple(claims), frozenset(event_indices))


def _compose_note(key: Key, knowledge: Knowledge, is_brief: bool) -> list[str]:
    person, topic = key
    facts = _fact_sentences(topic, knowledge, 1 if is_brief else 2, is_joined=False)
    return [f"Dear {person}.", *facts, "Best wishes."]


def _assess_note(key: Key, sentences: list[Sentence]) -> Verdict:
    """The verdict on a note: a greeting, a fact about the topic, and wishes."""
    person, topic = key
    claims = claims_about(topic, sentences)
    greeting_indices = {index for index, sentence in enumerate(sentences) if sentence.text == f"Dear {person}."}
    wish_indices = {index for index, sentence in enumerate(sentences) if sentence.text == "Best wishes."}
    asked = 0.4 * bool(greeting_indices) + 0.4 * bool(claims) + 0.2 * bool(wish_indices)
    useful = greeting_indices | wish_indices | {index for index, *_ in claims}
    return Verdict(asked, tuple(holds for *_, holds in claims), frozenset(useful))


def _compose_riddle(key: Key, knowledge: Knowledge, is_brief: bool) -> list[str]:
    (entity,) = key
    attributes = knowledge.draw_attributes(entity, 2 if is_brief else 3)
    values = {attribute: knowledge.draw_value(entity, attribute) for attribute in attributes}
    clauses = [attribute_clause(entity, attribute, value, "first_person") for attribute, value in values.items()]
    return [*(f"{clause}." for clause in clauses), "What am I?"]


def _assess_riddle(key: Key, sentences: list[Sentence]) -> Verdict:
    """The verdict on a riddle: two clues and the question; it must not name the entity."""
    (entity,) = key
    claims = claims_about(entity, sentences, "first_person")
    question_indices = {index for index, sentence in enumerate(sentences) if sentence.text == "What am I?"}
    is_given_away = any(re.search(rf"\b{entity}\b", sentence.text) for sentence in sentences)
    asked = 0.3 * min(len({attribute for _, attribute, _ in claims}), 2) + 0.4 * bool(question_indices)
    useful = question_indices | {index for index, *_ in claims}
    return Verdict(0.0 if is_given_away else asked, tuple(holds for *_, holds in claims), frozenset(useful))


LIST_PHRASES = {
    ("animal", "home"): "animals that live in the {v}",
    ("animal", "food"): "animals that eat {v}",
    ("animal", "color"): "animals that are {v}",
    ("thing", "room"): "things that are kept in the {v}",
    ("thing", "material"): "things that are made of {v}",
    ("thing", "color"): "things that are {v}",
    ("person", "town"): "people who live in {v}",
    ("person", "likes"): "people who like {v}",
}
_LIST_KEYS = tuple(
    (kind, attribute, value, count)
    for kind, attribute in LIST_PHRASES
    for value in ATTRIBUTES[kind][attribute].values
    for count in ("two", "three")
)


def enumeration_sentence(names: list[str]) -> str:
    """One sentence with all names, such as "The fox, the owl and the cow" with a full stop."""
    phrases = [subject_phrase(name, is_capital=index == 0) for index, name in enumerate(names)]
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}."


def parse_enumeration(text: str) -> list[str] | None:
    """The names of an enumeration; None for another sentence."""
    parts = re.split(r", | and ", text.removesuffix("."))
    names = [part[4:] if part[:4] in ("The ", "the ") else part for part in parts]
    return names if len(names) > 1 and all(name in KIND_OF for name in names) else None


def _compose_list(key: Key, knowledge: Knowledge, is_brief: bool) -> list[str]:
    kind, attribute, value, count = key
    right = knowledge.rng.sample(entities_with_value(attribute, value, kind), NUMBERS.index(count))
    wrong = [name for name in KINDS[kind] if name not in right]
    return [enumeration_sentence([knowledge.draw_answer(name, wrong) for name in right])]


def _assess_list(key: Key, sentences: list[Sentence]) -> Verdict:
    """The verdict on the first enumeration: so many entities of the kind, all with the value."""
    kind, attribute, value, count = key
    count_asked = NUMBERS.index(count)
    for index, sentence in enumerate(sentences):
        names = parse_enumeration(sentence.text)
        if names:
            names_of_kind = {name for name in names if KIND_OF[name] == kind}
            asked = min(len(names_of_kind), count_asked) / count_asked * (0.7 if len(names) > count_asked else 1.0)
            claims = tuple(FACTS[name][attribute] == value for name in sorted(names_of_kind))
            return Verdict(asked, claims, frozenset({index}))
    return Verdict(0.0)


_MOODS = {
    "I am happy today.": FEELINGS[0],
    "I won a prize.": FEELINGS[0],
    "I feel sad today.": FEELINGS[1],
    "I lost my way.": FEELINGS[1],
    "I am very tired.": FEELINGS[2],
    "I worked all night.": FEELINGS[2],
}


def _compose_greeting(key: Key, knowledge: Knowledge, is_brief: bool) -> list[str]:
    person, mood = key
    return [f"Hello {person}.", knowledge.draw_answer(_MOODS[mood], FEELINGS)]


def _assess_greeting(key: Key, sentences: list[Sentence]) -> Verdict:
    """The verdict on small talk: a greeting by name, and the feeling that fits."""
    person, mood = key
    greeting_indices = {index for index, sentence in enumerate(sentences) if sentence.text == f"Hello {person}."}
    feeling_indices = {index for index, sentence in enumerate(sentences) if sentence.kind == "feeling"}
    is_fitting = any(sentences[index].text == _MOODS[mood] for index in feeling_indices)
    return Verdict(
        0.5 * bool(greeting_indices) + 0.5 * bool(feeling_indices),
        (is_fitting,) if feeling_indices else (),
        frozenset(greeting_indices | feeling_indices),
    )


def _compose_lost_reply(key: Key, knowledge: Knowledge, is_brief: bool) -> list[str]:
    (thing,) = key
    return [FEELINGS[1], fact_sentence(thing, "room", values={"room": knowledge.draw_value(thing, "room")})]


def _assess_lost_reply(key: Key, sentences: list[Sentence]) -> Verdict:
    """The verdict on the reply to a loss: sympathy, and the room of the thing."""
    sorry_indices = {index for index, sentence in enumerate(sentences) if sentence.text == FEELINGS[1]}
    (thing,) = key
    place_claims = [(index, holds) for index, name, holds in claims_about(thing, sentences) if name == "room"]
    asked = 0.3 * bool(sorry_indices) + 0.7 * bool(place_claims)
    useful = sorry_indices | {index for index, _ in place_claims}
    return Verdict(asked, tuple(holds for _, holds in place_claims), frozenset(useful))


def _topic_phrase(key: Key) -> str:
    """The entity that the prompt is about: the last part of the key."""
    return subject_phrase(key[-1], is_capital=False)


_EVERYONE = tuple((name,) for names in KINDS.values() for name in names)
_CREATURES, _OBJECTS = (*ANIMALS, *PEOPLE), (*ANIMALS, *THINGS)
WRITING = (
    Skill("generation", "describe", _EVERYONE, lambda k: [f"Describe {_topic_phrase(k)}.", f"Tell me about {_topic_phrase(k)}."], _compose_description, _assess_description, 12, 1),
    Skill("generation", "story", tuple((hero, thing) for hero in _CREATURES for thing in THINGS),
          lambda k: [f"Write a short story about {subject_phrase(k[0], False)} and {with_article(k[1])}.", f"Tell a story of {subject_phrase(k[0], False)} and {with_article(k[1])}."], _compose_story, _assess_story, 20, 3),
    Skill("generation", "note", tuple((person, about) for person in PEOPLE for about in _OBJECTS),
          lambda k: [f"Write a note to {k[0]} about {_topic_phrase(k)}.", f"Write to {k[0]} about {_topic_phrase(k)}."], _compose_note, _assess_note, 12, 3, hero=lambda k: k[1]),
    Skill("generation", "riddle", tuple((name,) for name in _OBJECTS), lambda k: [f"Write a riddle about {_topic_phrase(k)}.", f"Make up a riddle for {_topic_phrase(k)}."], _compose_riddle, _assess_riddle, 13, 3, can_be_framed=False),
    Skill("brainstorming", "list", _LIST_KEYS, lambda k: [f"{verb} {k[3]} {LIST_PHRASES[k[0], k[1]].format(v=k[2])}." for verb in ("Name", "List")], _compose_list, _assess_list, 8, 1),
    Skill("chat", "greet", tuple((person, mood) for person in PEOPLE for mood in _MOODS), lambda k: [f"Hello, I am {k[0]}. {k[1]}", f"Hello there. My name is {k[0]}. {k[1]}"], _compose_greeting, _assess_greeting, 9, 2),
    Skill("chat", "lost", tuple((thing,) for thing in THINGS), lambda k: [f"I lost {_topic_phrase(k)}. Can you help me?", f"Have you seen {_topic_phrase(k)}? I lost it."], _compose_lost_reply, _assess_lost_reply, 14, 2),
)  # fmt: skip
