"""From a row's values to messages, and the readers of demonstrations, prompts and texts.

A reader turns a row into records and raises BadRow, whatever the values are; it sets neither meta nor origin.
"""

import math
import re
from typing import Any, TypeAlias

from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import ROLES, Demonstration, Message, Prompt, Ranking, Text, require_text

Row: TypeAlias = dict[str, Any]
Record: TypeAlias = Demonstration | Ranking | Prompt | Text

HH_TURN = re.compile(r"\n\n(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}
# who speaks in ShareGPT's "from" and its kin
SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
}
SYSTEM_COLUMNS = ("system", "system_prompt")
INSTRUCTION_COLUMNS = ("input", "context", "history", *SYSTEM_COLUMNS)  # what may stand beside `instruction`
# how a list of messages begins that was written into a text, as tables do
MESSAGES_AS_TEXT = ('[{"role":', '[{"content":', '[{"from":', "[{'role':", "[{'content':", "[{'from':")


# ---------------------------------------------------------------------------------------------------------------------
# from a column's value to messages


def to_messages(value: Any, what: str) -> tuple[Message, ...]:
    """A string (one user's message, or a dialogue written "Human: ... Assistant: ...") or a list of messages."""
    if isinstance(value, str):
        if value.startswith(MESSAGES_AS_TEXT):
            raise BadRow("messages are written as text, not as a list", what)
        return hh_messages(value) if is_hh_dialogue(value) else (Message("user", value),)
    if not isinstance(value, list | tuple):
        raise BadRow(f"{what} is neither text nor a list of messages", f"got {type(value).__name__}")
    return tuple([message for item in value if (message := _to_message(item, what)) is not None])


def _to_message(item: Any, what: str) -> Message | None:
    """A message of {role, content} or ShareGPT's {from, value}; the content may be a list of text parts.

    None for a blank system message: many sets write one for "no system prompt", and some templates refuse the role.
    """
    try:
        role, content = (item["role"], item["content"]) if "role" in item else (item["from"], item["value"])
    except (KeyError, TypeError, IndexError):
        raise BadRow(f"{what} holds a message without role and content") from None
    if role not in ROLES and isinstance(role, str):
        role = SPEAKERS.get(role, role)
    if not isinstance(content, str):
        content = _joined_parts(content)
    if role == "system" and (content is None or (isinstance(content, str) and not content.strip())):
        return None
    return Message(role, content)


def _joined_parts(content: Any) -> Any:
    """The text of a list of {"type": "text", "text": ...}; what is no list is returned as it is."""
    if not isinstance(content, list | tuple):
        return content
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        raise BadRow("a message holds parts that are not text")
    return "".join(require_text(part.get("text"), "a message's content") for part in content)


def is_hh_dialogue(text: str) -> bool:
    """Whether a text is written in HH-RLHF's form: "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def hh_messages(text: str) -> tuple[Message, ...]:
    """The turns of an HH-RLHF dialogue (arXiv 2204.05862); an empty last "Assistant:" asks for the answer."""
    _, *parts = HH_TURN.split("\n\n" + text.lstrip())
    return tuple(Message(HH_ROLES[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True))


def to_prompt(value: Any) -> Prompt:
    """The prompt of a `prompt` column."""
    messages = to_messages(value, "prompt")
    if isinstance(value, str) and len(messages) > 1 and messages[-1] == Message("assistant", ""):
        messages = messages[:-1]
    return Prompt(messages)


def to_response(value: Any, what: str) -> str:
    """The answer of a column that holds text, an assistant's message, or a list with one."""
    if isinstance(value, str):
        if value.startswith(MESSAGES_AS_TEXT):
            raise BadRow("messages are written as text, not as a list", what)
        return require_text(value, f"the {what}")
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list | tuple):
        return require_text(value, f"the {what}")
    messages = to_messages(value, what)
    if len(messages) != 1 or messages[0].role != "assistant":
        raise BadRow(f"{what} is not one assistant's message")
    return messages[0].content


def split_last_answer(messages: tuple[Message, ...], what: str) -> tuple[tuple[Message, ...], str]:
    """(everything before, the assistant's last message)."""
    if not messages or messages[-1].role != "assistant":
        raise BadRow(f"{what} does not end with an assistant's message")
    return messages[:-1], messages[-1].content


