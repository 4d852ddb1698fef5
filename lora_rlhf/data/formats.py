"""Which format a row is in, told from its own columns and never from a file's name: one table of all formats.

To add a format: write a reader per kind in one of the readers' files, put a line into FORMATS, and a row into
docs/data.md (a test compares the two).
"""

import difflib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

from lora_rlhf.data import readers, readers_paired, readers_ranked, trees
from lora_rlhf.data.readers import Record, Row
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Prompt
from lora_rlhf.system.errors import UserError

RecordKind = Literal["demonstrations", "rankings", "prompts", "texts"]

COMMANDS: Mapping[RecordKind, str] = {
    "demonstrations": "lora-rlhf sft --demonstrations",
    "rankings": "lora-rlhf reward --rankings",
    "prompts": "lora-rlhf ppo --prompts",
    "texts": "lora-rlhf ppo --pretraining-text",
}

BARE = ("prompt", "text")  # formats of one column, which rows of many other formats have too
UNKNOWN = "no known format has these columns: rename them as docs/data.md shows, or give --format"
SHOWN_COLUMNS = 12  # of a row in a message, each cut to
SHOWN_CHARACTERS = 40


@dataclass(frozen=True, eq=False)
class Format:
    """How rows of one format are told apart and read.

    name: for --format. title: for people. required, optional: the columns that the readers use; a row fits when all
    required ones are there and not None, and `matches`, if given, accepts the values. readers: from a row to its
    records, by kind, the main kind first; they raise BadRow, and leave a prompt's meta and origin to the caller. Rows
    that stand next to each other with an equal `group` are merged into one by `merge` before they are read, a single
    one too.
    """

    name: str
    title: str
    required: tuple[str, ...]
    readers: Mapping[RecordKind, Callable[[Row], Sequence[Record]]]
    optional: tuple[str, ...] = ()
    matches: Callable[[Row], bool] | None = None
    group: Callable[[Row], Hashable] | None = None
    merge: Callable[[list[Row]], Row] | None = None

    @cached_property
    def columns(self) -> frozenset[str]:
        """All columns that the readers use: what else a row holds is kept in its prompt's meta."""
        return frozenset(self.required + self.optional)

    def lacks(self, row: Row) -> list[str]:
        """The required columns that are not there, or empty."""
        return [column for column in self.required if row.get(column) is None]

    def fits(self, row: Row) -> bool:
        """Whether the row has the required columns, filled, and values of the right form."""
        return not self.lacks(row) and (self.matches is None or self.matches(row))


