"""Which format a row is in, from its own columns and never from a file's name, and what to say of a row in none."""

import re
from functools import lru_cache
from typing import Any

from lora_rlhf.data.formats import COMMANDS, FORMATS, GRADED, Format, RecordKind
from lora_rlhf.data.messages import NOT_READ, PARTS, Row
from lora_rlhf.data.names import column_meaning, name_words
from lora_rlhf.data.refusals import BadRow, listed_names
from lora_rlhf.data.verdicts import is_blank, to_number

UNKNOWN = "no known format has these columns"
SEVERAL = "the row fits several formats"
BARE = ("prompt", "text")  # formats of one column, which rows of many other formats have too
ASKED = (
    "instruction",
    "question",
    "query",
    "problem",
)  # such formats that are recognised only where prompts are wanted
# Filled beside a prompt, they say that the row is no prompt alone.
BESIDE_PROMPT = frozenset("chosen rejected outputs target targets reply completions assistant gpt".split())
# So do the names of numbered answers: "response 1", output_b.
NUMBERED_ANSWER = re.compile(r"(response|answer|output|completion|reply)[ _-]?[0-9ab]", re.IGNORECASE)
# An empty one beside a prompt is an answer that is missing: such a row is no prompt alone.
ANSWER_COLUMNS = frozenset("completion response answer output chosen rejected responses messages".split())
# Words in names that speak for one role, to propose names by.
ROLE_WORDS = {
    "prompt": frozenset(
        "prompt question query instruction input user ask asked problem usrmsg human request task".split()
    ),
    "response": frozenset("response answer output completion reply target assistant solution bot truth".split()),
    "chosen": frozenset("chosen better preferred good winner accepted best positive".split()),
    "rejected": frozenset("rejected worse dispreferred bad loser poor worst negative".split()),
    "system": frozenset(("system", "persona", "rules")),
}
# Words in the names of columns that stand beside a text which is an answer, or a judgement of one.
ANSWER_WORDS = ROLE_WORDS["response"] | frozenset("answers model models review reviewer outputs completions".split())


def recognise(row: Any, kind: RecordKind | None) -> tuple[Format, ...]:
    """The formats that a row fits, the most specific only; () if none, several if its columns do not settle it.

    kind: only formats that can be read as it; None: all. A format that is known and cannot be used is among them where
    no other fits.
    """
    if not isinstance(row, dict):
        return ()
    filled = tuple(row) if None not in row.values() else tuple(name for name in row if row[name] is not None)
    empty = () if len(filled) == len(row) else tuple(name for name in row if row[name] is None)
    formats, is_settled = _by_columns(filled, empty, kind)
    if is_settled:
        return formats
    fitting = tuple([format for format in formats if format.matches is None or format.matches(row)])
    return fitting if len(fitting) == 1 else _most_specific(fitting)


@lru_cache(maxsize=1024)
def _by_columns(
    filled: tuple[str, ...], empty: tuple[str, ...], kind: RecordKind | None
) -> tuple[tuple[Format, ...], bool]:
    """(the formats whose columns are there, whether nothing remains to be asked of the values)."""
    has = frozenset(filled)
    formats = tuple(f for f in FORMATS if f.name not in GRADED and has.issuperset(f.required))
    formats = tuple(f for f in formats if f.unusable or kind is None or kind in f.readers)
    if kind != "prompts":
        formats = tuple(f for f in formats if f.name not in ASKED)
    if kind is None and "text" in has:  # which would be lost beside a prompt
        formats = tuple(f for f in formats if f.name != "prompt")
    if kind is None and (ANSWER_COLUMNS.intersection(empty) or any(map(_is_no_prompt, filled))):
        formats = tuple(f for f in formats if f.name != "prompt")
    if any(format.matches for format in formats):
        return formats, False
    return _most_specific(formats), True


def _is_no_prompt(name: str) -> bool:
    return name in BESIDE_PROMPT or NUMBERED_ANSWER.fullmatch(name) is not None


@lru_cache(maxsize=1024)
def _most_specific(formats: tuple[Format, ...]) -> tuple[Format, ...]:
    specific = tuple(format for format in formats if not any(_shadows(other, format) for other in formats))
    return tuple(format for format in specific if not format.unusable) or specific


def _shadows(b: Format, a: Format) -> bool:
    """Whether `b` explains all that makes a row an `a`, and more. Parts of the conversation are explained by all.

    Of two formats with the same columns, that explains more whose values have a form of their own.
    """
    if b.required == a.required:
        return b.matches is not None and a.matches is None
    explained = all(name in b.columns or column_meaning(name) in PARTS for name in a.required)
    return explained and not a.columns.issuperset(b.required)


# ---------------------------------------------------------------------------------------------------------------------
# what to say of a row that fits none


def unrecognised(row: Any, kind: RecordKind | None) -> BadRow:
    """Why `recognise` found nothing: a needed column is empty, or the row is another kind's, or no known format's."""
    if not isinstance(row, dict):
        return BadRow("the row is not an object with columns", f"got {type(row).__name__}")
    filled = [name for name, value in row.items() if value is not None]
    empty = [name for name, value in row.items() if value is None]
    also_empty = f"; empty: {listed_names(empty)}" if empty else ""
    if kind is None and "prompt" in filled and (missing := ANSWER_COLUMNS.intersection(empty)):
        return BadRow("a needed column is empty", ", ".join(sorted(missing)))
    if unfilled := _unfilled(row, kind):
        return BadRow("a needed column is empty", ", ".join(unfilled))
    # a prompt or a text beside columns that nobody knows is rather a row whose other columns are named differently
    others = [format for format in recognise(row, None) if len(filled) == 1 or format.name not in BARE]
    if kind is not None and others and not others[0].unusable:
        fault = other_kind(others[0], kind)
        return BadRow(fault.reason, fault.detail + also_empty)
    if "text" in filled and (kind in (None, "texts")) and len(filled) > 1:
        detail = f"beside it: {listed_names([name for name in filled if name != 'text'])}"
        reason = "the text is not alone: a file of the texts alone is read as pretraining text"
        may_be_prompt = kind != "texts" and "prompt" not in row and not any(map(_speaks_of_answers, row))
        return BadRow(reason, detail, columns="prompt=text" if may_be_prompt else "")
    return _without_format(row, kind, filled, also_empty)


