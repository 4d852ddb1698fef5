"""Records are checked when they are made; keys and splits do not depend on form or order."""

# mypy: disable-error-code="arg-type"
# Values of a wrong type are what is tested here.

import hashlib
import random

import pytest

from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking, Text, choose_split, fraction_between
from lora_rlhf.system.errors import UserError

PROMPT = Prompt.of("What is it?")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Message("narrator", "x"), "role"),
        (lambda: Message("user", None), "not text"),
        (lambda: Message("user", "\ud800"), "half a character"),
        (lambda: Prompt(()), "empty"),
        (lambda: Prompt.of(" \n"), "empty"),
        (lambda: Prompt((Message("user", "a"), Message("assistant", "b"))), "does not end with a user"),
        (lambda: Demonstration(PROMPT, "  "), "response is empty"),
        (lambda: Demonstration(PROMPT, 3), "not text"),
        (lambda: Ranking(PROMPT, ("a",), (1,)), "at least 2"),
        (lambda: Ranking(PROMPT, "ab", (1, 2)), "not a list"),
        (lambda: Ranking(PROMPT, ("a", "b"), 12), "not a list"),
        (lambda: Ranking(PROMPT, ("a", "b"), (1, 2, 3)), "differ in number"),
        (lambda: Ranking(PROMPT, ("a", "b"), (0, 1)), "whole number"),
        (lambda: Ranking(PROMPT, ("a", "b"), (1, 1.5)), "whole number"),
        (lambda: Ranking(PROMPT, ("a", "b"), (1, float("nan"))), "whole number"),
        (lambda: Ranking(PROMPT, ("a", "b"), (1, float("inf"))), "whole number"),
        (lambda: Ranking(PROMPT, ("a", "b"), (1, True)), "whole number"),
        (lambda: Ranking(PROMPT, ("a", "b"), ("1", "2")), r"whole number .*\(got '1'\)"),
        (lambda: Ranking(PROMPT, ("a", "b"), (1, None)), r"whole number .*\(got null or NaN\)"),
        (lambda: Ranking(PROMPT, ("a", ""), (1, 2)), r"a response of the ranking is empty \(response 2 of 2\)"),
        (lambda: Ranking(PROMPT, (" \n", "a"), (1, 1)), r"a response of the ranking is empty \(response 1 of 2\)"),
        (lambda: Ranking(PROMPT, ("x", "x"), (1, 2)), r"the same response has different ranks \(1 and 2: 'x'\)"),
        (lambda: Ranking(PROMPT, ("a", "x", " x"), (1, 2, 3)), r"different ranks \(2 and 3: 'x'\)"),
        (lambda: Text(""), "empty"),
    ],
)
def test_bad_records_are_refused_with_a_reason(make, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        make()


def test_ranks_become_whole_and_ties_and_repeated_responses_of_one_rank_are_allowed() -> None:
    ranking = Ranking(PROMPT, ["a", "c ", "c"], [1.0, 2, 2])
    assert ranking.ranks == (1, 2, 2)
    assert all(type(rank) is int for rank in ranking.ranks)
    assert ranking.responses == ("a", "c ", "c")


def test_key_ignores_case_space_and_unicode_form_but_not_roles() -> None:
    assert Prompt.of("Caf\u00e9  au\nLait").key == Prompt.of("cafe\u0301 AU lait ").key
    assert (
        Prompt.of(
            "b",
        ).key
        != Prompt((Message("system", "a"), Message("user", "b"))).key
    )
    assert Prompt.of("\uff21\ufb01").key == Prompt.of("afi").key
    assert Prompt.of("x").key == Prompt((Message("user", "x"),), meta={"a": 1}, origin="f:1").key


def test_a_conversation_and_its_continuations_open_alike() -> None:
    system, ask, answer = Message("system", "S"), Message("user", "A"), Message("assistant", "b")
    assert Prompt((ask,)).opening == Prompt((ask,)).key == "user: a"
    assert Prompt((ask, answer, Message("user", "c"))).opening == "user: a"
    assert Prompt((system, ask, answer, Message("user", "c"))).opening == "system: s user: a"


def test_records_are_hashable_in_spite_of_meta() -> None:
    assert len({Prompt((Message("user", "x"),), meta={"a": [1]}), Prompt.of("y")}) == 2


def test_split_is_the_hash_of_the_key_and_nothing_else() -> None:
    keys = [Prompt.of(f"question {number}").key for number in range(2000)]
    expected = {
        key: "validation" if int(hashlib.sha256(key.encode()).hexdigest()[:16], 16) / 2**64 < 0.1 else "train"
        for key in keys
    }
    shuffled = random.Random(0).sample(keys, len(keys))
    assert {key: choose_split(key, 0.1) for key in shuffled} == expected
    share = sum(split == "validation" for split in expected.values()) / len(keys)
    assert abs(share - 0.1) < 0.03
    # pinned (sha256sum says 8a, a2, 4b, ca): a split that changes leaks validation prompts
    assert [choose_split(key, 0.5) for key in ("user: a", "user: b", "user: c", "user: d")] == [
        "train",
        "train",
        "validation",
        "train",
    ]


@pytest.mark.parametrize(
    ("nearest", "farthest", "expected"),
    [(0.281, 0.9, 0.29), (0.29, 0.9, 0.3), (0.29, 0.3, 0.3), (0.281, 0.2899, None), (0.5, 0.5, None), (0.99, 1, None)],
)
def test_the_fraction_that_divides_two_prompts(nearest: float, farthest: float, expected: float | None) -> None:
    assert fraction_between(nearest, farthest) == expected


def test_splits_nest_and_reach_both_ends() -> None:
    keys = [f"user: {number}" for number in range(500)]
    small = {key for key in keys if choose_split(key, 0.1) == "validation"}
    large = {key for key in keys if choose_split(key, 0.3) == "validation"}
    assert small < large
    assert {choose_split(key, 0.0) for key in keys} == {"train"}
    assert {choose_split(key, 1.0) for key in keys} == {"validation"}
    with pytest.raises(UserError, match=r"between 0 and 1, got 20"):
        choose_split("x", 20)
