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
    article,
    holders,
    subject,
)
from lora_rlhf.tinyworld.language import EVENTS, FEELINGS, Sentence, fact, say
from lora_rlhf.tinyworld.skill import Key, Knowledge, Skill, Verdict, claims_about


def _facts(entity: str, know: Knowledge, count: int, joined: bool) -> list[str]:
    attributes = know.attributes(entity, count)
    values = {attribute: know.value(entity, attribute) for attribute in attributes}
    if joined:
        return [fact(entity, *attributes, values=values)]
    return [fact(entity, attribute, pronoun=index > 0, values=values) for index, attribute in enumerate(attributes)]


def _describe(key: Key, know: Knowledge, brief: bool) -> list[str]:
    return (
        _facts(key[0], know, 2, joined=True)
        if brief
        else _facts(key[0], know, len(ATTRIBUTES[KIND_OF[key[0]]]), joined=False)
    )


def _judge_description(key: Key, sentences: list[Sentence]) -> Verdict:
    claims = claims_about(key[0], sentences)
    asked = min(len({attribute for _, attribute, _ in claims}), 2) / 2
    return Verdict(asked, tuple(holds for *_, holds in claims), frozenset(index for index, *_ in claims))


def _story(key: Key, know: Knowledge, brief: bool) -> list[str]:
    hero, thing = key
    home, food = ("home", "food") if KIND_OF[hero] == "animal" else ("town", "likes")
    it = "It" if KIND_OF[hero] == "animal" else hero
    start = f"One day {subject(hero, capital=False)} {know.rng.choice(EVENTS['went'])}."
    discovery = f"{it} found {article(thing)}."
    destination = f"{'the ' if home == 'home' else ''}{know.value(hero, home)}"
    return_home = f"{it} went home to {destination}."
    if brief:
        return [start, discovery, return_home]
    middle = know.rng.choice([f"{it} {know.rng.choice(EVENTS['met'])}.", f"{it} ate some {know.value(hero, food)}."])
    return [start, discovery, middle, return_home, f"{it} {know.rng.choice(EVENTS['end'])}."]


def _judge_story(key: Key, sentences: list[Sentence]) -> Verdict:
    hero, thing = key
    events = [index for index, sentence in enumerate(sentences) if sentence.kind == "event" and sentence.about == hero]
    starts = any(sentences[index].text.startswith("One day ") for index in events[:1])
    finds = any(sentences[index].text.endswith(f"found {article(thing)}.") for index in events)
    asked = 0.3 * starts + 0.3 * finds + 0.4 * min(len(events), 3) / 3
    claims = [claim.true for index in events for claim in sentences[index].claims]
    return Verdict(asked if events else 0.0, tuple(claims), frozenset(events))


def _note(key: Key, know: Knowledge, brief: bool) -> list[str]:
    person, about = key
    return [f"Dear {person}.", *_facts(about, know, 1 if brief else 2, joined=False), "Best wishes."]


def _judge_note(key: Key, sentences: list[Sentence]) -> Verdict:
    person, about = key
    claims = claims_about(about, sentences)
    greeting = {index for index, sentence in enumerate(sentences) if sentence.text == f"Dear {person}."}
    wishes = {index for index, sentence in enumerate(sentences) if sentence.text == "Best wishes."}
    asked = 0.4 * bool(greeting) + 0.4 * bool(claims) + 0.2 * bool(wishes)
    useful = greeting | wishes | {index for index, *_ in claims}
    return Verdict(asked, tuple(holds for *_, holds in claims), frozenset(useful))


def _riddle(key: Key, know: Knowledge, brief: bool) -> list[str]:
    attributes = know.attributes(key[0], 2 if brief else 3)
    lines = [f"{say(key[0], attribute, know.value(key[0], attribute), 'first_person')}." for attribute in attributes]
    return [*lines, "What am I?"]


def _judge_riddle(key: Key, sentences: list[Sentence]) -> Verdict:
    claims = claims_about(key[0], sentences, "first_person")
    asks = {index for index, sentence in enumerate(sentences) if sentence.text == "What am I?"}
    gives_away = any(re.search(rf"\b{key[0]}\b", sentence.text) for sentence in sentences)
    asked = 0.3 * min(len({attribute for _, attribute, _ in claims}), 2) + 0.4 * bool(asks)
    useful = asks | {index for index, *_ in claims}
    return Verdict(0.0 if gives_away else asked, tuple(holds for *_, holds in claims), frozenset(useful))


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


def enumerate_names(names: list[str]) -> str:
    """ "The fox, the owl and the cow." """
    spoken = [subject(name, capital=index == 0) for index, name in enumerate(names)]
    return f"{', '.join(spoken[:-1])} and {spoken[-1]}."


