"""From a row of a known format to its records: its drafts, completed and judged by what its other columns say."""

from functools import lru_cache
from typing import Any, NamedTuple

from lora_rlhf.data.formats import Format, RecordKind, format_named
from lora_rlhf.data.messages import (
    NOT_READ,
    PARTS,
    VERDICTS,
    Row,
    is_hh_dialogue,
    is_thought,
    joined_parts,
    list_in_text,
    require_no_media,
    to_turns,
)
from lora_rlhf.data.names import Meaning, column_meaning
from lora_rlhf.data.readers import Draft, conversation_turns
from lora_rlhf.data.recognise import other_kind
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking, Text, Turns, require_text
from lora_rlhf.data.verdicts import find_verdict, is_blank, is_learned, to_number

Others = tuple[tuple[str, Meaning | None], ...]  # columns that the format does not use, with what their names say
Record = Demonstration | Ranking | Prompt | Text

UNPAIRED, SCORED = format_named("unpaired"), format_named("scored")
# Columns that hold the prompt in many formats: beside another that does, such a column is a part of the prompt too.
PROMPT_NAMES = frozenset("prompt instruction instructions question query problem user_prompt user_input".split())
# Kept with a prompt: what a reward function compares responses with, and the questions that follow.
KEPT_WITH_PROMPTS = frozenset(("answer", "solution", "question_id", "turns"))


class Grade(NamedTuple):
    """How good a row's columns call its one answer: by a verdict (1 good, 0 bad) or by a score."""

    value: float
    is_verdict: bool
    columns: tuple[str, ...]

    @property
    def format(self) -> Format:
        """The format that such rows are counted as."""
        return UNPAIRED if self.is_verdict else SCORED


def grade_of(base: Format, row: Row) -> Grade | None:
    """What the columns beside an answer say of it; None if nothing. BadRow if a verdict cannot be understood."""
    if not base.is_answer:
        return None
    columns = _grading(base, tuple(row))
    if not columns:
        return None
    verdicts = [
        find_verdict(name, meaning, row[name])
        for name, meaning in columns
        if meaning in VERDICTS or isinstance(row[name], bool)
    ]
    known = [verdict for verdict in verdicts if verdict is not None]
    if known:
        return Grade(float(all(known)), True, tuple(name for name, _ in columns))
    scores = [to_number(row[name]) for name, meaning in columns if meaning in ("score", "rating")]
    numbers = [score for score in scores if score is not None]
    return Grade(numbers[0], False, tuple(name for name, _ in columns)) if len(numbers) == 1 else None


@lru_cache(maxsize=1024)
def _grading(base: Format, names: tuple[str, ...]) -> tuple[tuple[str, Meaning], ...]:
    meanings = ((name, column_meaning(name)) for name in names if name not in base.columns)
    return tuple((name, meaning) for name, meaning in meanings if meaning in (*VERDICTS, "score"))


def drafts_of(format: Format, row: Row, kind: RecordKind, is_named: bool = False) -> list[Draft]:
    """The row's drafts, with the parts of the conversation that stand in other columns. BadRow if it cannot be used.

    is_named: a person named the format, and so decided between two columns that could be the prompt.
    """
    if kind not in format.readers:
        raise other_kind(format, kind)
    others = _others(format, tuple(row))
    if others:
        _require_readable(row, others, kind, format)
    read = format.readers[kind](row, *format.required)
    drafts = [Draft(turns, ()) for turns in dict.fromkeys(read)] if kind == "prompts" else read
    if others:
        drafts = [draft._replace(turns=_completed(draft.turns, row, others)) for draft in drafts]
        for name, _ in others:
            if name in PROMPT_NAMES and not is_named and len(drafts) == 1 and not is_blank(row[name]):
                _require_said(drafts[0].turns, row[name], name)
    for draft in drafts:
        for message in draft.turns:
            if message.role == "user" and "<" in message.content:
                require_no_media(message.content)
    if not drafts:
        raise BadRow(f"the row holds no {kind}")
    return drafts


def record_of(draft: Draft, kind: RecordKind) -> Prompt | Demonstration | Ranking:
    """The record that a draft becomes. BadRow if it is none."""
    prompt = Prompt(draft.turns)
    if kind == "prompts":
        return prompt
    if draft.ranks is None:
        return Demonstration(prompt, draft.answers[0])
    return Ranking(prompt, draft.answers, draft.ranks, draft.labeler)


def ranking_of(row: Row) -> Ranking:
    """The ranking of a row in this project's own columns: prompt, responses and ranks."""
    format = format_named("ranking")
    ranking = record_of(drafts_of(format, row, "rankings")[0], "rankings")
    assert isinstance(ranking, Ranking)
    return ranking


def texts_of(format: Format, row: Row) -> list[Text]:
    """The texts of a row."""
    return [Text(text) for text in format.readers["texts"](row, *format.required)]


@lru_cache(maxsize=1024)
def unused_columns(format: Format, names: tuple[str, ...], kind: RecordKind) -> tuple[str, ...]:
    """The columns of a row of which nothing is read, to be kept with its prompt."""
    used = format.columns - KEPT_WITH_PROMPTS if kind == "prompts" else format.columns
    return tuple(name for name in names if name not in used and column_meaning(name) not in PARTS)


def is_grade(name: str, value: Any) -> bool:
    """Whether a column grades the row's answer, so that it need not be kept with its prompt."""
    meaning = column_meaning(name)
    if meaning in VERDICTS:
        return _verdict_or_none(name, meaning, value) is not None or to_number(value) is not None
    return meaning == "score" and to_number(value) is not None


# ---------------------------------------------------------------------------------------------------------------------
# what the other columns of a row say


