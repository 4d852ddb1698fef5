"""Which prompts say the same again: equal, begun alike, or one the continuation of another (InstructGPT, 3.2)."""

from collections.abc import Iterable, Iterator
from typing import Literal

from lora_rlhf.data.labels import fingerprint
from lora_rlhf.data.refusals import BadRow, RefusedRows
from lora_rlhf.data.schema import Prompt, normalized

BEGINNING = 128  # normalized characters in which prompts begin alike: more than most openings that all questions share


def beginning(prompt: Prompt) -> str:
    """How the conversation begins, normalized; a system message is often the same for all, so it does not count."""
    return normalized([message for message in prompt.messages if message.role != "system"])[:BEGINNING]


def starts(prompt: Prompt) -> Iterator[int]:
    """The fingerprints of the prompts that this conversation went through before its last message."""
    for place, message in enumerate(prompt.messages[:-1], start=1):
        if message.role == "user":
            yield fingerprint(normalized(prompt.messages[:place]))


def without_repeats(
    prompts: Iterable[Prompt], how: Literal["exact", "prefix", "none"], refused: RefusedRows
) -> Iterator[Prompt]:
    """The prompts that no earlier one makes superfluous; the others are counted in `refused`.

    exact: prompts with the key of an earlier one are left out. prefix: so are those that share their first 128
    characters with an earlier one, and those that continue an earlier one or are continued by it.
    """
    keys: set[int] = set()
    beginnings: set[str] = set()
    begun: set[int] = set()
    for prompt in prompts:
        key = fingerprint(prompt.key)
        reason = ""
        if how != "none" and key in keys:
            reason = "the same prompt as an earlier one"
        elif how == "prefix":
            begins, before = beginning(prompt), list(starts(prompt))
            if begins in beginnings:
                reason = f"begins with the {BEGINNING} characters of an earlier prompt"
            elif key in begun or not keys.isdisjoint(before):
                reason = "continues an earlier prompt, or is continued by it"
            if len(begins) == BEGINNING:
                beginnings.add(begins)
            begun.update(before)
        keys.add(key)
        if reason:
            refused.add(prompt.origin, BadRow(reason))
        else:
            yield prompt
