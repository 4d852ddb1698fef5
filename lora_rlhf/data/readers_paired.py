"""Readers of pairs: a chosen and a rejected response; the prompt is in a column, in both responses, or in both places.

Readers as of `readers`.
"""

from typing import Any

from lora_rlhf.data.cells import is_messages_as_text
from lora_rlhf.data.messages import (
    Row,
    drop_answer,
    hh_messages,
    is_hh_dialogue,
    parse_list_in_text,
    split_answer,
    text_to_compare,
    to_prompt_turns,
    to_response,
    to_turns,
)
from lora_rlhf.data.names import column_meaning, name_words
from lora_rlhf.data.readers import SENTENCE_WORDS, Draft, to_conversation
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Message, Turns, require_text
from lora_rlhf.data.verdicts import is_blank, pair_order

NO_PROMPT_WORDS = frozenset(
    "id ids uid uuid url urls link path file filename model models generator hash sha date time timestamp license "
    "version rationale rationales reason explanation critique comment comments note notes config dataset source src "
    "origin meta metadata generations lang language".split()
)
ASSISTANT_MARK = "\n\nAssistant:"


def _make_pair(row: Row, turns: Turns, chosen: str, rejected: str) -> list[Draft]:
    """The draft of a pair with its ranks. BadRow if both responses are the same, or if the scores deny the order."""
    if chosen.strip() == rejected.strip():
        raise BadRow("chosen and rejected are the same")
    ranks = (1, 1) if pair_order(row) == "tie" else (1, 2)
    return [Draft(turns, (chosen, rejected), ranks, row.get("labeler"))]


def read_prompted_pair(
    row: Row, prompt_column: str, chosen_column: str, rejected_column: str, *others: str
) -> list[Draft]:
    """Drafts: a prompt in one column, the responses in the next two; each is text, a message or a list of messages."""
    return _make_pair(row, *_split_pair(row, prompt_column, chosen_column, rejected_column))


def read_pair(row: Row, chosen_column: str, rejected_column: str) -> list[Draft]:
    """Drafts: two responses in two columns; the prompt is in the column `prompt`, or both responses begin with it."""
    return _make_pair(row, *_split_pair(row, "prompt", chosen_column, rejected_column))


def read_pair_prompt(row: Row, chosen_column: str, rejected_column: str) -> list[Turns]:
    """Prompts of `read_pair`."""
    if row.get("prompt") is not None:
        return [to_prompt_turns(row["prompt"], "prompt")]
    return [_split_pair(row, "prompt", chosen_column, rejected_column)[0]]


def read_rejected_response(row: Row, messages_column: str, rejected_column: str) -> list[Draft]:
    """Drafts of ms-swift: a conversation that ends with the chosen response, and the rejected response in a column."""
    turns, chosen = split_answer(to_conversation(row[messages_column], messages_column), messages_column)
    value = _parse_messages_in_text(row[rejected_column])
    if isinstance(value, list | tuple) and len(value) > 1:
        turns_before, answer = split_answer(to_turns(value, rejected_column), rejected_column)
        if turns_before != turns:
            raise BadRow("chosen and rejected differ before their last message")
        return _make_pair(row, turns, text_to_compare(chosen), text_to_compare(answer))
    return _make_pair(row, turns, text_to_compare(chosen), to_response(row[rejected_column], rejected_column))


def read_correction(row: Row, messages_column: str, correction_column: str, *others: str) -> list[Draft]:
    """Drafts: a conversation that ends with an answer, and a better one that somebody wrote in its place."""
    turns, answer = split_answer(to_conversation(row[messages_column], messages_column), messages_column)
    return _make_pair(row, turns, to_response(row[correction_column], correction_column), text_to_compare(answer))


def _split_pair(row: Row, prompt_column: str, chosen_column: str, rejected_column: str) -> tuple[Turns, str, str]:
    """(prompt, chosen, rejected) of a pair; the prompt is in a column, in both responses, or in both places."""
    prompt_value = row.get(prompt_column)
    chosen, rejected = row[chosen_column], row[rejected_column]
    if isinstance(chosen, str) and chosen.startswith("["):  # a table's list
        chosen, rejected = _parse_messages_in_text(chosen), _parse_messages_in_text(rejected)
    if isinstance(chosen, list | tuple) and isinstance(rejected, list | tuple):
        is_same = chosen[:-1] == rejected[:-1]  # then it is converted to messages once
        turns_before, chosen_message = split_answer(to_turns(chosen, chosen_column), chosen_column)
        turns_before_rejected, rejected_message = split_answer(
            to_turns(rejected[-1:] if is_same else rejected, rejected_column), rejected_column
        )
        if not is_same and turns_before != turns_before_rejected:
            raise BadRow("chosen and rejected differ before their last message")
        return (
            _choose_prompt(row, turns_before, prompt_value, prompt_column),
            text_to_compare(chosen_message),
            text_to_compare(rejected_message),
        )
    chosen_text, rejected_text = to_response(chosen, chosen_column), to_response(rejected, rejected_column)
    if prompt_value is not None:
        return drop_answer(to_prompt_turns(prompt_value, prompt_column)), chosen_text, rejected_text
    require_no_prompt_elsewhere(row, prompt_column, chosen_column, rejected_column)
    return _split_shared_beginning(chosen_text, rejected_text)