@lru_cache(maxsize=1024)
def _others(format: Format, names: tuple[str, ...]) -> tuple[tuple[str, Meaning | None], ...]:
    """The columns that the format does not use and whose names say something, with what they say."""
    meanings = ((name, column_meaning(name)) for name in names if name not in format.columns)
    passive = [None, "metadata", "score", "speaker"]
    if format.name == "ranking":  # this project's own rows: what they keep of a prompt's row is not about its responses
        passive += [*VERDICTS, "thought", "weight"]
    return tuple((name, meaning) for name, meaning in meanings if meaning not in passive or name in PROMPT_NAMES)


def _require_readable(row: Row, others: Others, kind: RecordKind, format: Format) -> None:
    """Raises BadRow for a filled column that changes what the row means, and that is not read here."""
    for name, meaning in others:
        value = row[name]
        if meaning in VERDICTS:
            # of several answers no single verdict can tell which is bad; an answer alone is graded by `grade_of`
            if kind == "prompts" or format.is_answer:
                continue
            read = find_verdict if kind == "demonstrations" else _verdict_or_none
            if read(name, meaning, value) is False:
                raise BadRow("the row is labelled as bad", f"{name} is {value!r}"[:60], columns=f"ignore={name}")
        elif is_blank(value) or (isinstance(value, bool) and meaning in ("media", "thought", "tools")):
            continue
        elif meaning == "weight":
            if kind != "prompts" and not is_learned(name, value):
                raise BadRow("the row is marked as not to be learned", name, columns=f"ignore={name}")
        elif meaning == "thought":
            if kind != "prompts" and is_thought(value):
                raise BadRow(NOT_READ["thought"], f"column {name}", columns=f"ignore={name}")
        elif meaning in ("media", "tools"):
            if not (meaning == "media" and isinstance(value, int | float)):
                raise BadRow(NOT_READ[meaning], f"column {name}", columns=f"ignore={name}")
        elif meaning == "choices" and _lacks_choices(row, value, format):
            raise BadRow(NOT_READ["choices"], f"column {name}", columns=f"ignore={name}")


def _verdict_or_none(name: str, meaning: Meaning, value: Any) -> bool | None:
    try:
        return find_verdict(name, meaning, value)
    except BadRow:
        return None


def _lacks_choices(row: Row, value: Any, format: Format) -> bool:
    """Whether the choices of a question are not in its prompt."""
    value = list_in_text(value, "choices")
    texts = value.get("text", list(value.values())) if isinstance(value, dict) else value
    if not isinstance(texts, list | tuple) or "prompts" not in format.readers:
        return False
    prompts = " ".join(m.content for turns in format.readers["prompts"](row, *format.required) for m in turns)
    return not all(str(text) in prompts for text in texts)


def _require_said(turns: Turns, value: Any, name: str) -> None:
    """Raises BadRow for a second prompt, unless it says what the prompt says, or is made of it by a template."""
    text = value.strip() if isinstance(value, str) else ""
    said = [message.content.strip() for message in turns if message.role != "assistant"]
    if not any(text in content for content in said) and not all(content in text for content in said):
        raise BadRow("two columns hold a prompt", f"{name} is not what was read as one", columns=f"ignore={name}")


def _completed(turns: Turns, row: Row, others: Others) -> Turns:
    """The messages with the parts of the conversation in other columns: the system message, what was said before, and
    what the question is about.

    A part that the messages hold already is not written twice. BadRow for one that has no place in them.
    """
    for part in ("context", "history", "system"):
        for name, meaning in others:
            if meaning == part and not is_blank(row[name]):
                turns = _ADD[part](turns, row[name], name)
    return turns


def _with_context(turns: Turns, value: Any, name: str) -> Turns:
    """The question, and on a paragraph of its own what it is about."""
    if isinstance(value, list | tuple) and all(isinstance(text, str) for text in value):
        value = "\n\n".join(value)
    text = require_text(value, f"the {name}")
    if any(text.strip() in message.content for message in turns):
        return turns
    users = [index for index, message in enumerate(turns) if message.role == "user"]
    if len(users) != 1 or turns[-1].role != "user":
        raise BadRow("a column has no place in a conversation of several turns", name, columns=f"ignore={name}")
    question = turns[-1].content
    return (*turns[:-1], Message("user", f"{question}\n\n{text}" if question.strip() else text))


def _with_history(turns: Turns, value: Any, name: str) -> Turns:
    """The conversation before these messages, behind a system message."""
    history = _history(value, name)
    head = 1 if turns[:1] and turns[0].role == "system" else 0
    if history and history[0].role == "system":
        if head and turns[0] != history[0]:
            raise BadRow("the row has two system messages", name)
        turns, head = (turns if head else (history[0], *turns)), 1
        history = history[1:]
    said = turns[head:]
    if said[: len(history)] == history:
        return turns
    return (*turns[:head], *history, *said)


def _history(value: Any, name: str) -> Turns:
    """Pairs of what the user said and what the assistant answered, a list of messages, or a dialogue."""
    value = list_in_text(value, name)
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
    return conversation_turns(value, name)


def _with_system(turns: Turns, value: Any, name: str) -> Turns:
    """The system message before all others."""
    text = require_text(joined_parts(value), f"the {name}")
    if not text.strip():
        return turns
    if turns and turns[0].role == "system":
        if turns[0].content.strip() != text.strip():
            raise BadRow("the row has two system messages", name, columns=f"ignore={name}")
        return turns
    return (Message("system", text), *turns)


_ADD = {"context": _with_context, "history": _with_history, "system": _with_system}
assert set(_ADD) == set(PARTS)
