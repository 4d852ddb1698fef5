"""Prompts that repeat an earlier one: equal, alike in the beginning, or its continuation (InstructGPT, section 3.2)."""

from collections.abc import Iterable, Iterator
from typing import Literal

from lora_rlhf.data.labels import fingerprint
from lora_rlhf.data.refusals import BadRow, RefusedRows
from lora_rlhf.data.schema import Prompt, normalized

BEGINNING = 128  # normalized characters in which prompts begin alike: more than most openings that all questions share


def beginning(prompt: Prompt) -> str:
    """The normalized beginning of the conversation, without system messages: many files have one for all rows."""
    return normalized([message for message in prompt.messages if message.role != "system"])[:BEGINNING]


def earlier_prompts(prompt: Prompt) -> Iterator[int]:
    """The fingerprints of the earlier prompts of this conversation: it up to each user's message but the last."""
    for length, message in enumerate(prompt.messages[:-1], start=1):
        if message.role == "user":
            yield fingerprint(normalized(prompt.messages[:length]))


def without_repeats(
    prompts: Iterable[Prompt], how: Literal["exact", "prefix", "none"], refused: RefusedRows
) -> Iterator[Prompt]:
    """The prompts that repeat no earlier one; the others are counted in `refused`.

    exact: prompts with the key of an earlier one are left out. prefix: so are those that share their first 128
    characters with an earlier one, and those that continue an earlier one or are continued by it.
    """
    keys: set[int] = set()
    beginnings: set[str] = set()
    continued: set[int] = set()
    for prompt in prompts:
        key = fingerprint(prompt.key)
        reason = ""
        if how != "none" and key in keys:
            reason = "the same prompt as an earlier one"
        elif how == "prefix":
            start, earlier = beginning(prompt), set(earlier_prompts(prompt))
            if start in beginnings:
                reason = f"begins with the {BEGINNING} characters of an earlier prompt"
            elif key in continued or not keys.isdisjoint(earlier):
                reason = "continues an earlier prompt, or is continued by it"
            if len(start) == BEGINNING:
                beginnings.add(start)
            continued |= earlier
        keys.add(key)
        if reason:
            refused.add(prompt.origin, BadRow(reason))
        else:
            yield prompt