def _without_answer(messages: tuple[Message, ...]) -> Prompt:
    return Prompt(messages[:-1] if messages and messages[-1].role == "assistant" else messages)


# ---------------------------------------------------------------------------------------------------------------------
# numbers


def to_number(value: Any) -> float | None:
    """A finite number, also one that is written as text (tables and UltraFeedback do so); None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def required_number(row: Row, column: str) -> float:
    """The number in a column. BadRow if it holds none."""
    number = to_number(row[column])
    if number is None:
        raise BadRow(f"{column} is not a number", f"got {type(row[column]).__name__}")
    return number


# ---------------------------------------------------------------------------------------------------------------------
# prompts that stand in several columns


def _system(row: Row) -> tuple[Message, ...]:
    """The system message of a `system` or `system_prompt` column, if it says anything."""
    for column in SYSTEM_COLUMNS:
        value = row.get(column)
        if value is not None and require_text(value, f"the {column}").strip():
            return (Message("system", value),)
    return ()


def _turns_before(row: Row) -> tuple[Message, ...]:
    """Alpaca's `history`: pairs of what the user said and what the assistant answered."""
    history = row.get("history") or ()
    if not isinstance(history, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in history):
        raise BadRow("history is not a list of pairs")
    return tuple(
        Message(role, said) for pair in history for role, said in zip(("user", "assistant"), pair, strict=True)
    )


def instruction_prompt(row: Row) -> Prompt:
    """An instruction, and on a paragraph of its own what it is about (`input` or `context`)."""
    parts = [row["instruction"], row.get("input"), row.get("context")]
    texts = [require_text(part, "the instruction or its input") for part in parts if part is not None]
    asked = "\n\n".join(text for text in texts if text.strip())
    return Prompt((*_system(row), *_turns_before(row), Message("user", asked)))


def question_prompt(row: Row) -> Prompt:
    """A question, after the system message if there is one."""
    return Prompt((*_system(row), Message("user", row["question"])))


def _sharegpt_messages(row: Row) -> tuple[Message, ...]:
    if isinstance(row["conversations"], str):
        raise BadRow("messages are written as text, not as a list", "conversations")
    messages = to_messages(row["conversations"], "conversations")
    return messages if messages and messages[0].role == "system" else (*_system(row), *messages)


# ---------------------------------------------------------------------------------------------------------------------
# the readers


def completion(row: Row) -> list[Demonstration]:
    return [Demonstration(to_prompt(row["prompt"]), to_response(row["completion"], "completion"))]


def response(row: Row) -> list[Demonstration]:
    return [Demonstration(to_prompt(row["prompt"]), to_response(row["response"], "response"))]


def conversation(row: Row) -> list[Demonstration]:
    before, answer = split_last_answer(to_messages(row["messages"], "messages"), "messages")
    return [Demonstration(Prompt(before), answer)]


def open_conversation(row: Row) -> list[Prompt]:
    return [_without_answer(to_messages(row["messages"], "messages"))]


def sharegpt(row: Row) -> list[Demonstration]:
    before, answer = split_last_answer(_sharegpt_messages(row), "conversations")
    return [Demonstration(Prompt(before), answer)]


def open_sharegpt(row: Row) -> list[Prompt]:
    return [_without_answer(_sharegpt_messages(row))]


def alpaca(row: Row) -> list[Demonstration]:
    return [Demonstration(instruction_prompt(row), row["output"])]


def dolly(row: Row) -> list[Demonstration]:
    return [Demonstration(instruction_prompt(row), row["response"])]


def instruction(row: Row) -> list[Prompt]:
    return [instruction_prompt(row)]


def orca(row: Row) -> list[Demonstration]:
    return [Demonstration(question_prompt(row), row["response"])]


def question(row: Row) -> list[Prompt]:
    return [question_prompt(row)]


def prompt(row: Row) -> list[Prompt]:
    return [to_prompt(row["prompt"])]


def text(row: Row) -> list[Text]:
    return [Text(row["text"])]
