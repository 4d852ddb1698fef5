"""From a row of a known format to its records: its drafts, with what its other columns add to them."""

from functools import lru_cache
from typing import Any, NamedTuple

from lora_rlhf.data.formats import Format, RecordKind, find_format
from lora_rlhf.data.messages import (
    NOT_READ,
    PARTS,
    VERDICTS,
    Row,
    add_thought,
    is_hh_dialogue,
    is_thought,
    join_parts,
    parse_list_in_text,
    require_no_media,
    to_turns,
)
from lora_rlhf.data.names import Meaning, column_meaning
from lora_rlhf.data.readers import Draft, to_conversation
from lora_rlhf.data.recognise import explain_other_kind
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking, StepLabels, Text, Turns, require_text
from lora_rlhf.data.tools import TOOLS_COLUMNS, read_tools, tool_names
from lora_rlhf.data.verdicts import find_verdict, is_blank, is_learned, to_number

ColumnMeanings = tuple[tuple[str, Meaning | None], ...]  # (column that the format does not use, its meaning)
Record = Demonstration | Ranking | StepLabels | Prompt | Text

UNPAIRED, SCORED = find_format("unpaired"), find_format("scored")
# Columns that hold the prompt in many formats. Of two such columns one may hold a part of the prompt.
PROMPT_NAMES = frozenset("prompt instruction instructions question query problem user_prompt user_input".split())
# Saved with a prompt: the reference of a reward function, and the questions that follow.
COLUMNS_FOR_PROMPTS = frozenset(("answer", "solution", "question_id", "turns"))


class Grade(NamedTuple):
    """How good the row's columns say its one answer is: a verdict (1 good, 0 bad) or a score."""

    value: float
    is_verdict: bool
    columns: tuple[str, ...]

    @property
    def format(self) -> Format:
        """The format as which these rows are counted."""
        return UNPAIRED if self.is_verdict else SCORED


def find_grade(format: Format, row: Row) -> Grade | None:
    """The grade of a row's one answer by its other columns; None if they say nothing. BadRow for an unknown verdict."""
    if not format.has_one_answer:
        return None
    columns = _grading_columns(format, tuple(row))
    if not columns:
        return None
    verdicts = [
        find_verdict(name, meaning, row[name])
        for name, meaning in columns
        if meaning in VERDICTS or isinstance(row[name], bool)
    ]
    given_verdicts = [verdict for verdict in verdicts if verdict is not None]
    if given_verdicts:
        return Grade(float(all(given_verdicts)), True, tuple(name for name, _ in columns))
    scores = [to_number(row[name]) for name, meaning in columns if meaning in ("score", "rating")]
    numbers = [score for score in scores if score is not None]
    return Grade(numbers[0], False, tuple(name for name, _ in columns)) if len(numbers) == 1 else None


@lru_cache(maxsize=1024)
def _grading_columns(format: Format, names: tuple[str, ...]) -> tuple[tuple[str, Meaning], ...]:
    """(column, meaning) of the columns that may grade the answer."""
    meanings = ((name, column_meaning(name)) for name in names if name not in format.columns)
    return tuple((name, meaning) for name, meaning in meanings if meaning in (*VERDICTS, "score"))


def make_drafts(format: Format, row: Row, kind: RecordKind, is_named: bool = False) -> list[Draft]:
    """The row's drafts, with the parts of the conversation that are in other columns. BadRow if it cannot be used.

    is_named: the user named the format, and so decided between two columns that could be the prompt.
    """
    if kind not in format.readers:
        raise explain_other_kind(format, kind)
    column_meanings = _meaningful_columns(format, tuple(row))
    if column_meanings:
        _require_usable_columns(row, column_meanings, kind, format)
    values = format.readers[kind](row, *format.required)
    drafts = [Draft(turns, ()) for turns in dict.fromkeys(values)] if kind == "prompts" else values
    if column_meanings:
        drafts = [draft._replace(turns=_add_columns(draft.turns, row, column_meanings)) for draft in drafts]
        if kind == "demonstrations":
            drafts = [_add_thoughts(draft, row, column_meanings) for draft in drafts]
        drafts = [_add_tools(draft, row, column_meanings) for draft in drafts]
        for name, _ in column_meanings:
            if name in PROMPT_NAMES and not is_named and len(drafts) == 1 and not is_blank(row[name]):
                _require_one_prompt(drafts[0].turns, row[name], name)
    for draft in drafts:
        for message in draft.turns:
            if message.role == "user" and "<" in message.content:
                require_no_media(message.content)
    if not drafts:
        raise BadRow(f"the row holds no {kind}")
    return drafts


