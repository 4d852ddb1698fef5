"""The readers of pairs: a chosen and a rejected response, with their prompt beside them, in both, or in both places.

Readers as of `readers`.
"""

from typing import Any

from lora_rlhf.data.cells import is_messages_as_text
from lora_rlhf.data.messages import (
    Row,
    hh_messages,
    is_hh_dialogue,
    list_in_text,
    split_answer,
    to_prompt_turns,
    to_response,
    to_turns,
    without_answer,
)
from lora_rlhf.data.names import column_meaning, name_words
from lora_rlhf.data.readers import SENTENCE, Draft, conversation_turns
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Message, Turns, require_text
from lora_rlhf.data.verdicts import is_blank, pair_order

NO_PROMPT = frozenset(
    "id ids uid uuid url urls link path file filename model models generator hash sha date time timestamp license "
    "version rationale rationales reason explanation critique comment comments note notes config dataset source src "
    "origin meta metadata generations lang language".split()
)
ASSISTANT_MARK = "\n\nAssistant:"


def _pair(row: Row, turns: Turns, chosen: str, rejected: str) -> list[Draft]:
    if chosen.strip() == rejected.strip():
        raise BadRow("chosen and rejected are the same")
    ranks = (1, 1) if pair_order(row) == "tie" else (1, 2)
    return [Draft(turns, (chosen, rejected), ranks, row.get("labeler"))]


def prompted_pair(row: Row, prompt: str, chosen: str, rejected: str, *others: str) -> list[Draft]:
    """The prompt in one column, the responses in the next two; each may be text, a message or a list of messages."""
    return _pair(row, *_turns_and_sides(row, prompt, chosen, rejected))


def pair(row: Row, chosen: str, rejected: str) -> list[Draft]:
    """The two responses in two columns; the prompt in the column `prompt`, or where both begin."""
    return _pair(row, *_turns_and_sides(row, "prompt", chosen, rejected))


def pair_prompt(row: Row, chosen: str, rejected: str) -> list[Turns]:
    if row.get("prompt") is not None:
        return [to_prompt_turns(row["prompt"], "prompt")]
    return [_turns_and_sides(row, "prompt", chosen, rejected)[0]]


def rejected_beside(row: Row, messages: str, rejected: str) -> list[Draft]:
    """ms-swift: a conversation that ends with the chosen response, and the rejected one in a column of its own."""
    turns, chosen = split_answer(conversation_turns(row[messages], messages), messages)
    value = _list_of_messages(row[rejected])
    if isinstance(value, list | tuple) and len(value) > 1:
        before, answer = split_answer(to_turns(value, rejected), rejected)
        if before != turns:
            raise BadRow("chosen and rejected differ before their last message")
        return _pair(row, turns, chosen.content, answer.content)
    return _pair(row, turns, chosen.content, to_response(row[rejected], rejected))


def _turns_and_sides(row: Row, prompt: str, chosen_name: str, rejected_name: str) -> tuple[Turns, str, str]:
    """(prompt, chosen, rejected) of a pair that may hold its prompt in a column, in both sides, or in both places."""
    given = row.get(prompt)
    chosen, rejected = row[chosen_name], row[rejected_name]
    if isinstance(chosen, str) and chosen.startswith("["):  # a table's list
        chosen, rejected = _list_of_messages(chosen), _list_of_messages(rejected)
    if isinstance(chosen, list | tuple) and isinstance(rejected, list | tuple):
        is_same = chosen[:-1] == rejected[:-1]  # then it is made into messages once
        before, better = split_answer(to_turns(chosen, chosen_name), chosen_name)
        before_rejected, worse = split_answer(
            to_turns(rejected[-1:] if is_same else rejected, rejected_name), rejected_name
        )
        if not is_same and before != before_rejected:
            raise BadRow("chosen and rejected differ before their last message")
        return _prompt_before(row, before, given, prompt), better.content, worse.content
    better_text, worse_text = to_response(chosen, chosen_name), to_response(rejected, rejected_name)
    if given is not None:
        return without_answer(to_prompt_turns(given, prompt)), better_text, worse_text
    require_no_prompt_elsewhere(row, prompt, chosen_name, rejected_name)
    return _shared_beginning(better_text, worse_text)


