"""From a file or dataset to records, as a stream: all usable rows, and a count of all refused ones."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar, cast

from lora_rlhf.data.containers import source_rows
from lora_rlhf.data.formats import Format, RecordKind, format_named, other_format, prompts_of, recognise, unrecognised
from lora_rlhf.data.refusals import BadRow, Damaged, RefusedRows, none_of
from lora_rlhf.data.schema import Demonstration, Prompt, Ranking, Text, set_source
from lora_rlhf.system.errors import UserError

Record = TypeVar("Record", Demonstration, Ranking, Prompt, Text)
LocatedRow = tuple[str, dict[str, Any]]  # a row's origin ("file:line") and the row

# The formats in which `row_of` writes records: an unused column with a name of theirs cannot be written beside them.
WRITTEN_AS: dict[RecordKind, Format] = {
    "demonstrations": format_named("prompt-completion"),
    "rankings": format_named("ranking"),
    "prompts": format_named("prompt"),
    "texts": format_named("text"),
}
MOST_IN_GROUP = 1000  # rows of one prompt that are read together; more are read as several groups
TEXT_IN_MESSAGE = 60  # characters


class Source(Generic[Record]):
    """The records of a file, folder, glob or hub dataset, read anew by each iteration, one row in memory at a time.

    While and after iterating, `read`, `used` and `refused` count rows (always used + refused = read), `records` counts
    the records made of them, and `formats` the used rows of each format. `recognised` holds the formats of all rows,
    also of refused ones. `depends_on_order`: whether the reading of a row depended on other rows.

    name: see `locate`. kind: what the rows are read as; None: each as its format's main kind. format: a name of
    docs/data.md; None: each row's columns decide. strict: the first row that cannot be used raises UserError.
    tolerant: a file that breaks off or has no usable row raises no UserError; the fault is counted as a refusal.
    """

    def __init__(
        self,
        name: str,
        kind: RecordKind | None,
        format: str | None = None,
        strict: bool = False,
        tolerant: bool = False,
    ) -> None:
        self.name, self.kind = str(name), kind
        self.strict, self.tolerant = strict, tolerant
        self._format = None if format is None else self._named(format)
        self._reset()

    def _named(self, name: str) -> Format:
        chosen = format_named(name)
        if self.kind is not None and self.kind not in chosen.readers:
            kinds = " and ".join(chosen.readers)
            raise UserError(f"--format {name} holds {kinds}; {self.kind} are wanted from {self.name}")
        return chosen

    def _reset(self) -> None:
        self.read = self.used = self.records = 0
        self.depends_on_order = False
        self.refused = RefusedRows(self.strict)
        self.formats: Counter[str] = Counter()
        self.recognised: set[str] = set()
        self._settled: set[Format] = set()  # formats that rows without doubt were read as

    def __iter__(self) -> Iterator[Record]:
        self._reset()
        for format, rows in self._grouped(self._recognised()):
            try:
                records = self._records(format, rows)
            except BadRow as fault:
                for origin, _ in rows:
                    self.refused.add(origin, fault)
                continue
            self.used += len(rows)
            self.records += len(records)
            self.formats[format.name] += len(rows)
            yield from records
        if not self.tolerant and not self.records:
            self._raise_unusable()

    def require_first(self) -> None:
        """Reads up to the first usable record: raises early what iterating would raise for a file without one."""
        next(iter(self), None)

    def _rows(self) -> Iterator[tuple[str, Any]]:
        return source_rows(self.name)

    def _recognised(self) -> Iterator[tuple[Format, LocatedRow]]:
        """Rows with their format; those without are refused."""
        for origin, row in self._rows():
            self.read += 1
            try:
                if isinstance(row, Damaged) and not self.tolerant:
                    raise UserError(f"{origin}: {row}")
                if isinstance(row, BadRow):
                    raise row
                if not isinstance(row, dict):
                    raise BadRow("the row is not an object with columns", f"got {type(row).__name__}")
                format = self._choose(origin, row)
                self.recognised.add(format.name)
                yield format, (origin, row)
            except BadRow as fault:
                self.refused.add(origin, fault)

    def _choose(self, origin: str, row: dict[str, Any]) -> Format:
        fitting = recognise(row, self.kind)
        if self._format is not None:
            # named by the user: also where another format fits the row more closely
            if self._format not in fitting and not self._format.fits(row):
                raise other_format(self._format, row)
            return self._format
        if not fitting:
            raise unrecognised(row, self.kind)
        if len(fitting) == 1 or (self.kind == "prompts" and _same_prompts(fitting, row)):
            self._settled.add(fitting[0])
            return fitting[0]
        self.depends_on_order = True
        if settled := [format for format in fitting if format in self._settled]:
            return settled[0]  # a row that fits several is read as the rows before it were
        if self._settled:
            names = ", ".join(format.name for format in fitting)
            raise BadRow("the row fits several formats; say which one with --format", names)
        raise UserError(_ambiguity(self.name, self.kind, fitting, origin, row))

    def _grouped(self, rows: Iterable[tuple[Format, LocatedRow]]) -> Iterator[tuple[Format, list[LocatedRow]]]:
        """The rows in groups: neighbours with an equal `Format.group` together, all other rows alone."""
        group: list[LocatedRow] = []
        current: tuple[Format, Any] | None = None
        for format, located in rows:
            key = None if format.group is None else (format, format.group(located[1]))
            if current and (key != current or len(group) == MOST_IN_GROUP):
                yield current[0], group
                group = []
            current = key
            if current:
                self.depends_on_order = True
                group.append(located)
            else:
                yield format, [located]
        if current:
            yield current[0], group

    def _records(self, format: Format, rows: list[LocatedRow]) -> list[Record]:
        """The records of a group of rows, with their origin and unused columns. BadRow if there is none."""
        origin, first = rows[0]
        row = first if format.merge is None else format.merge([row for _, row in rows])
        kind = next(iter(format.readers)) if self.kind is None else self.kind
        records = prompts_of(format, row) if kind == "prompts" else format.readers[kind](row)
        if not records:
            raise BadRow(f"the row holds no {kind}")
        written_columns = WRITTEN_AS[kind].columns
        meta = {
            name: value for name, value in first.items() if name not in format.columns and name not in written_columns
        }
        for record in records:
            if not isinstance(record, Text):
                set_source(record if isinstance(record, Prompt) else record.prompt, meta, origin)
        return cast(list[Record], list(records))

    def _raise_unusable(self) -> None:
        if not self.read:
            raise UserError(f"{self.name}: no rows; the file is empty")
        raise UserError(f"{self.name}: {none_of(self.read, 'row')} can be used:\n{self.refused.summary()}")


def _same_prompts(formats: Iterable[Format], row: dict[str, Any]) -> bool:
    """Whether all these formats read the same prompts from the row."""
    readings: set[object] = set()
    for format in formats:
        try:
            merged = row if format.merge is None else format.merge([row])
            readings.add(tuple(prompts_of(format, merged)))
        except BadRow as fault:
            readings.add(str(fault))
    return len(readings) == 1


def _ambiguity(name: str, kind: RecordKind | None, formats: Iterable[Format], origin: str, row: dict[str, Any]) -> str:
    """The question to the user, with what the row would become in each format."""
    lines = [f"{name}: its rows fit several formats; say which one with --format:"]
    for format in formats:
        kinds = [kind] if kind else list(format.readers)
        lines.append(f"  --format {format.name:<14} {' and '.join(kinds)}: {_reading(format, kinds[0], row)}")
    row_text = json.dumps(row, default=repr)
    if len(row_text) > 5 * TEXT_IN_MESSAGE:
        row_text = row_text[: 5 * TEXT_IN_MESSAGE] + "..."
    return "\n".join([*lines, f"  the row at {origin}: {row_text}"])


def _reading(format: Format, kind: RecordKind, row: dict[str, Any]) -> str:
    try:
        record = format.readers[kind](row if format.merge is None else format.merge([row]))[0]
    except BadRow as fault:
        return f"refused: {fault}"
    if isinstance(record, Text):
        return _short(record.text)
    if isinstance(record, Prompt):
        return _short(record.messages[-1].content)
    answers = [record.response] if isinstance(record, Demonstration) else record.responses
    return f"{_short(record.prompt.messages[-1].content)} -> {' | '.join(map(_short, answers))}"


def _short(text: str) -> str:
    return json.dumps(text[:TEXT_IN_MESSAGE]) + ("..." if len(text) > TEXT_IN_MESSAGE else "")


def every_turn(demonstrations: Iterable[Demonstration]) -> Iterator[Demonstration]:
    """A demonstration for each answer of each conversation, the earlier answers first, so that all are learned."""
    for demonstration in demonstrations:
        messages = demonstration.prompt.messages
        for end in range(1, len(messages)):
            question, answer = messages[end - 1 : end + 1]
            is_turn = (question.role, answer.role) == ("user", "assistant")
            if is_turn and question.content.strip() and answer.content.strip():
                prompt = dataclasses.replace(demonstration.prompt, messages=messages[:end])
                yield Demonstration(prompt, answer.content)
        yield demonstration


def read_rankings(name: str, strict: bool = False, format: str | None = None) -> tuple[list[Ranking], RefusedRows]:
    """All rankings at once, and what was refused. UserError if there is none."""
    return _all(Source(name, "rankings", format, strict))


def read_prompts(name: str, strict: bool = False, format: str | None = None) -> tuple[list[Prompt], RefusedRows]:
    """All prompts at once, from rows of any format, and what was refused. UserError if there is none."""
    return _all(Source(name, "prompts", format, strict))


def read_texts(name: str, strict: bool = False, format: str | None = None) -> tuple[list[Text], RefusedRows]:
    """All texts at once, and what was refused. UserError if there is none."""
    return _all(Source(name, "texts", format, strict))


def _all(source: Source[Record]) -> tuple[list[Record], RefusedRows]:
    return list(source), source.refused
