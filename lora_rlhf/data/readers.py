"""Readers of formats with one answer a row. A reader turns a row into drafts, of which records are made.

A reader gets the row and the names of its format's required columns, in their order. It raises BadRow, whatever
the values are. Parts of the conversation in other columns (system, history, context) are not its business.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from lora_rlhf.data.messages import (
    Row,
    drop_answer,
    parse_list_in_text,
    split_answer,
    to_answer,
    to_prompt_turns,
    to_turns,
)
from lora_rlhf.data.names import column_meaning, name_words
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Message, ToolCall, Turns
from lora_rlhf.data.tools import read_calls
from lora_rlhf.data.verdicts import is_blank, to_number

# Words in the names of other columns if the text is a part of a conversation, or an example of a class.
PART_WORDS = frozenset(
    "role parent message messages conversation conversations prompt question answer answers response completion output "
    "instruction query chosen rejected sentiment class summary translation hypothesis premise emotion intent stars "
    "label labels".split()
)
SENTENCE_WORDS = 3  # words of a text that is more than a name


class Draft(NamedTuple):
    """The prompt's messages, its answers, and their ranks if there are several: a record is made of them.

    grade: how good the one answer is, if the answers of one prompt are in several rows. tool_calls: of the one answer.
    tools: as in `Prompt`. ended: as in `Ranking`. meta: columns of this draft alone, where a row holds several. Of
    `StepLabels`, the answers are steps and the ranks are labels.
    """

    turns: Turns
    answers: tuple[str, ...]
    ranks: Any = None
    labeler: Any = None
    grade: float | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tools: str = ""
    ended: Any = ()
    meta: Mapping[str, Any] = MappingProxyType({})


def make_draft(turns: Turns, answer: Message, grade: float | None = None) -> Draft:
    """The draft of an answer to be learned. BadRow if its message says that it is not."""
    if not answer.is_trained:
        raise BadRow("the answer is marked as bad, or as not to be learned", "by a key of its message")
    return Draft(turns, (answer.content,), grade=grade, tool_calls=answer.tool_calls)


def required_number(row: Row, column: str) -> float:
    """The number in a column. BadRow if it holds none."""
    number = to_number(row[column])
    if number is None:
        raise BadRow(f"{column} is not a number", f"got {type(row[column]).__name__}")
    return number


# ---------------------------------------------------------------------------------------------------------------------
# a prompt and its answer


def read_answer(row: Row, prompt_column: str, answer_column: str, *others: str) -> list[Draft]:
    """Drafts: a prompt, as text or messages, in one column, and its answer in the next."""
    turns = to_prompt_turns(row[prompt_column], prompt_column)
    return [make_draft(turns, to_answer(row[answer_column], answer_column))]


def read_prompt(row: Row, prompt_column: str, *others: str) -> list[Turns]:
    """Prompts: the value of the first column."""
    return [to_prompt_turns(row[prompt_column], prompt_column)]


def read_prompt_without_answer(row: Row, prompt_column: str, *others: str) -> list[Turns]:
    """Prompts: the value of the first column, without the answer that a conversation may end with."""
    return [drop_answer(to_prompt_turns(row[prompt_column], prompt_column))]


def read_instances(row: Row, instruction_column: str, instances_column: str) -> list[Draft]:
    """Drafts of Self-Instruct's tasks: one instruction, and several inputs with their outputs."""
    drafts = []
    for item in row[instances_column] if isinstance(row[instances_column], list | tuple) else ():
        if not isinstance(item, dict) or "output" not in item:
            raise BadRow(f"{instances_column} is not a list of inputs and outputs")
        question_parts = [row[instruction_column], *([] if is_blank(item.get("input")) else [item["input"]])]
        if not all(isinstance(text, str) for text in question_parts):
            raise BadRow(f"{instances_column} is not a list of inputs and outputs")
        question = Message("user", "\n\n".join(question_parts))
        drafts.append(make_draft((question,), to_answer(item["output"], "output")))
    if not drafts:
        raise BadRow(f"{instances_column} is not a list of inputs and outputs")
    return drafts


def read_instance_prompts(row: Row, *names: str) -> list[Turns]:
    """Prompts of `read_instances`."""
    return [draft.turns for draft in read_instances(row, *names)]


# ---------------------------------------------------------------------------------------------------------------------
# conversations


