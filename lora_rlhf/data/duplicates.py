"""Prompts that repeat an earlier one: equal, alike in the beginning, or its continuation (InstructGPT, section 3.2)."""

from collections.abc import Iterable, Iterator
from typing import Literal

from lora_rlhf.data.labels import fingerprint
from lora_rlhf.data.refusals import BadRow, RefusedRows
from lora_rlhf.data.schema import Prompt, normalize_messages

# normalized characters in which two prompts begin alike: more than most openings that all questions share
BEGINNING_CHARACTERS = 128


def normalized_beginning(prompt: Prompt) -> str:
    """The beginning of the normalized conversation without system messages: many files have one for all rows."""
    messages = [message for message in prompt.messages if message.role != "system"]
    return normalize_messages(messages)[:BEGINNING_CHARACTERS]


def earlier_prompt_keys(prompt: Prompt) -> Iterator[int]:
    """Fingerprints of the conversation up to each user's message but the last: the prompts that it continues."""
    for length, message in enumerate(prompt.messages[:-1], start=1):
        if message.role == "user":
            yield fingerprint(normalize_messages(prompt.messages[:length]))


def drop_repeated_prompts(
    prompts: Iterable[Prompt], how: Literal["exact", "prefix", "none"], refused: RefusedRows
) -> Iterator[Prompt]:
    """Yields the prompts that repeat no earlier one; the others are counted in `refused`.

    how: "exact" leaves out prompts with the key of an earlier one. "prefix" also leaves out prompts that share their
    first 128 characters with an earlier one, and prompts that continue an earlier one or are continued by it.
    """
    keys: set[int] = set()
    beginnings: set[str] = set()
    continued_keys: set[int] = set()
    for prompt in prompts:
        key = fingerprint(prompt.key)
        reason = ""
        if how != "none" and key in keys:
            reason = "the same prompt as an earlier one"
        elif how == "prefix":
            beginning, earlier_keys = normalized_beginning(prompt), set(earlier_prompt_keys(prompt))
            if beginning in beginnings:
                reason = f"begins with the {BEGINNING_CHARACTERS} characters of an earlier prompt"
            elif key in continued_keys or not keys.isdisjoint(earlier_keys):
                reason = "continues an earlier prompt, or is continued by it"
            if len(beginning) == BEGINNING_CHARACTERS:
                beginnings.add(beginning)
            continued_keys |= earlier_keys
        keys.add(key)
        if reason:
            refused.add(prompt.origin, BadRow(reason))
        else:
            yield prompt