def make_record(draft: Draft, kind: RecordKind) -> Prompt | Demonstration | Ranking | StepLabels:
    """The record of a draft. BadRow if it is not valid."""
    prompt = Prompt(draft.turns, tools=draft.tools)
    if kind == "prompts":
        return prompt
    if kind == "steps":
        return StepLabels(prompt, draft.answers, draft.ranks, draft.ended)
    if draft.ranks is None:
        return Demonstration(prompt, draft.answers[0], draft.tool_calls)
    return Ranking(prompt, draft.answers, draft.ranks, draft.labeler, draft.ended)


def read_ranking_row(row: Row) -> Ranking:
    """The ranking of a row in this project's own columns: prompt, responses and ranks."""
    format = find_format("ranking")
    ranking = make_record(make_drafts(format, row, "rankings")[0], "rankings")
    assert isinstance(ranking, Ranking)
    return ranking


def make_texts(format: Format, row: Row) -> list[Text]:
    """The texts of a row."""
    return [Text(text) for text in format.readers["texts"](row, *format.required)]


@lru_cache(maxsize=1024)
def unused_columns(format: Format, names: tuple[str, ...], kind: RecordKind) -> tuple[str, ...]:
    """The columns of a row of which nothing is read; the prompt's meta keeps them."""
    used = format.columns - COLUMNS_FOR_PROMPTS if kind == "prompts" else format.columns
    used = used.union(TOOLS_COLUMNS)
    return tuple(name for name in names if name not in used and column_meaning(name) not in PARTS)


def is_grade_column(name: str, value: Any) -> bool:
    """Whether a column grades the row's answer; the prompt's meta does not keep it."""
    meaning = column_meaning(name)
    if meaning in VERDICTS:
        # an empty one stands beside a correction; beside the answer alone it would be a reason to refuse the row
        return value is None or _verdict_or_none(name, meaning, value) is not None or to_number(value) is not None
    return meaning == "score" and to_number(value) is not None


# ---------------------------------------------------------------------------------------------------------------------
# the other columns of a row


@lru_cache(maxsize=1024)
def _meaningful_columns(format: Format, names: tuple[str, ...]) -> tuple[tuple[str, Meaning | None], ...]:
    """(column, meaning) of the columns that the format does not use and whose names tell something."""
    meanings = ((name, column_meaning(name)) for name in names if name not in format.columns)
    ignored_meanings = [None, "metadata", "score", "speaker"]
    if format.name == "ranking":
        # this project's own rows: their other columns come from the prompt's row and say nothing about the responses
        ignored_meanings += [*VERDICTS, "thought", "weight"]
    return tuple(
        (name, meaning) for name, meaning in meanings if meaning not in ignored_meanings or name in PROMPT_NAMES
    )


def _require_usable_columns(row: Row, column_meanings: ColumnMeanings, kind: RecordKind, format: Format) -> None:
    """Raises BadRow for a filled column that changes what the row means and that is not read here."""
    for name, meaning in column_meanings:
        value = row[name]
        if meaning in VERDICTS:
            # one verdict cannot tell which of several answers is bad; `find_grade` handles a single answer
            is_correction = format.name == "correction"  # what a user corrects they have not found good
            if kind == "prompts" or format.has_one_answer or (is_correction and value is None):
                continue
            find_column_verdict = find_verdict if kind == "demonstrations" else _verdict_or_none
            if find_column_verdict(name, meaning, value) is False and not is_correction:
                raise BadRow("the row is labelled as bad", f"{name} is {value!r}"[:60], columns=f"ignore={name}")
        elif is_blank(value) or (isinstance(value, bool) and meaning in ("media", "thought", "tools")):
            continue
        elif meaning == "weight":
            if kind != "prompts" and not is_learned(name, value):
                raise BadRow("the row is marked as not to be learned", name, columns=f"ignore={name}")
        elif meaning == "thought":
            if kind == "rankings" and is_thought(value):
                raise BadRow(NOT_READ["thought"], f"column {name}", columns=f"ignore={name}")
        elif meaning in ("media", "tools"):
            if name not in TOOLS_COLUMNS and not (meaning == "media" and isinstance(value, int | float)):
                raise BadRow(NOT_READ[meaning], f"column {name}", columns=f"ignore={name}")
        elif meaning == "choices" and _is_missing_choices(row, value, format):
            raise BadRow(NOT_READ["choices"], f"column {name}", columns=f"ignore={name}")


def _verdict_or_none(name: str, meaning: Meaning, value: Any) -> bool | None:
    """`find_verdict`, with None for a value that is not known."""
    try:
        return find_verdict(name, meaning, value)
    except BadRow:
        return None


def _is_missing_choices(row: Row, value: Any, format: Format) -> bool:
    """Whether the choices of a question are not in its prompt."""
    value = parse_list_in_text(value, "choices")
    texts = value.get("text", list(value.values())) if isinstance(value, dict) else value
    if not isinstance(texts, list | tuple) or "prompts" not in format.readers:
        return False
    prompts = " ".join(m.content for turns in format.readers["prompts"](row, *format.required) for m in turns)
    return not all(str(text) in prompts for text in texts)