def to_conversation(value: Any, name: str) -> Turns:
    """The messages of a conversation: a list of messages, of turns, or of texts, the user's first."""
    value = parse_list_in_text(value, name)
    if isinstance(value, str):
        raise BadRow(f"{name} is text, not a list of messages")
    if isinstance(value, list | tuple) and len(value) > 1 and all(isinstance(text, str) for text in value):
        return tuple([Message(("user", "assistant")[index % 2], text) for index, text in enumerate(value)])
    return to_turns(value, name)


def read_conversation(row: Row, messages_column: str) -> list[Draft]:
    """Drafts: a conversation that ends with the answer."""
    turns = to_conversation(row[messages_column], messages_column)
    if turns and turns[-1].role == "user":
        raise BadRow(
            f"{messages_column} does not end with an assistant's message",
            "a prompt alone is for lora-rlhf ppo --prompts",
        )
    turns, last_message = split_answer(turns, messages_column)
    return [make_draft(turns, last_message)]


def read_conversation_without_answer(row: Row, messages_column: str, *others: str) -> list[Turns]:
    """Prompts: a conversation without the answer that it may end with."""
    return [drop_answer(to_conversation(row[messages_column], messages_column))]


def read_continuation(row: Row, messages_column: str, answer_column: str) -> list[Draft]:
    """Drafts: a conversation that ends with a question, and the answer in its own column."""
    turns = to_conversation(row[messages_column], messages_column)
    if turns and turns[-1].role == "assistant":
        raise BadRow(
            f"{messages_column} ends with an answer, and {answer_column} holds another", f"ends with {turns[-1].role!r}"
        )
    return [make_draft(turns, to_answer(row[answer_column], answer_column))]


def read_corrected_answer(row: Row, messages_column: str, correction_column: str, *others: str) -> list[Draft]:
    """Drafts: a conversation, and the answer that somebody wrote in place of its last one."""
    turns = drop_answer(to_conversation(row[messages_column], messages_column))
    return [make_draft(turns, to_answer(row[correction_column], correction_column))]


def has_correction(row: Row) -> bool:
    """Whether there is one: logs with a fixed column for it leave it blank where the user gave a thumb alone."""
    return not is_blank(row["correction"])


def has_alternating_texts(row: Row) -> bool:
    """Whether `data` is a list of several texts: the user's and the assistant's in turn."""
    data = row["data"]
    return isinstance(data, list | tuple) and len(data) > 1 and all(isinstance(text, str) for text in data)


def has_no_prompt_column(row: Row) -> bool:
    """Whether the prompt is not in its own column; if it is, the row was written with a sampled response."""
    return row.get("prompt") is None


def read_first_question(row: Row, question_id_column: str, turns_column: str) -> list[Turns]:
    """Prompts: the first question of MT-Bench; the others are asked after the model's answers."""
    questions = row[turns_column]
    if not isinstance(questions, list | tuple) or not questions:
        raise BadRow(f"{turns_column} is not a list of questions")
    return [(Message("user", questions[0]),)]


def read_calls_of_query(row: Row, query_column: str, calls_column: str) -> list[Draft]:
    """Drafts of xLAM: a query, and the calls that answer it."""
    answer = Message("assistant", "", tool_calls=read_calls(row[calls_column], calls_column))
    return [make_draft(to_prompt_turns(row[query_column], query_column), answer)]


def has_tools(row: Row) -> bool:
    """Whether the row lists the functions that may be called."""
    return row.get("tools") is not None


# ---------------------------------------------------------------------------------------------------------------------
# the rest


def read_text(row: Row, text_column: str) -> list[str]:
    """Texts: the value of the column."""
    return [row[text_column]]


def is_plain_text(row: Row) -> bool:
    """Whether a text is not a part of something: all other columns only tell where it is from."""
    return len(row) == 1 or not any(_is_mark_of_part(name, value) for name, value in row.items())


def _is_mark_of_part(name: str, value: Any) -> bool:
    """Whether a filled column tells that the text beside it is a part of a conversation, or labelled."""
    if name == "text" or is_blank(value):
        return False
    meaning = column_meaning(name)
    if PART_WORDS.intersection(name_words(name)) or meaning not in (None, "metadata", "score", "speaker"):
        return True
    return meaning is None and isinstance(value, str) and len(value.split()) >= SENTENCE_WORDS
