"""One small reader per row format, chosen by the row's own columns and never by the file's name.

To add a format: write a function from the row to a record, and put a Reader with a predicate into the table of its
kind, the more specific one first. Columns that the reader does not use are kept in the prompt's `meta`.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking, Text, require_text

Row = dict[str, Any]
Record = TypeVar("Record", Prompt, Demonstration, Ranking, Text)

HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


@dataclass(frozen=True)
class Reader(Generic[Record]):
    """`matches` looks at a row's columns, `read` turns the row into a record, `columns` are those that it uses."""

    columns: tuple[str, ...]
    matches: Callable[[Row], bool]
    read: Callable[[Row], Record]


def read_row(readers: Sequence[Reader[Record]], row: Any, origin: str) -> Record:
    """The record of the first reader that recognises the row. Raises BadRow naming what was found and expected."""
    if not isinstance(row, dict):
        raise BadRow("the row is not an object with columns", f"got {type(row).__name__}")
    for reader in readers:
        if reader.matches(row):
            record = reader.read(row)
            if isinstance(record, Text):
                return record
            place: dict[str, Any] = {
                "meta": {name: row[name] for name in row if name not in reader.columns},
                "origin": origin,
            }
            if isinstance(record, Prompt):
                return dataclasses.replace(record, **place)
            return dataclasses.replace(record, prompt=dataclasses.replace(record.prompt, **place))
    found = ", ".join(sorted(map(str, row))) or "none"
    expected = " | ".join(" + ".join(reader.columns) for reader in readers)
    raise BadRow(f"columns not recognised: found {found}; expected {expected}")


def has(*columns: str) -> Callable[[Row], bool]:
    """A predicate: all these columns are there and filled (tables write a missing value as null)."""
    return lambda row: all(row.get(column) is not None for column in columns)


# ---------------------------------------------------------------------------------------------------------------------
# from a column's value to messages


def to_messages(value: Any, what: str = "prompt") -> tuple[Message, ...]:
    """A string (one user's message, or a dialogue written "Human: ... Assistant: ...") or a list of messages."""
    if isinstance(value, str):
        return hh_messages(value) if is_hh_dialogue(value) else (Message("user", value),)
    if not isinstance(value, list | tuple):
        raise BadRow(f"{what} is neither text nor a list of messages", f"got {type(value).__name__}")
    return tuple(_message(item, what) for item in value if not _is_blank_system(item))


def _message(item: Any, what: str) -> Message:
    if not isinstance(item, dict) or "role" not in item or "content" not in item:
        raise BadRow(f"{what} holds a message without role and content")
    return Message(item["role"], item["content"])


def _is_blank_system(item: Any) -> bool:
    # many sets write {"role": "system", "content": ""} for "no system prompt"; some templates refuse the role
    return isinstance(item, dict) and item.get("role") == "system" and not (item.get("content") or "").strip()


def is_hh_dialogue(text: str) -> bool:
    """Whether a text is written in HH-RLHF's form: "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def hh_messages(text: str) -> tuple[Message, ...]:
    """The turns of an HH-RLHF dialogue (arXiv 2204.05862); an empty last "Assistant:" asks for the answer."""
    _, *parts = HH_TURN.split(text.lstrip())
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(roles[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True))


def to_prompt(value: Any) -> Prompt:
    """The prompt of a `prompt` column."""
    messages = to_messages(value)
    if isinstance(value, str) and len(messages) > 1 and messages[-1] == Message("assistant", ""):
        messages = messages[:-1]
    return Prompt(messages)


def to_response(value: Any, what: str = "response") -> str:
    """The answer of a column that holds text, or a list with the assistant's one message."""
    if isinstance(value, list | tuple):
        messages = to_messages(value, what)
        if len(messages) != 1 or messages[0].role != "assistant":
            raise BadRow(f"{what} is not one assistant's message")
        return messages[0].content
    return require_text(value, f"the {what}")


def split_last_answer(messages: tuple[Message, ...], what: str) -> tuple[tuple[Message, ...], str]:
    """(everything before, the assistant's last message)."""
    if not messages or messages[-1].role != "assistant":
        raise BadRow(f"{what} does not end with an assistant's message")
    return messages[:-1], messages[-1].content