# fmt: off
FORMATS: tuple[Format, ...] = (
    # demonstrations
    Format("prompt-completion", "TRL: prompt and completion", ("prompt", "completion"),
           {"demonstrations": readers.completion, "prompts": readers.prompt}, ("text",)),
    Format("prompt-response", "prompt and response", ("prompt", "response"),
           {"demonstrations": readers.response, "prompts": readers.prompt}, ("text",)),
    Format("messages", "TRL: a conversation that ends with the answer", ("messages",),
           {"demonstrations": readers.conversation, "prompts": readers.open_conversation}, ("prompt", "text")),
    Format("sharegpt", "ShareGPT: a conversation of from and value", ("conversations",),
           {"demonstrations": readers.sharegpt, "prompts": readers.open_sharegpt}, (*readers.SYSTEM_COLUMNS, "text")),
    Format("alpaca", "Alpaca: instruction, input and output", ("instruction", "output"),
           {"demonstrations": readers.alpaca, "prompts": readers.instruction},
           (*readers.INSTRUCTION_COLUMNS, "prompt", "text")),
    Format("dolly", "Dolly: instruction, context and response", ("instruction", "response"),
           {"demonstrations": readers.dolly, "prompts": readers.instruction},
           (*readers.INSTRUCTION_COLUMNS, "text")),
    Format("orca", "OpenOrca: question and response", ("question", "response"),
           {"demonstrations": readers.orca, "prompts": readers.question}, readers.SYSTEM_COLUMNS),
    # rankings of two
    Format("preference", "TRL: chosen and rejected, with or without their prompt", ("chosen", "rejected"),
           {"rankings": readers_paired.preference, "prompts": readers_paired.preference_prompt}, ("prompt", "labeler"),
           matches=lambda row: not readers_paired.is_hh_pair(row)),
    Format("hh-rlhf", "HH-RLHF: chosen and rejected dialogues", ("chosen", "rejected"),
           {"rankings": readers_paired.hh_pair, "prompts": readers_paired.hh_prompt}, ("prompt", "labeler"),
           matches=readers_paired.is_hh_pair),
    Format("alpaca-preference", "Alpaca's prompt with chosen and rejected", ("instruction", "chosen", "rejected"),
           {"rankings": readers_paired.instruction_pair, "prompts": readers.instruction}, readers.INSTRUCTION_COLUMNS),
    Format("orca-dpo", "Orca DPO pairs: question, chosen and rejected", ("question", "chosen", "rejected"),
           {"rankings": readers_paired.question_pair, "prompts": readers.question}, readers.SYSTEM_COLUMNS),
    Format("ultrafeedback-binarized", "UltraFeedback, binarized: chosen and rejected with scores",
           ("prompt", "chosen", "rejected", "score_chosen", "score_rejected"),
           {"rankings": readers_paired.scored_pair, "prompts": readers.prompt}, ("messages", "prompt_id")),
    Format("shp", "Stanford Human Preferences: two replies to a post",
           ("history", "human_ref_A", "human_ref_B", "labels"),
           {"rankings": readers_ranked.shp, "prompts": readers_ranked.shp_prompt}),
    Format("helpsteer3", "HelpSteer3: two responses and a preference from -3 to 3",
           ("context", "response1", "response2", "overall_preference"),
           {"rankings": readers_ranked.helpsteer3, "prompts": readers_ranked.helpsteer3_prompt}),
    # rankings of many
    Format("ranking", "a prompt with K ranked responses", ("prompt", "responses", "ranks"),
           {"rankings": readers_ranked.ranking, "prompts": readers.prompt}, ("labeler",)),
    Format("ultrafeedback", "UltraFeedback: scored completions", ("instruction", "completions"),
           {"rankings": readers_ranked.ultrafeedback, "prompts": readers.instruction}, readers.INSTRUCTION_COLUMNS),
    Format("nectar", "Nectar: ranked answers", ("prompt", "answers"),
           {"rankings": readers_ranked.nectar, "prompts": readers.prompt}),
    Format("summarize", "OpenAI's summarize-from-feedback comparisons", ("info", "summaries", "choice"),
           {"rankings": readers_ranked.summaries, "prompts": readers_ranked.summaries_prompt}, ("worker",)),
    # rankings in neighbouring rows
    Format("helpsteer", "HelpSteer and HelpSteer2: a rated response a row",
           ("prompt", "response", "helpfulness", "correctness", "coherence", "complexity", "verbosity"),
           {"rankings": readers_ranked.helpsteer, "demonstrations": readers_ranked.helpsteer_best,
            "prompts": readers_ranked.helpsteer_prompt},
           group=readers_ranked.by_prompt, merge=readers_ranked.merge_helpsteer),
    Format("unpaired", "TRL: a completion a row, labelled good or bad", ("prompt", "completion", "label"),
           {"rankings": readers_ranked.unpaired, "demonstrations": readers_ranked.unpaired_good,
            "prompts": readers.prompt},
           matches=readers_ranked.is_labelled, group=readers_ranked.by_prompt, merge=readers_ranked.merge_unpaired),
    Format("oasst", "OpenAssistant: a tree of messages", ("message_tree_id", "prompt"),
           {"rankings": trees.rankings, "demonstrations": trees.demonstrations, "prompts": trees.prompts},
           ("tree_state",), matches=lambda row: isinstance(row["prompt"], dict)),
    Format("oasst-messages", "OpenAssistant: a message a row", ("message_id", "message_tree_id", "text", "role"),
           {"rankings": trees.rankings, "demonstrations": trees.demonstrations, "prompts": trees.prompts},
           trees.MESSAGE_COLUMNS, group=trees.by_tree, merge=trees.tree_of),
    # the rest
    Format("prompt", "prompts alone", ("prompt",), {"prompts": readers.prompt}),
    Format("text", "plain text", ("text",), {"texts": readers.text}),
)
# fmt: on

KNOWN_COLUMNS: frozenset[str] = frozenset().union(*(format.columns for format in FORMATS))

# Always lists or objects, so that a table's cell is parsed. Columns that may hold text as well (prompt, chosen ...) are
# not among them: an answer that happens to be JSON is an answer.
LIST_COLUMNS: frozenset[str] = frozenset(
    ("messages", "conversations", "responses", "ranks", "completions", "answers", "info", "summaries")
)


# ---------------------------------------------------------------------------------------------------------------------
# from a row to its format


def recognise(row: Any, kind: RecordKind | None) -> tuple[Format, ...]:
    """The formats that a row fits, the most specific only; () if none, several if its columns do not settle it.

    kind: only formats that can be read as it; None: all.
    """
    if not isinstance(row, dict):
        return ()
    filled = tuple(row) if None not in row.values() else tuple(name for name in row if row[name] is not None)
    formats, is_settled = _by_columns(filled, kind)
    if is_settled:
        return formats
    fitting = tuple([format for format in formats if format.matches is None or format.matches(row)])
    return fitting if len(fitting) == 1 else _most_specific(fitting)