def _parse_messages_in_text(value: Any) -> Any:
    """The list of messages that a text holds; any other value unchanged."""
    return parse_list_in_text(value, "a response") if isinstance(value, str) and is_messages_as_text(value) else value


def _choose_prompt(row: Row, turns_before: Turns, prompt_value: Any, prompt_column: str) -> Turns:
    """The prompt with which both responses begin, or the prompt column if they hold only its end."""
    if not turns_before and prompt_value is None:
        raise BadRow("chosen and rejected share no prompt, and there is no prompt column", *_suggest_prompt_column(row))
    if prompt_value is None:
        return turns_before
    turns = drop_answer(to_prompt_turns(prompt_value, prompt_column))
    if not turns_before or turns[len(turns) - len(turns_before) :] == turns_before:
        return turns
    for message in turns:
        text = message.content.strip()
        if not any(text in turn.content or turn.content.strip() in text for turn in turns_before):
            raise BadRow(f"{prompt_column} is not in the conversation of chosen and rejected", repr(text[:40]))
    return turns_before


def require_no_prompt_elsewhere(row: Row, *read_columns: str) -> None:
    """Raises BadRow if another column could hold the prompt, so that it would have to be guessed."""
    if read_columns[0] in row and is_blank(row[read_columns[0]]):
        raise BadRow("a needed column is empty", read_columns[0])
    detail, columns = _suggest_prompt_column(row)
    if detail:
        raise BadRow("chosen and rejected stand without a prompt column", detail, columns)


def _suggest_prompt_column(row: Row) -> tuple[str, str]:
    """("is it question?", "prompt=question") for the columns that could hold the prompt; ("", "") for none."""
    names = [name for name, value in row.items() if _can_be_prompt(name, value)]
    return (f"is it {' or '.join(names[:4])}?", f"prompt={names[0]}") if names else ("", "")


def _can_be_prompt(name: str, value: Any) -> bool:
    """Whether a column could hold the prompt, by its name and value."""
    lowered, meaning = name.lower(), column_meaning(name)
    if "chosen" in lowered or "rejected" in lowered or NO_PROMPT_WORDS.intersection(name_words(name)):
        return False
    if meaning == "metadata":  # such as a topic, which may be a question
        return isinstance(value, str) and len(value.split()) >= SENTENCE_WORDS
    if meaning not in (None, "context", "history", "speaker"):
        return False
    return not is_blank(value) and isinstance(value, str | list | tuple | dict)


def _split_shared_beginning(chosen: str, rejected: str) -> tuple[Turns, str, str]:
    """(prompt, chosen, rejected) of two texts with one beginning, up to the last whole word in common (as TRL does)."""
    low, end = 0, min(len(chosen), len(rejected))
    while low < end:  # bisection: a loop over the characters would take longer than all other work on the row
        middle = (low + end + 1) // 2
        if chosen[low:middle] == rejected[low:middle]:
            low = middle
        else:
            end = middle - 1
    while end > 0 and not chosen[end - 1].isspace():
        end -= 1
    if not chosen[:end].strip():
        raise BadRow("chosen and rejected share no prompt, and there is no prompt column")
    return (Message("user", chosen[:end].strip()),), chosen[end:].strip(), rejected[end:].strip()


# ---------------------------------------------------------------------------------------------------------------------
# HH-RLHF: whole dialogues that differ in their last answer


def is_context_pair(row: Row) -> bool:
    """Whether `context` holds the conversation; a text may be what a question is about."""
    return isinstance(row["context"], list | tuple)


def is_hh_pair(row: Row) -> bool:
    """Whether the chosen or the rejected response is a text in HH-RLHF's form."""
    chosen, rejected = row["chosen"], row["rejected"]
    return (isinstance(chosen, str) and is_hh_dialogue(chosen)) or (
        isinstance(rejected, str) and is_hh_dialogue(rejected)
    )


def read_hh_pair(row: Row, chosen_column: str, rejected_column: str) -> list[Draft]:
    """Drafts: two HH-RLHF dialogues that differ in their last answer."""
    return _make_pair(row, *_split_hh_pair(row, chosen_column, rejected_column))


def read_hh_prompt(row: Row, chosen_column: str, rejected_column: str) -> list[Turns]:
    """Prompts of `read_hh_pair`."""
    return [_split_hh_pair(row, chosen_column, rejected_column)[0]]


def _split_hh_pair(row: Row, *columns: str) -> tuple[Turns, str, str]:
    """(prompt, chosen answer, rejected answer). BadRow if the dialogues differ before their last answer."""
    (text_before, chosen), (text_before_rejected, rejected) = (
        _split_hh_dialogue(row[column], column) for column in columns
    )
    # the same turns may be spaced differently
    if text_before != text_before_rejected and hh_messages(text_before) != hh_messages(text_before_rejected):
        raise BadRow("chosen and rejected differ before their last message")
    return hh_messages(text_before), chosen, rejected


def _split_hh_dialogue(value: Any, name: str) -> tuple[str, str]:
    """(the dialogue before the last answer, the last answer)."""
    if not isinstance(value, str) or not is_hh_dialogue(value):
        raise BadRow(f"{name} is not a dialogue of Human: and Assistant:")
    before, _, answer = value.rpartition(ASSISTANT_MARK)
    if "\n\nHuman:" in answer:
        raise BadRow(f"{name} does not end with an assistant's message")
    return before.strip(), require_text(answer.strip(), f"the {name}")
