"""A name to records, streaming: everything usable of a file or dataset, and an account of everything refused."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar, cast

from lora_rlhf.data.containers import source_rows
from lora_rlhf.data.formats import Format, Kind, format_named, other_format, prompts_of, recognise, unrecognised
from lora_rlhf.data.refusals import BadRow, Damaged, RefusedRows, none_of
from lora_rlhf.data.schema import Demonstration, Prompt, Ranking, Text, place
from lora_rlhf.system.errors import UserError

Record = TypeVar("Record", Demonstration, Ranking, Prompt, Text)
Located = tuple[str, dict[str, Any]]  # a row and where it stands

# How `row_of` writes a record: an unused column that has a name of these could not stand beside it.
WRITTEN_AS: dict[Kind, Format] = {
    "demonstrations": format_named("prompt-completion"),
    "rankings": format_named("ranking"),
    "prompts": format_named("prompt"),
    "texts": format_named("text"),
}
MOST_IN_GROUP = 1000  # rows of one prompt that are read together; more are read as several groups
SHOWN = 60  # characters of a text in a message


class Source(Generic[Record]):
    """The records of a file, folder, glob or hub dataset, read anew by each iteration, one row in memory at a time.

    While and after iterating, `read`, `used` and `refused` count rows (used + refused = read, always), `records` what
    was made of them, and `formats` how the used rows were written; `recognised` names the formats of all rows, refused
    ones too; `depends_on_order` says whether other rows had a part in how one was read.

    name: see `locate`. kind: what the rows are read as; None: each as its format's main kind. format: a name of
    docs/data.md, instead of what the rows look like. strict: the first row that cannot be used is a UserError.
    tolerant: a file that breaks off, or without a usable row, is counted instead of being a UserError.
    """

    def __init__(
        self,
        name: str,
        kind: Kind | None,
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

    def _rows(self) -> Iterator[tuple[str, Any]]:
        return source_rows(self.name)

    def _recognised(self) -> Iterator[tuple[Format, Located]]:
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
        found = recognise(row, self.kind)
        if self._format is not None:
            # named by the user: also where another format fits the row more closely
            if self._format not in found and not self._format.fits(row):
                raise other_format(self._format, row)
            return self._format
        if not found:
            raise unrecognised(row, self.kind)
        if len(found) == 1 or (self.kind == "prompts" and _same_prompts(found, row)):
            self._settled.add(found[0])
            return found[0]
        self.depends_on_order = True
        if known := [format for format in found if format in self._settled]:
            return known[0]  # a row that fits several is read as the rows before it were
        if self._settled:
            names = ", ".join(format.name for format in found)
            raise BadRow("the row fits several formats; say which one with --format", names)
        raise UserError(_ambiguity(self.name, self.kind, found, origin, row))

    def _grouped(self, rows: Iterable[tuple[Format, Located]]) -> Iterator[tuple[Format, list[Located]]]:
        """Rows that belong together: neighbours with an equal `group`, where the format has one."""
        waiting: list[Located] = []
        current: tuple[Format, Any] | None = None
        for format, located in rows:
            key = None if format.group is None else (format, format.group(located[1]))
            if current and (key != current or len(waiting) == MOST_IN_GROUP):
                yield current[0], waiting
                waiting = []
            current = key
            if current:
                self.depends_on_order = True
                waiting.append(located)
            else:
                yield format, [located]
        if current:
            yield current[0], waiting

    def _records(self, format: Format, rows: list[Located]) -> list[Record]:
        """What a group of rows becomes, with its place and its unused columns. BadRow if that is nothing."""
        origin, first = rows[0]
        row = first if format.merge is None else format.merge([row for _, row in rows])
        kind = next(iter(format.readers)) if self.kind is None else self.kind
        made = prompts_of(format, row) if kind == "prompts" else format.readers[kind](row)
        if not made:
            raise BadRow(f"the row holds no {kind}")
        written = WRITTEN_AS[kind].columns
        meta = {name: value for name, value in first.items() if name not in format.columns and name not in written}
        for record in made:
            if not isinstance(record, Text):
                place(record if isinstance(record, Prompt) else record.prompt, meta, origin)
        return cast(list[Record], list(made))

    def _raise_unusable(self) -> None:
        if not self.read:
            raise UserError(f"{self.name}: no rows; the file is empty")
        raise UserError(f"{self.name}: {none_of(self.read, 'row')} can be used:\n{self.refused.summary()}")


def _same_prompts(formats: Iterable[Format], row: dict[str, Any]) -> bool:
    """Whether it does not matter which of the formats a row's prompts are read by."""
    readings: set[object] = set()
    for format in formats:
        try:
            merged = row if format.merge is None else format.merge([row])
            readings.add(tuple(prompts_of(format, merged)))
        except BadRow as fault:
            readings.add(str(fault))
    return len(readings) == 1


def _ambiguity(name: str, kind: Kind | None, formats: Iterable[Format], origin: str, row: dict[str, Any]) -> str:
    """The question to the user: what the row would become in each format."""
    lines = [f"{name}: its rows fit several formats; say which one with --format:"]
    for format in formats:
        kinds = [kind] if kind else list(format.readers)
        lines.append(f"  --format {format.name:<14} {' and '.join(kinds)}: {_reading(format, kinds[0], row)}")
    shown = json.dumps(row, default=repr)
    return "\n".join([*lines, f"  the row at {origin}: {shown[: 5 * SHOWN]}{'...' if len(shown) > 5 * SHOWN else ''}"])


def _reading(format: Format, kind: Kind, row: dict[str, Any]) -> str:
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
    return json.dumps(text[:SHOWN]) + ("..." if len(text) > SHOWN else "")


def every_turn(demonstrations: Iterable[Demonstration]) -> Iterator[Demonstration]:
    """Each conversation once per answer in it, the earlier ones first, so that all of them are learned."""
    for demonstration in demonstrations:
        messages = demonstration.prompt.messages
        for end in range(1, len(messages)):
            asked, message = messages[end - 1 : end + 1]
            is_turn = (asked.role, message.role) == ("user", "assistant")
            if is_turn and asked.content.strip() and message.content.strip():
                before = dataclasses.replace(demonstration.prompt, messages=messages[:end])
                yield Demonstration(before, message.content)
        yield demonstration


def read_demonstrations(
    name: str, strict: bool = False, format: str | None = None
) -> tuple[list[Demonstration], RefusedRows]:
    """All demonstrations at once, and what was refused. UserError if there is none."""
    return _all(Source(name, "demonstrations", format, strict))


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
