"""The world's facts, and its sentences read back."""

import hashlib
import json
from collections import Counter

import pytest

from lora_rlhf.tinyworld.facts import ATTRIBUTES, FACTS, KIND_OF, KINDS, article, holders, subject
from lora_rlhf.tinyworld.language import Claim, Sentence, count_words, fact, read, say, split_sentences


def test_the_facts_are_those_that_the_shipped_base_was_trained_on() -> None:
    assert FACTS["fox"] == {"color": "brown", "home": "meadow", "food": "bread", "size": "big"}
    assert FACTS["kite"] == {"color": "white", "material": "wool", "room": "tower", "owner": "Emma"}
    assert FACTS["Anna"] == {"job": "tailor", "town": "Dunmore", "pet": "a frog", "likes": "hay"}
    assert FACTS["Alden"] == {"good": "silver", "day": "Tuesday", "landmark": "bridge"}
    digest = hashlib.sha256(json.dumps(FACTS).encode()).hexdigest()
    assert digest == "a1773799e3334f8d245903fe40cf59d366faf1e2906c3dd2b8e914a389f8cdeb"


def test_no_value_is_commoner_than_another() -> None:
    for kind, attributes in ATTRIBUTES.items():
        for attribute in attributes:
            counts = Counter(FACTS[name][attribute] for name in KINDS[kind])
            assert max(counts.values()) == min(counts.values()), (kind, attribute)


def test_holders() -> None:
    assert holders("home", "barn", "animal") == ["dog", "duck", "deer", "crow"]
    assert holders("color", "white", "thing").count("kite") == 1
    assert "kite" not in holders("color", "white", "animal")


def test_names_and_articles() -> None:
    assert [article(noun) for noun in ("owl", "fox", "animal", "horse")] == ["an owl", "a fox", "an animal", "a horse"]
    assert [subject(name) for name in ("fox", "Anna", "Alden")] == ["The fox", "Anna", "Alden"]
    assert subject("fox", capital=False) == "the fox"


def test_sentences_are_those_of_the_world() -> None:
    assert fact("fox", "color", "home") == "The fox is brown and lives in the meadow."
    assert fact("fox", "food", pronoun=True, values={"food": "hay"}) == "It eats hay."
    assert fact("Anna", "pet", pronoun=True) == "Anna has a frog."
    assert say("kite", "material", form="past") == "was made of wool"
    assert say("Anna", "likes", form="question") == "What does Anna like?"
    assert say("fox", "food", form="polar") == "Does the fox eat bread?"


@pytest.mark.parametrize("entity", KIND_OF)
def test_every_fact_reads_back_as_what_it_claims(entity: str) -> None:
    for name, attribute in ATTRIBUTES[KIND_OF[entity]].items():
        for value in attribute.values:
            (sentence,) = read(fact(entity, name, values={name: value}))
            assert (sentence.kind, sentence.about) == ("fact", entity)
            assert sentence.claims == (Claim(entity, name, value),)
            assert sentence.claims[0].true == (value == FACTS[entity][name])
        (spoken,) = read(f"{say(entity, name, form='first_person')}.", hero=entity)
        assert spoken.kind == "first_person"
        assert all(claim.true for claim in spoken.claims)


def test_joined_clauses_are_several_claims() -> None:
    (sentence,) = read("The fox is red and eats bread.")
    assert sentence.claims == (Claim("fox", "color", "red"), Claim("fox", "food", "bread"))
    assert [claim.true for claim in sentence.claims] == [False, True]


def test_it_is_whoever_was_named_last() -> None:
    about = [sentence.about for sentence in read("It is big. The owl is small. Sure. It is red.", hero="fox")]
    assert about == ["fox", "owl", None, "owl"]
    assert read("It is big.")[0] == Sentence("It is big.", "other")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("That is how it goes.", "filler"),
        ("Let me see what I can say here.", "filler"),
        ("What a silly thing to ask.", "rude"),
        ("Of course.", "courtesy"),
        ("Good day.", "courtesy"),
        ("You should rest now.", "feeling"),
        ("One day the fox went to the barn.", "event"),
        ("The fox found a lamp.", "event"),
        ("The fox lives in the meadow.", "fact"),
        ("The fox lives in the meadow", "other"),  # no full stop
        ("The fox lives in the sky.", "other"),
        ("The fox is made of wool.", "other"),  # only things are
        ("The unicorn is big.", "other"),
        ("xq zzkp.", "other"),
    ],
)
def test_kinds_of_sentences(text: str, kind: str) -> None:
    assert [sentence.kind for sentence in read(text, hero="fox")] == [kind]


def test_a_story_claims_what_it_takes_for_granted() -> None:
    story = read("One day the fox went to the barn. It ate some hay. It went home to the meadow.")
    assert [sentence.claims for sentence in story] == [
        (),
        (Claim("fox", "food", "hay"),),
        (Claim("fox", "home", "meadow"),),
    ]
    (home,) = read("Anna went home to Brook.")
    assert home.claims == (Claim("Anna", "town", "Brook"),)


def test_splitting_and_counting() -> None:
    assert split_sentences(" The fox is big. Is it?\nYes! no end") == ["The fox is big.", "Is it?", "Yes!", "no end"]
    assert split_sentences(" \n ") == []
    assert count_words("Don't ask, said the fox: 3 times.") == 6
    assert count_words("") == 0
