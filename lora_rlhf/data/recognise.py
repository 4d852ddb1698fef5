"""Finds the format of a row from its columns, never from a file's name, and explains why a row has none."""

import re
from functools import lru_cache
from typing import Any

from lora_rlhf.data.formats import COMMANDS, FORMATS, GRADED_FORMATS, Format, RecordKind
from lora_rlhf.data.messages import NOT_READ, PARTS, Row
from lora_rlhf.data.names import column_meaning, name_words
from lora_rlhf.data.refusals import BadRow, listed_names
from lora_rlhf.data.verdicts import is_blank, to_number

UNKNOWN = "no known format has these columns"
SEVERAL = "the row fits several formats"
SINGLE_COLUMN_FORMATS = ("prompt", "text")  # formats of one column, which rows of many other formats have too
QUESTION_FORMATS = (
    "instruction",
    "question",
    "query",
    "problem",
)  # such formats that are recognised only where prompts are wanted
# A row with a prompt and one of these, filled, is more than a prompt.
BESIDE_PROMPT = frozenset("chosen rejected outputs target targets reply completions assistant gpt".split())
# Names of numbered answers, which mean the same: "response 1", output_b.
NUMBERED_ANSWER = re.compile(r"(response|answer|output|completion|reply)[ _-]?[0-9ab]", re.IGNORECASE)
# A row with a prompt and one of these, empty, lacks its answer: it is not meant as a prompt alone.
ANSWER_COLUMNS = frozenset("completion response answer output chosen rejected responses messages".split())
# Words of names that are likely to mean one column, for suggestions.
WORDS_BY_COLUMN = {
    "prompt": frozenset(
        "prompt question query instruction input user ask asked problem usrmsg human request task".split()
    ),
    "response": frozenset("response answer output completion reply target assistant solution bot truth".split()),
    "chosen": frozenset("chosen better preferred good winner accepted best positive".split()),
    "rejected": frozenset("rejected worse dispreferred bad loser poor worst negative".split()),
    "system": frozenset(("system", "persona", "rules")),
}
# Words in the names of columns for an answer, or for a judgement of one.
ANSWER_WORDS = WORDS_BY_COLUMN["response"] | frozenset(
    "answers model models review reviewer outputs completions".split()
)


def recognise_formats(row: Any, kind: RecordKind | None) -> tuple[Format, ...]:
    """The most specific formats of a row: () if it has none, several if its columns do not decide it.

    kind: only formats that can be read as it; None: all. A known format that cannot be used is returned only if no
    other format has these columns.
    """
    if not isinstance(row, dict):
        return ()
    filled = tuple(row) if None not in row.values() else tuple(name for name in row if row[name] is not None)
    empty = () if len(filled) == len(row) else tuple(name for name in row if row[name] is None)
    formats, is_settled = _formats_with_columns(filled, empty, kind)
    if is_settled:
        return formats
    fitting = tuple([format for format in formats if format.has_valid_values is None or format.has_valid_values(row)])
    return fitting if len(fitting) == 1 else _most_specific_formats(fitting)


@lru_cache(maxsize=1024)
def _formats_with_columns(
    filled: tuple[str, ...], empty: tuple[str, ...], kind: RecordKind | None
) -> tuple[tuple[Format, ...], bool]:
    """(the formats whose columns are filled, whether the values need not be looked at)."""
    columns = frozenset(filled)
    formats = tuple(f for f in FORMATS if f.name not in GRADED_FORMATS and columns.issuperset(f.required))
    formats = tuple(f for f in formats if f.unusable_reason or kind is None or kind in f.readers)
    if kind != "prompts":
        formats = tuple(f for f in formats if f.name not in QUESTION_FORMATS)
    if kind is None and "text" in columns:  # the text would be lost
        formats = tuple(f for f in formats if f.name != "prompt")
    if kind is None and (ANSWER_COLUMNS.intersection(empty) or any(map(_is_no_prompt, filled))):
        formats = tuple(f for f in formats if f.name != "prompt")
    if any(format.has_valid_values for format in formats):
        return formats, False
    return _most_specific_formats(formats), True


def _is_no_prompt(name: str) -> bool:
    return name in BESIDE_PROMPT or NUMBERED_ANSWER.fullmatch(name) is not None