def _require_one_prompt(turns: Turns, value: Any, name: str) -> None:
    """Raises BadRow for a second prompt, unless one of both contains the other (as a template's output does)."""
    text = value.strip() if isinstance(value, str) else ""
    contents = [message.content.strip() for message in turns if message.role != "assistant"]
    if not any(text in content for content in contents) and not all(content in text for content in contents):
        raise BadRow("two columns hold a prompt", f"{name} is not what was read as one", columns=f"ignore={name}")


def _add_columns(turns: Turns, row: Row, column_meanings: ColumnMeanings) -> Turns:
    """The messages with the parts of the conversation in other columns: system message, history, context.

    A part that the messages contain already is not added again. BadRow for a part that cannot be added.
    """
    for part in ("context", "history", "system"):
        for name, meaning in column_meanings:
            if meaning == part and not is_blank(row[name]):
                turns = _ADD_BY_MEANING[part](turns, row[name], name)
    return turns


def _add_thoughts(draft: Draft, row: Row, column_meanings: ColumnMeanings) -> Draft:
    """The draft of a demonstration with the thought in another column before its answer."""
    for name, meaning in column_meanings:
        if meaning == "thought" and is_thought(row[name]):
            draft = draft._replace(answers=(add_thought(row[name], draft.answers[0], name),))
    return draft


def _add_tools(draft: Draft, row: Row, column_meanings: ColumnMeanings) -> Draft:
    """The draft with the tools in another column, unless its system message contains them (their names) already."""
    for name, _ in column_meanings:
        if name in TOOLS_COLUMNS and not is_blank(row[name]) and not isinstance(row[name], bool):
            tools = read_tools(row[name], name)
            if draft.tools not in ("", tools):
                raise BadRow("two columns hold tools", name, columns=f"ignore={name}")
            system = draft.turns[0].content if draft.turns and draft.turns[0].role == "system" else ""
            if not all(f'"{tool}"' in system for tool in tool_names(tools)):
                draft = draft._replace(tools=tools)
    return draft


def _add_context(turns: Turns, value: Any, name: str) -> Turns:
    """The messages with the context as a new paragraph of the question."""
    if isinstance(value, list | tuple) and all(isinstance(text, str) for text in value):
        value = "\n\n".join(value)
    text = require_text(value, f"the {name}")
    if any(text.strip() in message.content for message in turns):
        return turns
    user_indices = [index for index, message in enumerate(turns) if message.role == "user"]
    if len(user_indices) != 1 or turns[-1].role != "user":
        raise BadRow("a column has no place in a conversation of several turns", name, columns=f"ignore={name}")
    question = turns[-1].content
    return (*turns[:-1], Message("user", f"{question}\n\n{text}" if question.strip() else text))


def _add_history(turns: Turns, value: Any, name: str) -> Turns:
    """The messages with the history before them, after a system message."""
    history = _parse_history(value, name)
    num_system = 1 if turns[:1] and turns[0].role == "system" else 0
    if history and history[0].role == "system":
        if num_system and turns[0] != history[0]:
            raise BadRow("the row has two system messages", name)
        turns, num_system = (turns if num_system else (history[0], *turns)), 1
        history = history[1:]
    later_turns = turns[num_system:]
    if later_turns[: len(history)] == history:
        return turns
    return (*turns[:num_system], *history, *later_turns)


def _parse_history(value: Any, name: str) -> Turns:
    """The messages of a history: pairs of question and answer, a list of messages, or a dialogue."""
    value = parse_list_in_text(value, name)
    if isinstance(value, str):
        if not is_hh_dialogue(value):
            raise BadRow(f"{name} is not a list of turns", "got text", columns=f"ignore={name}")
        return to_turns(value, name)
    if isinstance(value, list | tuple) and all(isinstance(pair, list | tuple) for pair in value):
        if not all(len(pair) == 2 for pair in value):
            raise BadRow(f"{name} is not a list of pairs")
        return tuple(
            Message(role, text) for pair in value for role, text in zip(("user", "assistant"), pair, strict=True)
        )
    return to_conversation(value, name)


def _add_system_message(turns: Turns, value: Any, name: str) -> Turns:
    """The messages with the system message before them."""
    text = require_text(join_parts(value), f"the {name}")
    if not text.strip():
        return turns
    if turns and turns[0].role == "system":
        if turns[0].content.strip() != text.strip():
            raise BadRow("the row has two system messages", name, columns=f"ignore={name}")
        return turns
    return (Message("system", text), *turns)


_ADD_BY_MEANING = {"context": _add_context, "history": _add_history, "system": _add_system_message}
assert set(_ADD_BY_MEANING) == set(PARTS)