def _without_format(row: Row, kind: RecordKind | None, filled: list[str], also_empty: str) -> BadRow:
    if {"role", "content"} <= row.keys() or {"from", "value"} <= row.keys():
        return BadRow("the row is a message, not a conversation", 'write {"messages": [...]} with all messages of one')
    for name in filled:
        meaning = column_meaning(name)
        if meaning in ("tools", "media") and isinstance(row[name], str | list) and not is_blank(row[name]):
            return BadRow(NOT_READ[meaning], f"column {name}")
    detail = f"found {listed_names(filled)}{also_empty}"
    nearest = _nearest(frozenset(filled), kind)
    if nearest and (nearest.lacks(row) or nearest.matches):
        if nearest.name == "ranking" and nearest.lacks(row) == ["ranks"]:
            return BadRow("responses without ranks: add ranks to each row, 1 for the best")
        detail += f"; nearest is {nearest.name}, which {_need(nearest, row)}"
    if kind != "prompts" and recognise(row, "prompts"):
        detail += f"; as prompts alone the rows are for {COMMANDS['prompts']}"
    return BadRow(UNKNOWN, detail, columns=_renaming(row, kind) or (_renaming(row, "prompts") if kind is None else ""))


def _renaming(row: Row, kind: RecordKind | None) -> str:
    """What --columns could say of a row of unknown columns: which could be the prompt, which the answers.

    Empty where two columns are as likely, or where names say nothing and there are more columns than needed.
    """
    roles = {"rankings": ("prompt", "chosen", "rejected"), "prompts": ("prompt",), "texts": ("text",)}
    wanted = roles.get(kind or "", ("prompt", "response"))
    texts = [name for name, value in row.items() if _is_said(value) and _may_be_named(name)]
    renamed: dict[str, str] = {}
    for role in (role for role in wanted if role not in row):
        free = [name for name in texts if name not in renamed.values() and name not in wanted]
        likely = [name for name in free if _likeness(role, name) > 0]
        if len(row) <= len(wanted):
            likely = [max(free, key=lambda name: _likeness(role, name))] if free else []
        if len(likely) != 1:
            return ""
        renamed[role] = likely[0]
    return ",".join(f"{role}={name}" for role, name in renamed.items())


def _is_said(value: Any) -> bool:
    """Whether a value could be what somebody said: a text, or a list of messages."""
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict)
    return isinstance(value, str) and bool(value.strip()) and to_number(value) is None


def _likeness(role: str, name: str) -> int:
    """1 for a name with a word of the role, -1 for one with a word of another, else 0."""
    words = name_words(name)
    others = set().union(*(known for other, known in ROLE_WORDS.items() if other != role))
    return bool(ROLE_WORDS.get(role, frozenset()).intersection(words)) - bool(others.intersection(words))


def _speaks_of_answers(name: str) -> bool:
    return not ANSWER_WORDS.isdisjoint(name_words(name))


def _may_be_named(name: str) -> bool:
    return column_meaning(name) in (None, "context") and "=" not in name and "," not in name


def other_format(format: Format, row: Row) -> BadRow:
    """Why a row is not of the format that was asked for."""
    return BadRow(
        f"the row is not of format {format.name}", f"it {_need(format, row)}; found {listed_names(list(row))}"
    )


def _need(format: Format, row: Row) -> str:
    lacking = format.lacks(row)
    return f"lacks {', '.join(lacking)}" if lacking else "needs values of another form"


def _unfilled(row: Row, kind: RecordKind | None) -> list[str]:
    """The columns that are there and empty, and without which the row is nothing of that kind."""
    lacking = [
        f.lacks(row)
        for f in FORMATS
        if (kind in f.readers if kind else len(f.required) > 2) and all(name in row for name in f.required)
    ]
    return min([names for names in lacking if names], key=len, default=[])


def other_kind(format: Format, wanted: RecordKind) -> BadRow:
    """Why a row of one kind is refused where another kind is wanted."""
    if format.unusable:
        return BadRow(format.unusable, f"format {format.name}")
    main = format.kinds[0]
    return BadRow(f"the row holds {main}, not {wanted}; {main} are for {COMMANDS[main]}", f"format {format.name}")


def _nearest(filled: frozenset[str], kind: RecordKind | None) -> Format | None:
    """The format with the largest share of its required columns there, and of those the one that knows most of the
    others; None if none has any. A format that lacks nothing comes last: its columns are not why it does not fit.
    """
    allowed = [
        f for f in FORMATS if (kind in f.readers if kind else f.readers) and (kind == "prompts" or f.name not in ASKED)
    ]

    def nearness(format: Format) -> tuple[bool, float, int]:
        share = len(filled & set(format.required)) / len(format.required)
        return 0 < share < 1, share, len(filled & format.columns)

    best = max(allowed, key=nearness)
    return best if filled & set(best.required) else None