@lru_cache(maxsize=1024)
def _most_specific_formats(formats: tuple[Format, ...]) -> tuple[Format, ...]:
    """The formats without those that another one of them makes superfluous; unusable ones only if they are alone."""
    specific = tuple(format for format in formats if not any(_is_more_specific(other, format) for other in formats))
    return tuple(format for format in specific if not format.unusable_reason) or specific


def _is_more_specific(format: Format, other_format: Format) -> bool:
    """Whether `format` has all required columns of `other_format`, and more of its own.

    Columns that are parts of the conversation (system, history, context) do not count. Of two formats with the same
    required columns, the one that looks at the values is more specific.
    """
    if format.required == other_format.required:
        return format.has_valid_values is not None and other_format.has_valid_values is None
    explains_all = all(name in format.columns or column_meaning(name) in PARTS for name in other_format.required)
    return explains_all and not other_format.columns.issuperset(format.required)


# ---------------------------------------------------------------------------------------------------------------------
# why a row has no format


def explain_unrecognised_row(row: Any, kind: RecordKind | None) -> BadRow:
    """Why `recognise_formats` found no format: an empty column, another kind of record, or unknown columns."""
    if not isinstance(row, dict):
        return BadRow("the row is not an object with columns", f"got {type(row).__name__}")
    filled = [name for name, value in row.items() if value is not None]
    empty = [name for name, value in row.items() if value is None]
    also_empty = f"; empty: {listed_names(empty)}" if empty else ""
    if kind is None and "prompt" in filled and (missing := ANSWER_COLUMNS.intersection(empty)):
        return BadRow("a needed column is empty", ", ".join(sorted(missing)))
    if unfilled := _empty_required_columns(row, kind):
        return BadRow("a needed column is empty", ", ".join(unfilled))
    # a prompt or a text with unknown columns is probably a row whose other columns have other names
    others = [
        format
        for format in recognise_formats(row, None)
        if len(filled) == 1 or format.name not in SINGLE_COLUMN_FORMATS
    ]
    if kind is not None and others and not others[0].unusable_reason:
        fault = explain_other_kind(others[0], kind)
        return BadRow(fault.reason, fault.detail + also_empty)
    if "text" in filled and (kind in (None, "texts")) and len(filled) > 1:
        detail = f"beside it: {listed_names([name for name in filled if name != 'text'])}"
        reason = "the text is not alone: a file of the texts alone is read as pretraining text"
        may_be_prompt = kind != "texts" and "prompt" not in row and not any(map(_is_about_answers, row))
        return BadRow(reason, detail, columns="prompt=text" if may_be_prompt else "")
    return _explain_unknown_columns(row, kind, filled, also_empty)


def _explain_unknown_columns(row: Row, kind: RecordKind | None, filled: list[str], also_empty: str) -> BadRow:
    """The fault of a row whose columns no format has, with the nearest format and a suggestion for --columns."""
    if {"role", "content"} <= row.keys() or {"from", "value"} <= row.keys():
        return BadRow(
            "the row is a message, not a conversation",
            'write {"messages": [...]} with all messages of the conversation',
        )
    for name in filled:
        meaning = column_meaning(name)
        if meaning in ("tools", "media") and isinstance(row[name], str | list) and not is_blank(row[name]):
            return BadRow(NOT_READ[meaning], f"column {name}")
    detail = f"found {listed_names(filled)}{also_empty}"
    nearest = _nearest_format(frozenset(filled), kind)
    if nearest and (nearest.missing_columns(row) or nearest.has_valid_values):
        if nearest.name == "ranking" and nearest.missing_columns(row) == ["ranks"]:
            return BadRow("responses without ranks: add ranks to each row, 1 for the best")
        detail += f"; nearest is {nearest.name}, which {_describe_need(nearest, row)}"
    if kind != "prompts" and recognise_formats(row, "prompts"):
        detail += f"; as prompts alone the rows are for {COMMANDS['prompts']}"
    return BadRow(
        UNKNOWN,
        detail,
        columns=_suggest_columns_flag(row, kind) or (_suggest_columns_flag(row, "prompts") if kind is None else ""),
    )


