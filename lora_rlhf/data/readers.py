"""The readers of formats with one answer a row. A reader turns a row into drafts, from which records are made.

A reader is given the row and the names of its format's required columns, in their order. It raises BadRow, whatever
the values are. Parts of the conversation in other columns (system, history, context) are not its business.
"""

from typing import Any, NamedTuple

from lora_rlhf.data.messages import (
    Row,
    list_in_text,
    split_answer,
    to_answer,
    to_prompt_turns,
    to_turns,
    without_answer,
)
from lora_rlhf.data.names import column_meaning, name_words
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Message, Turns
from lora_rlhf.data.verdicts import is_blank, to_number

# Words in the names of columns beside a text that is a part of a conversation, or an example of a class.
PARTS_OF_ROWS = frozenset(
    "role parent message messages conversation conversations prompt question answer answers response completion output "
    "instruction query chosen rejected sentiment class summary translation hypothesis premise emotion intent stars "
    "label labels".split()
)
SENTENCE = 3  # words of a text that is more than a name


class Draft(NamedTuple):
    """What a record is made of: the prompt's messages, its answers, and their ranks if there are several.

    grade: how good the one answer is, where answers of one prompt stand in several rows.
    """

    turns: Turns
    answers: tuple[str, ...]
    ranks: Any = None
    labeler: Any = None
    grade: float | None = None


def learned(answer: Message) -> str:
    """The text of an answer. BadRow if its message says that it is not to be learned."""
    if not answer.is_trained:
        raise BadRow("the answer is marked as bad, or as not to be learned", "by a key of its message")
    return answer.content


def required_number(row: Row, column: str) -> float:
    """The number in a column. BadRow if it holds none."""
    number = to_number(row[column])
    if number is None:
        raise BadRow(f"{column} is not a number", f"got {type(row[column]).__name__}")
    return number


# ---------------------------------------------------------------------------------------------------------------------
# a prompt and its answer


def answer(row: Row, prompt: str, answer: str, *others: str) -> list[Draft]:
    """A prompt, as text or messages, in one column, and its answer in the next."""
    return [Draft(to_prompt_turns(row[prompt], prompt), (learned(to_answer(row[answer], answer)),))]


def prompt(row: Row, prompt: str, *others: str) -> list[Turns]:
    """The prompt that stands in the first column."""
    return [to_prompt_turns(row[prompt], prompt)]


def open_prompt(row: Row, prompt: str, *others: str) -> list[Turns]:
    """The prompt of the first column, without the answer that a conversation may end with."""
    return [without_answer(to_prompt_turns(row[prompt], prompt))]


def instances(row: Row, instruction: str, column: str) -> list[Draft]:
    """Self-Instruct's tasks: one instruction, and several inputs with their outputs."""
    drafts = []
    for item in row[column] if isinstance(row[column], list | tuple) else ():
        if not isinstance(item, dict) or "output" not in item:
            raise BadRow(f"{column} is not a list of inputs and outputs")
        asked = [row[instruction], *([] if is_blank(item.get("input")) else [item["input"]])]
        if not all(isinstance(text, str) for text in asked):
            raise BadRow(f"{column} is not a list of inputs and outputs")
        drafts.append(Draft((Message("user", "\n\n".join(asked)),), (learned(to_answer(item["output"], "output")),)))
    if not drafts:
        raise BadRow(f"{column} is not a list of inputs and outputs")
    return drafts


def open_instances(row: Row, *names: str) -> list[Turns]:
    return [draft.turns for draft in instances(row, *names)]


# ---------------------------------------------------------------------------------------------------------------------
# conversations


def conversation_turns(value: Any, name: str) -> Turns:
    """A conversation as a list of messages, of turns, or of texts, the user's first."""
    value = list_in_text(value, name)
    if isinstance(value, str):
        raise BadRow(f"{name} is text, not a list of messages")
    if isinstance(value, list | tuple) and len(value) > 1 and all(isinstance(text, str) for text in value):
        return tuple([Message(("user", "assistant")[index % 2], text) for index, text in enumerate(value)])
    return to_turns(value, name)


def conversation(row: Row, messages: str) -> list[Draft]:
    """A conversation that ends with the answer."""
    turns = conversation_turns(row[messages], messages)
    if turns and turns[-1].role == "user":
        raise BadRow(
            f"{messages} does not end with an assistant's message", "a prompt alone is for lora-rlhf ppo --prompts"
        )
    turns, answer = split_answer(turns, messages)
    return [Draft(turns, (learned(answer),))]


def open_conversation(row: Row, messages: str, *others: str) -> list[Turns]:
    """A conversation without the answer that it may end with."""
    return [without_answer(conversation_turns(row[messages], messages))]


def continued(row: Row, messages: str, answer: str) -> list[Draft]:
    """A conversation that waits for an answer, and the answer in a column of its own."""
    turns = conversation_turns(row[messages], messages)
    if turns and turns[-1].role != "user":
        raise BadRow(f"{messages} ends with an answer, and {answer} holds another", f"ends with {turns[-1].role!r}")
    return [Draft(turns, (learned(to_answer(row[answer], answer)),))]


def is_texts_in_turn(row: Row) -> bool:
    data = row["data"]
    return isinstance(data, list | tuple) and len(data) > 1 and all(isinstance(text, str) for text in data)


def is_asked_in_turns(row: Row) -> bool:
    """Whether a row's prompt stands in no column of its own, as it does where responses were sampled."""
    return row.get("prompt") is None


def first_turn(row: Row, question_id: str, column: str) -> list[Turns]:
    """The first question of MT-Bench; those that follow it are asked after the model's own answers."""
    turns = row[column]
    if not isinstance(turns, list | tuple) or not turns:
        raise BadRow(f"{column} is not a list of questions")
    return [(Message("user", turns[0]),)]


# ---------------------------------------------------------------------------------------------------------------------
# the rest


def text(row: Row, column: str) -> list[str]:
    """Plain text."""
    return [row[column]]


def is_plain_text(row: Row) -> bool:
    """Whether a text is no part of something else: nothing beside it but columns that say where it is from."""
    return len(row) == 1 or not any(_makes_a_part(name, value) for name, value in row.items())


def _makes_a_part(name: str, value: Any) -> bool:
    """Whether a filled column says that the text beside it is a part of a conversation, or labelled."""
    if name == "text" or is_blank(value):
        return False
    meaning = column_meaning(name)
    if PARTS_OF_ROWS.intersection(name_words(name)) or meaning not in (None, "metadata", "score", "speaker"):
        return True
    return meaning is None and isinstance(value, str) and len(value.split()) >= SENTENCE


def is_prm800k(row: Row) -> bool:
    return isinstance(row["label"], dict) and "steps" in row["label"]


def prm800k_prompt(row: Row, question: str, *others: str) -> list[Turns]:
    asked = row[question]
    return [to_prompt_turns(asked.get("problem") if isinstance(asked, dict) else asked, question)]