@lru_cache(maxsize=1024)
def _by_columns(filled: tuple[str, ...], kind: RecordKind | None) -> tuple[tuple[Format, ...], bool]:
    """(the formats whose columns are there, whether nothing remains to be asked of the values)."""
    has = frozenset(filled)
    formats = tuple(f for f in FORMATS if (kind is None or kind in f.readers) and has.issuperset(f.required))
    if any(format.matches for format in formats):
        return formats, False
    return _most_specific(formats), True


@lru_cache(maxsize=1024)
def _most_specific(formats: tuple[Format, ...]) -> tuple[Format, ...]:
    return tuple(format for format in formats if not any(_shadows(other, format) for other in formats))


def _shadows(b: Format, a: Format) -> bool:
    """Whether `b` explains all that makes a row an `a`, and more."""
    return b.columns.issuperset(a.required) and not a.columns.issuperset(b.required)


def format_named(name: str) -> Format:
    """The format of a name. UserError with the nearest and all names."""
    names = [format.name for format in FORMATS]
    if name in names:
        return FORMATS[names.index(name)]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"--format {name}: there is no such format; {hint}known: {', '.join(names)}")


def prompts_of(format: Format, row: Row) -> Sequence[Prompt]:
    """The prompts of a row that fits the format, each once. BadRow if it holds none."""
    if "prompts" not in format.readers:
        raise _other_kind(format, "prompts")
    return [record for record in dict.fromkeys(format.readers["prompts"](row)) if isinstance(record, Prompt)]


# ---------------------------------------------------------------------------------------------------------------------
# what to say of a row that fits none


def unrecognised(row: Any, kind: RecordKind | None) -> BadRow:
    """Why `recognise` found nothing: a needed column is empty, or the row is another kind's, or no known format's."""
    if not isinstance(row, dict):
        return BadRow("the row is not an object with columns", f"got {type(row).__name__}")
    filled = [name for name, value in row.items() if value is not None]
    empty = [name for name, value in row.items() if value is None]
    lost = f"; empty: {_listed(empty)}" if empty else ""
    if kind is not None and (unfilled := _unfilled(row, kind)):
        return BadRow("a needed column is empty", ", ".join(unfilled))
    # a prompt or a text beside columns that nobody knows is rather a row whose other columns are named differently
    others = [format for format in recognise(row, None) if len(filled) == 1 or format.name not in BARE]
    if kind is not None and others:
        fault = _other_kind(others[0], kind)
        return BadRow(fault.reason, fault.detail + lost)
    detail = f"found {_listed(filled)}{lost}"
    if nearest := _nearest(frozenset(filled), kind):
        if nearest.name == "ranking" and nearest.lacks(row) == ["ranks"]:
            return BadRow("responses without ranks: add ranks to each row, 1 for the best")
        detail += f"; nearest is {nearest.name}, which {_need(nearest, row)}"
    return BadRow(UNKNOWN, detail)


def other_format(format: Format, row: Row) -> BadRow:
    """Why a row is not of the format that was asked for."""
    return BadRow(f"the row is not of format {format.name}", f"it {_need(format, row)}; found {_listed(list(row))}")


def _need(format: Format, row: Row) -> str:
    lacking = format.lacks(row)
    return f"lacks {', '.join(lacking)}" if lacking else "needs values of another form"


def _unfilled(row: Row, kind: RecordKind) -> list[str]:
    """The columns that are there and empty, and without which the row is nothing of that kind."""
    lacking = [f.lacks(row) for f in FORMATS if kind in f.readers and all(name in row for name in f.required)]
    return min(lacking, key=len, default=[])


def _other_kind(format: Format, wanted: RecordKind) -> BadRow:
    held = next(iter(format.readers))
    return BadRow(f"the row holds {held}, not {wanted}; {held} are for {COMMANDS[held]}", f"format {format.name}")


def _nearest(filled: frozenset[str], kind: RecordKind | None) -> Format | None:
    """The format with the largest share of its required columns there; None if none has any."""
    allowed = [format for format in FORMATS if kind is None or kind in format.readers]
    best = max(allowed, key=lambda format: len(filled & set(format.required)) / len(format.required))
    return best if filled & set(best.required) else None


def _listed(names: Sequence[Any]) -> str:
    # as in a message of Python: a name must not reach a terminal as control characters
    shown = [repr(str(name)[:SHOWN_CHARACTERS])[1:-1] for name in names[:SHOWN_COLUMNS]]
    more = f" and {len(names) - SHOWN_COLUMNS} more" if len(names) > SHOWN_COLUMNS else ""
    return ", ".join(shown) + more if shown else "none"