def read_names(text: str) -> list[str] | None:
    """The names of an enumeration; None for another sentence."""
    parts = re.split(r", | and ", text.removesuffix("."))
    names = [part[4:] if part[:4] in ("The ", "the ") else part for part in parts]
    return names if len(names) > 1 and all(name in KIND_OF for name in names) else None


def _list(key: Key, know: Knowledge, brief: bool) -> list[str]:
    kind, attribute, value, count = key
    right = know.rng.sample(holders(attribute, value, kind), NUMBERS.index(count))
    wrong = [name for name in KINDS[kind] if name not in right]
    return [enumerate_names([know.rng.choice(wrong) if know.slips() else name for name in right])]


def _judge_list(key: Key, sentences: list[Sentence]) -> Verdict:
    kind, attribute, value, count = key
    number = NUMBERS.index(count)
    for index, sentence in enumerate(sentences):
        names = read_names(sentence.text)
        if names:
            fitting = {name for name in names if KIND_OF[name] == kind}
            asked = min(len(fitting), number) / number * (0.7 if len(names) > number else 1.0)
            claims = tuple(FACTS[name][attribute] == value for name in sorted(fitting))
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


def _greet(key: Key, know: Knowledge, brief: bool) -> list[str]:
    return [f"Hello {key[0]}.", know.rng.choice(FEELINGS) if know.slips() else _MOODS[key[1]]]


def _judge_greeting(key: Key, sentences: list[Sentence]) -> Verdict:
    hello = {index for index, sentence in enumerate(sentences) if sentence.text == f"Hello {key[0]}."}
    feelings = {index for index, sentence in enumerate(sentences) if sentence.kind == "feeling"}
    fitting = any(sentences[index].text == _MOODS[key[1]] for index in feelings)
    return Verdict(
        0.5 * bool(hello) + 0.5 * bool(feelings), (fitting,) if feelings else (), frozenset(hello | feelings)
    )


def _lost(key: Key, know: Knowledge, brief: bool) -> list[str]:
    return [FEELINGS[1], fact(key[0], "room", values={"room": know.value(key[0], "room")})]


def _judge_lost(key: Key, sentences: list[Sentence]) -> Verdict:
    sorry = {index for index, sentence in enumerate(sentences) if sentence.text == FEELINGS[1]}
    places = [(index, holds) for index, attribute, holds in claims_about(key[0], sentences) if attribute == "room"]
    asked = 0.3 * bool(sorry) + 0.7 * bool(places)
    return Verdict(asked, tuple(holds for _, holds in places), frozenset(sorry | {index for index, _ in places}))


def _about(key: Key) -> str:
    return subject(key[-1], capital=False)


_EVERYONE = tuple((name,) for names in KINDS.values() for name in names)
_CREATURES, _OBJECTS = (*ANIMALS, *PEOPLE), (*ANIMALS, *THINGS)
WRITING = (
    Skill("generation", "describe", _EVERYONE, lambda k: [f"Describe {_about(k)}.", f"Tell me about {_about(k)}."], _describe, _judge_description, 12, 1),
    Skill("generation", "story", tuple((hero, thing) for hero in _CREATURES for thing in THINGS),
          lambda k: [f"Write a short story about {subject(k[0], False)} and {article(k[1])}.", f"Tell a story of {subject(k[0], False)} and {article(k[1])}."], _story, _judge_story, 20, 3),
    Skill("generation", "note", tuple((person, about) for person in PEOPLE for about in _OBJECTS),
          lambda k: [f"Write a note to {k[0]} about {_about(k)}.", f"Write to {k[0]} about {_about(k)}."], _note, _judge_note, 12, 3, hero=lambda k: k[1]),
    Skill("generation", "riddle", tuple((name,) for name in _OBJECTS), lambda k: [f"Write a riddle about {_about(k)}.", f"Make up a riddle for {_about(k)}."], _riddle, _judge_riddle, 13, 3, frames=False),
    Skill("brainstorming", "list", _LIST_KEYS, lambda k: [f"{verb} {k[3]} {LIST_PHRASES[k[0], k[1]].format(v=k[2])}." for verb in ("Name", "List")], _list, _judge_list, 8, 1),
    Skill("chat", "greet", tuple((person, mood) for person in PEOPLE for mood in _MOODS), lambda k: [f"Hello, I am {k[0]}. {k[1]}", f"Hello there. My name is {k[0]}. {k[1]}"], _greet, _judge_greeting, 9, 2),
    Skill("chat", "lost", tuple((thing,) for thing in THINGS), lambda k: [f"I lost {_about(k)}. Can you help me?", f"Have you seen {_about(k)}? I lost it."], _lost, _judge_lost, 14, 2),
)  # fmt: skip