def _suggest_columns_flag(row: Row, kind: RecordKind | None) -> str:
    """A value for --columns for a row of unknown columns, such as "prompt=ask,response=reply".

    "" if two columns are equally likely, or if the names tell nothing and there are more columns than needed.
    """
    columns_by_kind = {"rankings": ("prompt", "chosen", "rejected"), "prompts": ("prompt",), "texts": ("text",)}
    known_columns = columns_by_kind.get(kind or "", ("prompt", "response"))
    text_columns = [name for name, value in row.items() if _is_text_or_messages(value) and _can_be_suggested(name)]
    column_by_known_name: dict[str, str] = {}
    for known_column in (known_column for known_column in known_columns if known_column not in row):
        free_columns = [
            name for name in text_columns if name not in column_by_known_name.values() and name not in known_columns
        ]
        likely = [name for name in free_columns if _name_likeness(known_column, name) > 0]
        if len(row) <= len(known_columns):
            likely = [max(free_columns, key=lambda name: _name_likeness(known_column, name))] if free_columns else []
        if len(likely) != 1:
            return ""
        column_by_known_name[known_column] = likely[0]
    return ",".join(f"{known_column}={name}" for known_column, name in column_by_known_name.items())


def _is_text_or_messages(value: Any) -> bool:
    """Whether a value could be a prompt or an answer: a text, or a list of messages."""
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict)
    return isinstance(value, str) and bool(value.strip()) and to_number(value) is None


def _name_likeness(known_column: str, name: str) -> int:
    """1 for a name with a word of the known column, -1 for a name with a word of another one, else 0."""
    words = name_words(name)
    other_words = set().union(
        *(column_words for other_column, column_words in WORDS_BY_COLUMN.items() if other_column != known_column)
    )
    return bool(WORDS_BY_COLUMN.get(known_column, frozenset()).intersection(words)) - bool(
        other_words.intersection(words)
    )


def _is_about_answers(name: str) -> bool:
    """Whether a column's name has a word for an answer or for a judgement of one."""
    return not ANSWER_WORDS.isdisjoint(name_words(name))


def _can_be_suggested(name: str) -> bool:
    """Whether a column's name may be used in a suggestion for --columns."""
    return column_meaning(name) in (None, "context") and "=" not in name and "," not in name


def explain_other_format(format: Format, row: Row) -> BadRow:
    """Why a row does not have the format that --format names."""
    return BadRow(
        f"the row is not of format {format.name}", f"it {_describe_need(format, row)}; found {listed_names(list(row))}"
    )


def _describe_need(format: Format, row: Row) -> str:
    """A part of a message: the columns that the row lacks for the format."""
    missing_columns = format.missing_columns(row)
    return f"lacks {', '.join(missing_columns)}" if missing_columns else "needs values of another form"


def _empty_required_columns(row: Row, kind: RecordKind | None) -> list[str]:
    """The empty columns of the format of this kind that lacks the fewest; [] if no format has all its columns."""
    missing_columns = [
        f.missing_columns(row)
        for f in FORMATS
        if (kind in f.readers if kind else len(f.required) > 2) and all(name in row for name in f.required)
    ]
    return min([names for names in missing_columns if names], key=len, default=[])


def explain_other_kind(format: Format, kind: RecordKind) -> BadRow:
    """Why a row of this format is refused: its records are of another kind than `kind`."""
    if format.unusable_reason:
        return BadRow(format.unusable_reason, f"format {format.name}")
    main_kind = format.kinds[0]
    return BadRow(
        f"the row holds {main_kind}, not {kind}; {main_kind} are for {COMMANDS[main_kind]}", f"format {format.name}"
    )


def _nearest_format(filled: frozenset[str], kind: RecordKind | None) -> Format | None:
    """The format of which the row has the largest share of required columns; None if it has no such column.

    Of equal shares the format that knows most of the other columns. A format whose columns are all there comes last:
    the columns are not the reason why the row does not have it.
    """
    allowed = [
        f
        for f in FORMATS
        if (kind in f.readers if kind else f.readers) and (kind == "prompts" or f.name not in QUESTION_FORMATS)
    ]

    def closeness(format: Format) -> tuple[bool, float, int]:
        share = len(filled & set(format.required)) / len(format.required)
        return 0 < share < 1, share, len(filled & format.columns)

    best = max(allowed, key=closeness)
    return best if filled & set(best.required) else None
