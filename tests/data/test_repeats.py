"""Prompts that say the same again are left out: which, and at which of the three settings."""

from typing import Literal

import pytest

from lora_rlhf.data.duplicates import (
    BEGINNING_CHARACTERS,
    drop_repeated_prompts,
    earlier_prompt_keys,
    normalized_beginning,
)
from lora_rlhf.data.labels import fingerprint
from lora_rlhf.data.refusals import RefusedRows
from lora_rlhf.data.schema import Message, Prompt

LONG = "x" * (BEGINNING_CHARACTERS - len("user: "))


def talk(*texts: str, system: str = "") -> Prompt:
    roles = ("user", "assistant")
    turns = [Message(roles[place % 2], text) for place, text in enumerate(texts)]
    return Prompt((*([Message("system", system)] if system else []), *turns))


def kept(how: Literal["exact", "prefix", "none"], *prompts: Prompt) -> tuple[list[int], list[str]]:
    refused = RefusedRows()
    left = list(drop_repeated_prompts(prompts, how, refused))
    return [next(n for n, one in enumerate(prompts) if one is prompt) for prompt in left], list(
        refused.reasons_by_count()
    )


def test_exact_leaves_out_what_differs_in_spelling_alone() -> None:
    prompts = [talk("Ask  me"), talk("ask me"), talk("ask me!"), talk("ask me", "no", "then?")]
    assert kept("exact", *prompts) == ([0, 2, 3], ["the same prompt as an earlier one"])
    assert kept("none", *prompts) == ([0, 1, 2, 3], [])


def test_prefix_leaves_out_what_begins_alike() -> None:
    assert kept("prefix", talk(LONG + "a"), talk(LONG + "b"), talk(LONG[:-1] + "y")) == (
        [0, 2],
        [f"begins with the {BEGINNING_CHARACTERS} characters of an earlier prompt"],
    )
    assert kept("prefix", talk(LONG[:-9]), talk(LONG[:-8]))[0] == [0, 1]  # shorter than what must be shared
    assert kept("prefix", talk("a", system=LONG), talk("b", system=LONG))[0] == [0, 1]


@pytest.mark.parametrize("shorter_first", [True, False])
def test_prefix_leaves_out_one_of_a_conversation_and_its_continuation(shorter_first: bool) -> None:
    pair = [talk("a", "b", "c"), talk("a", "b", "c", "d", "e")]
    expected = ["continues an earlier prompt, or is continued by it"]
    assert kept("prefix", *(pair if shorter_first else pair[::-1])) == ([0], expected)
    assert kept("prefix", talk("a", "b", "c"), talk("a", "other", "c"))[0] == [0, 1]


def test_what_a_conversation_went_through() -> None:
    assert list(earlier_prompt_keys(talk("a", "b", "c", "d", "e"))) == [
        fingerprint(talk("a").key),
        fingerprint(talk("a", "b", "c").key),
    ]
    assert list(earlier_prompt_keys(talk("a"))) == []
    assert normalized_beginning(talk("A  b", system="s")) == "user: a b"