# ---------------------------------------------------------------------------------------------------------------------
# the readers


def _answered(column: str) -> Callable[[Row], Demonstration]:
    return lambda row: Demonstration(to_prompt(row["prompt"]), to_response(row[column], column))


def _conversation(row: Row) -> Demonstration:
    before, response = split_last_answer(to_messages(row["messages"], "messages"), "messages")
    return Demonstration(Prompt(before), response)


def _open_conversation(row: Row) -> Prompt:
    messages = to_messages(row["messages"], "messages")
    return Prompt(messages[:-1] if messages and messages[-1].role == "assistant" else messages)


def _ranked(row: Row) -> Ranking:
    responses = row["responses"]
    if not isinstance(responses, list | tuple):
        raise BadRow("responses is not a list", f"got {type(responses).__name__}")
    answers = tuple(to_response(response, "a response") for response in responses)
    return Ranking(to_prompt(row["prompt"]), answers, row["ranks"], row.get("labeler"))


def _pair(row: Row) -> Ranking:
    """chosen/rejected as K = 2; the prompt is what both conversations share, else the `prompt` column."""
    sides = [row["chosen"], row["rejected"]]
    is_dialogue = [not isinstance(side, str) or is_hh_dialogue(side) for side in sides]
    if all(is_dialogue):
        (before, chosen), (before_rejected, rejected) = (
            split_last_answer(to_messages(side, name), name)
            for side, name in zip(sides, ("chosen", "rejected"), strict=True)
        )
        if before != before_rejected:
            raise BadRow("chosen and rejected differ before their last message")
        if before:
            prompt = Prompt(before)
        elif has("prompt")(row):
            prompt = to_prompt(row["prompt"])
        else:
            raise BadRow("chosen and rejected share no prompt, and there is no prompt column")
    elif has("prompt")(row):
        chosen, rejected = (to_response(row[name], name) for name in ("chosen", "rejected"))
        prompt = to_prompt(row["prompt"])
    else:
        prompt, chosen, rejected = _shared_beginning(*(to_response(row[name], name) for name in ("chosen", "rejected")))
    if chosen == rejected:
        raise BadRow("chosen and rejected are the same")
    return Ranking(prompt, (chosen, rejected), (1, 2), row.get("labeler"))


def _shared_beginning(chosen: str, rejected: str) -> tuple[Prompt, str, str]:
    """Two texts that begin with the same prompt; cut after the last whole word that they share (as TRL does)."""
    shorter = min(len(chosen), len(rejected))
    end = next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter)
    while end > 0 and not chosen[end - 1].isspace():
        end -= 1
    if not chosen[:end].strip():
        raise BadRow("chosen and rejected share no prompt, and there is no prompt column")
    return Prompt.of(chosen[:end].strip()), chosen[end:].strip(), rejected[end:].strip()


DEMONSTRATIONS: tuple[Reader[Demonstration], ...] = (
    Reader(("prompt", "completion"), has("prompt", "completion"), _answered("completion")),
    Reader(("prompt", "response"), has("prompt", "response"), _answered("response")),
    Reader(("messages",), has("messages"), _conversation),
)

RANKINGS: tuple[Reader[Ranking], ...] = (
    Reader(("prompt", "responses", "ranks", "labeler"), has("prompt", "responses", "ranks"), _ranked),
    Reader(("prompt", "chosen", "rejected", "labeler"), has("chosen", "rejected"), _pair),
)

# Prompts for sampling are taken from any kind of row, so that a file of demonstrations or rankings serves as well.
PROMPTS: tuple[Reader[Prompt], ...] = (
    Reader(("prompt",), has("prompt"), lambda row: to_prompt(row["prompt"])),
    Reader(("messages",), has("messages"), _open_conversation),
    Reader(("chosen", "rejected"), has("chosen", "rejected"), lambda row: _pair(row).prompt),
)

TEXTS: tuple[Reader[Text], ...] = (Reader(("text",), has("text"), lambda row: Text(row["text"])),)
