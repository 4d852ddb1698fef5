"""The readers of pairs: chosen and rejected, with their prompt beside them, in both of them, or in both places.

A reader turns a row into records and raises BadRow, whatever the values are; it sets neither meta nor origin.
"""

from typing import Any

from lora_rlhf.data.readers import (
    Row,
    hh_messages,
    instruction_prompt,
    is_hh_dialogue,
    question_prompt,
    required_number,
    split_last_answer,
    to_messages,
    to_prompt,
    to_response,
)
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Message, Prompt, Ranking, require_text

# where a prompt may stand beside chosen and rejected: then it must not be guessed from what the two share
PROMPT_COLUMNS = ("question", "query", "instruction", "input", "context", "history", "conversations", "problem", "post")
ASSISTANT_MARK = "\n\nAssistant:"


def _pair(prompt: Prompt, chosen: str, rejected: str, ranks: tuple[int, int], labeler: Any = None) -> list[Ranking]:
    if chosen.strip() == rejected.strip():
        raise BadRow("chosen and rejected are the same")
    return [Ranking(prompt, (chosen, rejected), ranks, labeler)]


def preference(row: Row) -> list[Ranking]:
    return _pair(*_prompt_and_sides(row), (1, 2), row.get("labeler"))


def preference_prompt(row: Row) -> list[Prompt]:
    return [to_prompt(row["prompt"]) if row.get("prompt") is not None else _prompt_and_sides(row)[0]]


def scored_pair(row: Row) -> list[Ranking]:
    better, worse = required_number(row, "score_chosen"), required_number(row, "score_rejected")
    if better < worse:
        raise BadRow("the rejected response has the higher score", f"{better:g} and {worse:g}")
    return _pair(*_prompt_and_sides(row), (1, 1) if better == worse else (1, 2))


def instruction_pair(row: Row) -> list[Ranking]:
    return _pair(instruction_prompt(row), *_answers(row), (1, 2))


def question_pair(row: Row) -> list[Ranking]:
    return _pair(question_prompt(row), *_answers(row), (1, 2))


def _answers(row: Row) -> tuple[str, str]:
    return to_response(row["chosen"], "chosen"), to_response(row["rejected"], "rejected")


def _prompt_and_sides(row: Row) -> tuple[Prompt, str, str]:
    """(prompt, chosen, rejected) of a pair that may hold its prompt in `prompt`, in both sides, or in both places."""
    given = row.get("prompt")
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, list | tuple) and isinstance(rejected, list | tuple):
        is_same = chosen[:-1] == rejected[:-1]  # then it is made into messages once
        before, chosen = split_last_answer(to_messages(chosen, "chosen"), "chosen")
        rejected_turns = to_messages(rejected[-1:] if is_same else rejected, "rejected")
        before_rejected, rejected = split_last_answer(rejected_turns, "rejected")
        if not is_same and before != before_rejected:
            raise BadRow("chosen and rejected differ before their last message")
        return _prompt_before(before, given), chosen, rejected
    chosen, rejected = _answers(row)
    if given is not None:
        return to_prompt(given), chosen, rejected
    for column in PROMPT_COLUMNS:
        if row.get(column) is not None:
            raise BadRow("chosen and rejected stand without a prompt column", f"is it {column}? Call it prompt")
    return _shared_beginning(chosen, rejected)


def _prompt_before(before: tuple[Message, ...], given: Any) -> Prompt:
    """The prompt that both sides begin with, or the prompt column where they hold no more than its end."""
    if not before and given is None:
        raise BadRow("chosen and rejected share no prompt, and there is no prompt column")
    if not before or isinstance(given, list | tuple):
        prompt = to_prompt(given)
        if prompt.messages[len(prompt.messages) - len(before) :] == before:
            return prompt
    return Prompt(before)


def _shared_beginning(chosen: str, rejected: str) -> tuple[Prompt, str, str]:
    """Two texts that begin with the same prompt; cut after the last whole word that they share (as TRL does)."""
    low, end = 0, min(len(chosen), len(rejected))
    while low < end:  # by halves: a loop over the characters would cost more than all the rest of the reading
        middle = (low + end + 1) // 2
        if chosen[low:middle] == rejected[low:middle]:
            low = middle
        else:
            end = middle - 1
    while end > 0 and not chosen[end - 1].isspace():
        end -= 1
    if not chosen[:end].strip():
        raise BadRow("chosen and rejected share no prompt, and there is no prompt column")
    return Prompt.of(chosen[:end].strip()), chosen[end:].strip(), rejected[end:].strip()


# ---------------------------------------------------------------------------------------------------------------------
# HH-RLHF: whole dialogues that differ in their last answer


def is_hh_pair(row: Row) -> bool:
    """Whether a side is a text in HH-RLHF's form."""
    chosen, rejected = row["chosen"], row["rejected"]
    return (isinstance(chosen, str) and is_hh_dialogue(chosen)) or (
        isinstance(rejected, str) and is_hh_dialogue(rejected)
    )


def hh_pair(row: Row) -> list[Ranking]:
    return _pair(*_hh_prompt_and_sides(row), (1, 2), row.get("labeler"))


def hh_prompt(row: Row) -> list[Prompt]:
    return [_hh_prompt_and_sides(row)[0]]


def _hh_prompt_and_sides(row: Row) -> tuple[Prompt, str, str]:
    (before, chosen), (before_rejected, rejected) = (_hh_turns(row[side], side) for side in ("chosen", "rejected"))
    # the same turns may be spaced differently
    if before != before_rejected and hh_messages(before) != hh_messages(before_rejected):
        raise BadRow("chosen and rejected differ before their last message")
    return Prompt(hh_messages(before)), chosen, rejected


def _hh_turns(value: Any, what: str) -> tuple[str, str]:
    """(the dialogue before the last answer, that answer)."""
    if not isinstance(value, str) or not is_hh_dialogue(value):
        raise BadRow(f"{what} is not a dialogue of Human: and Assistant:")
    before, _, answer = value.rpartition(ASSISTANT_MARK)
    if "\n\nHuman:" in answer:
        raise BadRow(f"{what} does not end with an assistant's message")
    return before.strip(), require_text(answer.strip(), f"the {what}")