def _list_of_messages(value: Any) -> Any:
    return list_in_text(value, "a response") if isinstance(value, str) and is_messages_as_text(value) else value


def _prompt_before(row: Row, before: Turns, given: Any, name: str) -> Turns:
    """The prompt that both sides begin with, or the prompt column where they hold no more than its end."""
    if not before and given is None:
        raise BadRow("chosen and rejected share no prompt, and there is no prompt column", *_candidates(row))
    if given is None:
        return before
    turns = without_answer(to_prompt_turns(given, name))
    if not before or turns[len(turns) - len(before) :] == before:
        return turns
    for message in turns:
        text = message.content.strip()
        if not any(text in other.content or other.content.strip() in text for other in before):
            raise BadRow(f"{name} is not in the conversation of chosen and rejected", repr(text[:40]))
    return before


def require_no_prompt_elsewhere(row: Row, *used: str) -> None:
    """Raises BadRow where another column could hold the prompt: it must not be guessed then."""
    if used[0] in row and is_blank(row[used[0]]):
        raise BadRow("a needed column is empty", used[0])
    detail, columns = _candidates(row)
    if detail:
        raise BadRow("chosen and rejected stand without a prompt column", detail, columns)


def _candidates(row: Row) -> tuple[str, str]:
    """("is it question?", "prompt=question") for the columns that could hold the prompt; ("", "") for none."""
    names = [name for name, value in row.items() if _could_be_prompt(name, value)]
    return (f"is it {' or '.join(names[:4])}?", f"prompt={names[0]}") if names else ("", "")


def _could_be_prompt(name: str, value: Any) -> bool:
    lowered, meaning = name.lower(), column_meaning(name)
    if "chosen" in lowered or "rejected" in lowered or NO_PROMPT.intersection(name_words(name)):
        return False
    if meaning == "metadata":  # such as a topic, which may be a question
        return isinstance(value, str) and len(value.split()) >= SENTENCE
    if meaning not in (None, "context", "history", "speaker"):
        return False
    return not is_blank(value) and isinstance(value, str | list | tuple | dict)


def _shared_beginning(chosen: str, rejected: str) -> tuple[Turns, str, str]:
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
    return (Message("user", chosen[:end].strip()),), chosen[end:].strip(), rejected[end:].strip()


# ---------------------------------------------------------------------------------------------------------------------
# HH-RLHF: whole dialogues that differ in their last answer


def is_context_pair(row: Row) -> bool:
    """Whether `context` holds the conversation; a text may be what a question is about."""
    return isinstance(row["context"], list | tuple)


def is_hh_pair(row: Row) -> bool:
    """Whether a side is a text in HH-RLHF's form."""
    chosen, rejected = row["chosen"], row["rejected"]
    return (isinstance(chosen, str) and is_hh_dialogue(chosen)) or (
        isinstance(rejected, str) and is_hh_dialogue(rejected)
    )


def hh_pair(row: Row, chosen: str, rejected: str) -> list[Draft]:
    return _pair(row, *_hh_turns_and_sides(row, chosen, rejected))


def hh_prompt(row: Row, chosen: str, rejected: str) -> list[Turns]:
    return [_hh_turns_and_sides(row, chosen, rejected)[0]]


def _hh_turns_and_sides(row: Row, *names: str) -> tuple[Turns, str, str]:
    (before, chosen), (before_rejected, rejected) = (_hh_split(row[name], name) for name in names)
    # the same turns may be spaced differently
    if before != before_rejected and hh_messages(before) != hh_messages(before_rejected):
        raise BadRow("chosen and rejected differ before their last message")
    return hh_messages(before), chosen, rejected


def _hh_split(value: Any, name: str) -> tuple[str, str]:
    """(the dialogue before the last answer, that answer)."""
    if not isinstance(value, str) or not is_hh_dialogue(value):
        raise BadRow(f"{name} is not a dialogue of Human: and Assistant:")
    before, _, answer = value.rpartition(ASSISTANT_MARK)
    if "\n\nHuman:" in answer:
        raise BadRow(f"{name} does not end with an assistant's message")
    return before.strip(), require_text(answer.strip(), f"the {name}")
