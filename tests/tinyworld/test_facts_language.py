"""The world's facts, and its sentences read back."""

import hashlib
import json
from collections import Counter

import pytest

from lora_rlhf.tinyworld.facts import (
    ATTRIBUTES,
    FACTS,
    KIND_OF,
    KINDS,
    entities_with_value,
    subject_phrase,
    with_article,
)
from lora_rlhf.tinyworld.language import (
    Claim,
    Sentence,
    attribute_clause,
    count_words,
    fact_sentence,
    parse_sentences,
    split_sentences,
)


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
    assert entities_with_value("home", "barn", "animal") == ["dog", "duck", "deer", "crow"]
    assert entities_with_value("color", "white", "thing").count("kite") == 1
    assert "kite" not in entities_with_value("color", "white", "animal")


def test_names_and_articles() -> None:
    assert [with_article(noun) for noun in ("owl", "fox", "animal", "horse")] == [
        "an owl",
        "a fox",
        "an animal",
        "a horse",
    ]
    assert [subject_phrase(name) for name in ("fox", "Anna", "Alden")] == ["The fox", "Anna", "Alden"]
    assert subject_phrase("fox", is_capital=False) == "the fox"


def test_sentences_are_those_of_the_world() -> None:
    assert fact_sentence("fox", "color", "home") == "The fox is brown and lives in the meadow."
    assert fact_sentence("fox", "food", has_pronoun=True, values={"food": "hay"}) == "It eats hay."
    assert fact_sentence("Anna", "pet", has_pronoun=True) == "Anna has a frog."
    assert attribute_clause("kite", "material", form="past") == "was made of wool"
    assert attribute_clause("Anna", "likes", form="question") == "What does Anna like?"
    assert attribute_clause("fox", "food", form="polar") == "Does the fox eat bread?"


@pytest.mark.parametrize("entity", KIND_OF)
def test_every_fact_reads_back_as_what_it_claims(entity: str) -> None:
    for name, attribute in ATTRIBUTES[KIND_OF[entity]].items():
        for value in attribute.values:
            (sentence,) = parse_sentences(fact_sentence(entity, name, values={name: value}))
            assert (sentence.kind, sentence.entity) == ("fact", entity)
            assert sentence.claims == (Claim(entity, name, value),)
            assert sentence.claims[0].is_true == (value == FACTS[entity][name])
        (spoken,) = parse_sentences(f"{attribute_clause(entity, name, form='first_person')}.", hero=entity)
        assert spoken.kind == "first_person"
        assert all(claim.is_true for claim in spoken.claims)


def test_joined_clauses_are_several_claims() -> None:
    (sentence,) = parse_sentences("The fox is red and eats bread.")
    assert sentence.claims == (Claim("fox", "color", "red"), Claim("fox", "food", "bread"))
    assert [claim.is_true for claim in sentence.claims] == [False, True]


def test_it_is_whoever_was_named_last() -> None:
    about = [
        sentence.entity for sentence in parse_sentences("It is big. The owl is small. Sure. It is red.", hero="fox")
    ]
    assert about == ["fox", "owl", None, "owl"]
    assert parse_sentences("It is big.")[0] == Sentence("It is big.", "other")


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
    assert [sentence.kind for sentence in parse_sentences(text, hero="fox")] == [kind]


def test_a_story_claims_what_it_takes_for_granted() -> None:
    story = parse_sentences("One day the fox went to the barn. It ate some hay. It went home to the meadow.")
    assert [sentence.claims for sentence in story] == [
        (),
        (Claim("fox", "food", "hay"),),
        (Claim("fox", "home", "meadow"),),
    ]
    (home,) = parse_sentences("Anna went home to Brook.")
    assert home.claims == (Claim("Anna", "town", "Brook"),)


def test_splitting_and_counting() -> None:
    assert split_sentences(" The fox is big. Is it?\nYes! no end") == ["The fox is big.", "Is it?", "Yes!", "no end"]
    assert split_sentences(" \n ") == []
    assert count_words("Don't ask, said the fox: 3 times.") == 6
    assert count_words("") == 0
