"""The facts of the tiny world: its entities, and one value for each of their attributes."""

import random
from collections import defaultdict
from dataclasses import dataclass

ANIMALS = (
    "cat dog cow horse sheep pig hen duck goose goat fox owl bear wolf frog bee mouse rabbit deer crow snail turtle mole crab"
).split()
THINGS = (
    "kite lamp drum boat cart ball hat coat cup bell book chair box clock rope key pot flute broom sled mirror ladder basket wheel"
).split()
PEOPLE = (
    "Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Karl Lena Max Nora Oscar Paula Rosa Simon Tilda Ulrich Vera Walter Yara Zeno"
).split()
TOWNS = "Alden Brook Corwen Dunmore Elmton Farley".split()

COLORS = "red blue green brown black white".split()
PLACES = "barn forest cave meadow pond mill".split()
FOODS = "hay corn bread apples berries honey".split()
SIZES = "big small".split()
MATERIALS = "wood iron glass wool clay paper".split()
ROOMS = "kitchen cellar attic hall shed tower".split()
JOBS = "baker farmer miller teacher doctor tailor".split()
GOODS = "cheese lace salt silver tea wine".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday".split()
LANDMARKS = "river hill lake coast valley bridge".split()
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty"
).split()

KINDS = {"animal": ANIMALS, "thing": THINGS, "person": PEOPLE, "town": TOWNS}
KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}


def with_article(noun: str) -> str:
    """The noun with its indefinite article: "an owl", "a fox"."""
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"


@dataclass(frozen=True)
class Attribute:
    """The sentences about one attribute. `{s}` is the subject, `{v}` the value; clauses leave the subject out."""

    values: tuple[str, ...]
    present: str
    past: str
    first_person: str
    question: str
    polar: str


def _make_attribute(
    values: list[str], present: str, past: str, first_person: str, question: str, polar: str
) -> Attribute:
    return Attribute(tuple(values), present, past, first_person, question, polar)


_PET = [with_article(animal) for animal in ANIMALS]
_COLOR = _make_attribute(COLORS, "is {v}", "was {v}", "I am {v}", "What color is {s}?", "Is {s} {v}?")
ATTRIBUTES: dict[str, dict[str, Attribute]] = {
    "animal": {
        "color": _COLOR,
        "home": _make_attribute(PLACES, "lives in the {v}", "lived in the {v}", "I live in the {v}", "Where does {s} live?", "Does {s} live in the {v}?"),
        "food": _make_attribute(FOODS, "eats {v}", "ate {v}", "I eat {v}", "What does {s} eat?", "Does {s} eat {v}?"),
        "size": _make_attribute(SIZES, "is {v}", "was {v}", "I am {v}", "How big is {s}?", "Is {s} {v}?"),
    },
    "thing": {
        "color": _COLOR,
        "material": _make_attribute(MATERIALS, "is made of {v}", "was made of {v}", "I am made of {v}", "What is {s} made of?", "Is {s} made of {v}?"),
        "room": _make_attribute(ROOMS, "is kept in the {v}", "was kept in the {v}", "I am kept in the {v}", "Where is {s} kept?", "Is {s} kept in the {v}?"),
        "owner": _make_attribute(PEOPLE, "belongs to {v}", "belonged to {v}", "I belong to {v}", "Who owns {s}?", "Does {s} belong to {v}?"),
    },
    "person": {
        "job": _make_attribute(JOBS, "is a {v}", "was a {v}", "I am a {v}", "What is the job of {s}?", "Is {s} a {v}?"),
        "town": _make_attribute(TOWNS, "lives in {v}", "lived in {v}", "I live in {v}", "Where does {s} live?", "Does {s} live in {v}?"),
        "pet": _make_attribute(_PET, "has {v}", "had {v}", "I have {v}", "What pet does {s} have?", "Does {s} have {v}?"),
        "likes": _make_attribute(FOODS, "likes {v}", "liked {v}", "I like {v}", "What does {s} like?", "Does {s} like {v}?"),
    },
    "town": {
        "good": _make_attribute(GOODS, "is known for {v}", "was known for {v}", "I am known for {v}", "What is {s} known for?", "Is {s} known for {v}?"),
        "day": _make_attribute(DAYS, "has a market on {v}", "had a market on {v}", "I have a market on {v}", "When does {s} have a market?", "Does {s} have a market on {v}?"),
        "landmark": _make_attribute(LANDMARKS, "lies by the {v}", "lay by the {v}", "I lie by the {v}", "Where does {s} lie?", "Does {s} lie by the {v}?"),
    },
}  # fmt: skip


def _assign_facts() -> dict[str, dict[str, str]]:
    """Draws the value of each attribute; all values are equally frequent, so that none is a good guess."""
    rng = random.Random(20220304)
    facts: dict[str, dict[str, str]] = defaultdict(dict)
    for kind, names in KINDS.items():
        for name, attribute in ATTRIBUTES[kind].items():
            values = (list(attribute.values) * len(names))[: max(len(names), len(attribute.values))]
            values = values[: len(names)]
            rng.shuffle(values)
            for entity, value in zip(names, values, strict=True):
                facts[entity][name] = value
    return dict(facts)


FACTS = _assign_facts()


def entities_with_value(attribute: str, value: str, kind: str) -> list[str]:
    """Every entity of that kind whose attribute has that value."""
    return [name for name in KINDS[kind] if FACTS[name].get(attribute) == value]


def subject_phrase(entity: str, is_capital: bool = True) -> str:
    """The entity's name in a sentence: "The fox" or "the fox"; people and towns without an article."""
    return entity if KIND_OF[entity] in ("person", "town") else f"{'The' if is_capital else 'the'} {entity}"
