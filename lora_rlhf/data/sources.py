"""From a file or dataset to records, as a stream: all usable rows, and a count of all refused ones."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from lora_rlhf.data.columns import Columns
from lora_rlhf.data.containers import source_rows
from lora_rlhf.data.formats import GRADED, Format, RecordKind, format_named
from lora_rlhf.data.groups import Groups
from lora_rlhf.data.labels import fingerprint
from lora_rlhf.data.names import IGNORED_PREFIX
from lora_rlhf.data.readers import Draft
from lora_rlhf.data.readers_ranked import ranks_of
from lora_rlhf.data.recognise import SEVERAL, UNKNOWN, other_format, recognise, unrecognised
from lora_rlhf.data.records import Grade, drafts_of, grade_of, is_grade, record_of, texts_of, unused_columns
from lora_rlhf.data.refusals import BadRow, Damaged, RefusedRows, none_of_phrase
from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking, Text, set_source
from lora_rlhf.data.wrapped import explain_wrapped_rows
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
TEXT_IN_MESSAGE = 60  # characters
NOT_CHOSEN = "another answer to the prompt has a higher score"
NOT_GOOD = "no answer to the prompt has a score above 0"
LABELLED_BAD = "the answer is labelled as bad"


class Answer(NamedTuple):
    """One graded answer of a prompt whose other answers stand in other rows; JSON values, to be kept in `Groups`."""

    origin: str
    name: str
    meta: dict[str, Any]
    turns: list[list[Any]]
    response: str
    grade: float
    is_verdict: bool


class Source(Generic[Record]):
    """The records of a file, folder, glob or hub dataset, read anew by each iteration, one row in memory at a time.

    While and after iterating, `read`, `used` and `refused` count rows (always used + refused = read), `records` counts
    the records made of them, and `formats` the used rows of each format. `recognised` holds the formats of all rows,
    also of refused ones. `depends_on_order`: whether the reading of a row depended on other rows.

    name: see `locate`. kind: what the rows are read as; None: each as its format's main kind. format: a name of
    docs/data.md; None: each row's columns decide. strict: the first row that cannot be used raises UserError.
    tolerant: a file that breaks off or has no usable row raises no UserError; the fault is counted as a refusal.
    columns: what --columns says, as of `Columns`. has_flags: the command that reads has --format and --columns, so that
    messages may name them.
    """

    def __init__(
        self,
        name: str,
        kind: RecordKind | None,
        format: str | None = None,
        strict: bool = False,
        tolerant: bool = False,
        columns: str | None = None,
        has_flags: bool = False,
    ) -> None:
        self.name, self.kind = str(name), kind
        self.strict, self.tolerant, self.has_flags = strict, tolerant, has_flags
        self._format = None if format is None else self._named(format)
        self._columns = Columns(columns)
        self._reset()

    def _named(self, name: str) -> Format:
        chosen = format_named(name)
        if self.kind is not None and self.kind not in chosen.readers:
            if chosen.unusable:
                raise UserError(f"--format {name}: {chosen.unusable}")
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
        self._trees: Groups | None = None  # rows, and answers, that belong together wherever they stand in the file
        self._answers: Groups | None = None

    def __iter__(self) -> Iterator[Record]:
        self._reset()
        for origin, row in self._rows():
            self.read += 1
            try:
                records = self._of_row(origin, row)
            except BadRow as fault:
                self._refuse(origin, self._explained(fault, row))
            else:
                yield from records
        for rows in self._trees or ():
            yield from self._of_tree(rows)
        for answers in self._answers or ():
            yield from self._of_answers([Answer(*answer) for answer in answers])
        if not self.tolerant and not self.records:
            self._raise_unusable()

    def require_first(self) -> None:
        """Reads up to the first usable record: raises early what iterating would raise for a file without one."""
        next(iter(self), None)

    def _rows(self) -> Iterator[tuple[str, Any]]:
        return source_rows(self.name)

    def _refuse(self, origin: str, fault: BadRow) -> None:
        self.refused.add(origin, fault.with_advice(self.has_flags))

    def _explained(self, fault: BadRow, row: Any) -> BadRow:
        """The fault, or what it comes from: the row is no row but an object that holds rows."""
        if isinstance(row, dict):
            return explain_wrapped_rows(row, not fault.reason.startswith(UNKNOWN)) or fault
        return fault

    def _count(self, records: Sequence[Any], rows: int, name: str) -> None:
        self.used += rows
        self.records += len(records)
        self.formats[name] += rows

    # -----------------------------------------------------------------------------------------------------------------
    # one row

    def _of_row(self, origin: str, row: Any) -> list[Any]:
        """The records of a row; none yet if it belongs to others."""
        row = self._columns.rename_columns(row if type(row) is dict else self._checked(origin, row))
        format = self._choose(origin, row)
        kind = self.kind or format.kinds[0] if format.readers else self.kind or "demonstrations"
        if kind == "texts":
            self.recognised.add(format.name)
            texts = texts_of(format, row)
            self._count(texts, 1, format.name)
            return texts
        if format.group is not None:
            self.recognised.add(format.name)
            self.depends_on_order = True
            self._trees = self._trees or Groups()
            self._trees.add(fingerprint(f"{format.name} {format.group(row)}"), [origin, format.name, row])
            return []
        grade = None if kind == "prompts" else grade_of(format, row)
        name = format.name if grade is None else grade.format.name
        self.recognised.add(name)
        is_named = self._format is not None or bool(self._columns.known_name_by_column)
        drafts = drafts_of(format, row, "demonstrations" if grade is not None else kind, is_named)
        if grade is not None and len(drafts) > 1:
            raise BadRow("a verdict or score stands beside several answers", ", ".join(grade.columns))
        if grade is None and drafts[0].grade is not None:
            grade = Grade(drafts[0].grade, False, ())
        if grade is not None and not (grade.is_verdict and kind == self.kind == "demonstrations"):
            self._keep_answer(origin, row, format, name, drafts[0], grade)
            return []
        if grade is not None and not grade.value:
            raise BadRow(LABELLED_BAD, ", ".join(grade.columns))
        records = [record_of(draft, kind) for draft in drafts]
        self._place(records, origin, self._meta(row, format, kind))
        self._count(records, 1, name)
        return records

    def _checked(self, origin: str, row: Any) -> dict[str, Any]:
        """What is no object, as one: a list of messages is a conversation. BadRow for anything else."""
        if isinstance(row, Damaged) and not self.tolerant:
            raise UserError(f"{origin}: {row}")
        if isinstance(row, BadRow):
            raise row
        if isinstance(row, list) and row and isinstance(row[0], dict):
            return {"messages": row}
        if isinstance(row, str):
            way_out = 'as a prompt it is {"prompt": ...}, as pretraining text {"text": ...}'
            raise BadRow("the row is a text, not an object with columns", way_out)
        raise BadRow("the row is not an object with columns", f"got {type(row).__name__}")

    def _choose(self, origin: str, row: dict[str, Any]) -> Format:
        fitting = self._fitting(row)
        if self._format is not None:
            if self._format.name in GRADED:
                graded = [f for f in fitting if (grade := grade_of(f, row)) and grade.format is self._format]
                if not graded:
                    raise other_format(self._format, row)
                return graded[0]
            # named by the user: also where another format fits the row more closely
            if self._format not in fitting and not self._format.fits(row):
                raise other_format(self._format, row)
            return self._format
        if not fitting:
            raise unrecognised(row, self.kind)
        if fitting[0].unusable and self.kind not in fitting[0].readers:
            raise BadRow(fitting[0].unusable, f"format {fitting[0].name}")
        if len(fitting) == 1 or _same_records(fitting, self.kind, row):
            self._settled.add(fitting[0])
            return fitting[0]
        self.depends_on_order = True
        if settled := [format for format in fitting if format in self._settled]:
            return settled[0]  # a row that fits several is read as the rows before it were
        if self._settled:
            names = ", ".join(format.name for format in fitting)
            raise BadRow(SEVERAL, names + ("; say which one with --format" if self.has_flags else ""))
        raise UserError(_ambiguity(self.name, self.kind, fitting, origin, row, self.has_flags))

    def _fitting(self, row: dict[str, Any]) -> tuple[Format, ...]:
        """The formats that a row fits; those with the columns that --columns names, if there are such."""
        is_graded = self._format is not None and self._format.name in GRADED
        fitting = recognise(row, "demonstrations" if is_graded else self.kind)
        if self.kind == "rankings" and all(format.unusable for format in fitting):
            # answers of one prompt in several rows, each with its grade
            answers = recognise(row, "demonstrations")
            fitting = tuple(format for format in answers if grade_of(format, row) is not None) or fitting
        if len(fitting) > 1 and self._columns.known_name_by_column:
            named = set(self._columns.known_name_by_column.values())
            return tuple(format for format in fitting if named <= format.columns) or fitting
        return fitting

    def _meta(self, row: dict[str, Any], format: Format, kind: RecordKind) -> dict[str, Any]:
        """The row's columns that were not used, under their own names."""
        meta = {name.removeprefix(IGNORED_PREFIX): row[name] for name in unused_columns(format, tuple(row), kind)}
        if meta and (kind == "demonstrations" or (kind == "rankings" and format.is_answer)):
            meta = {name: value for name, value in meta.items() if not is_grade(name, value)}
        for name in WRITTEN_AS[kind].columns.intersection(meta):
            del meta[name]
        return meta

    def _place(self, records: Sequence[Any], origin: str, meta: dict[str, Any]) -> None:
        for record in records:
            set_source(record if isinstance(record, Prompt) else record.prompt, meta, origin)

    # -----------------------------------------------------------------------------------------------------------------
    # rows that belong together

    def _keep_answer(
        self, origin: str, row: dict[str, Any], format: Format, name: str, draft: Draft, grade: Grade
    ) -> None:
        record_of(draft._replace(ranks=None), "demonstrations")  # what is no record is refused alone
        self.depends_on_order = True
        self._answers = self._answers or Groups()
        turns = [[turn.role, turn.content, turn.is_trained] for turn in draft.turns]
        key = fingerprint(json.dumps([turns, grade.is_verdict]))
        meta = self._meta(row, format, self.kind or "rankings")
        self._answers.add(key, Answer(origin, name, meta, turns, draft.answers[0], grade.value, grade.is_verdict))

    def _of_answers(self, answers: list[Answer]) -> list[Any]:
        """The records of one prompt's answers: a ranking, or demonstrations of the good ones, or of the best ones."""
        first = answers[0]
        best = max(answer.grade for answer in answers)
        can_be_ranked = len(answers) > 1 and (self.kind is not None or best > min(answer.grade for answer in answers))
        turns = tuple(Message(*turn) for turn in first.turns)
        if self.kind == "rankings" or (self.kind is None and can_be_ranked):
            try:
                if not can_be_ranked:
                    raise BadRow("a ranking needs at least 2 rows of one prompt")
                ranks = ranks_of([answer.grade for answer in answers])
                ranking = record_of(Draft(turns, tuple(answer.response for answer in answers), ranks), "rankings")
            except BadRow as fault:
                for answer in answers:
                    self._refuse(answer.origin, fault)
                return []
            self._place([ranking], first.origin, first.meta)
            self._count([ranking], len(answers), first.name)
            return [ranking]
        records = []
        for answer in answers:
            if answer.is_verdict and not answer.grade:
                self._refuse(answer.origin, BadRow(LABELLED_BAD))
            elif not answer.is_verdict and best <= 0:
                self._refuse(answer.origin, BadRow(NOT_GOOD, f"{answer.grade:g}"))
            elif answer.grade < best:
                self._refuse(answer.origin, BadRow(NOT_CHOSEN, f"{answer.grade:g} and {best:g}"))
            else:
                record = record_of(Draft(turns, (answer.response,)), "demonstrations")
                self._place([record], answer.origin, answer.meta)
                self._count([record], 1, answer.name)
                records.append(record)
        return records

    def _of_tree(self, rows: list[Any]) -> list[Any]:
        """The records of a tree whose messages stand in several rows."""
        origin, name, first = rows[0]
        format = format_named(name)
        kinds = [self.kind] if self.kind else [kind for kind in format.kinds if kind != "prompts"]
        faults: list[BadRow] = []
        for kind in kinds:
            try:
                merged = first if format.merge is None else format.merge([row for _, _, row in rows])
                records = [record_of(draft, kind) for draft in drafts_of(format, merged, kind)]
            except BadRow as fault:
                faults.append(fault)
                continue
            self._place(records, origin, self._meta(first, format, kind))
            self._count(records, len(rows), name)
            return records
        for place, _, _ in rows:
            self._refuse(place, faults[0])
        return []

    def _raise_unusable(self) -> None:
        if not self.read:
            raise UserError(f"{self.name}: no rows; the file is empty")
        raise UserError(f"{self.name}: {none_of_phrase(self.read, 'row')} can be used:\n{self.refused.summary()}")


def _same_records(formats: Iterable[Format], kind: RecordKind | None, row: dict[str, Any]) -> bool:
    """Whether all these formats read the same from the row, so that it does not matter which one is taken."""
    readings: list[object] = []
    for format in formats:
        try:
            readings.append(_records_alone(format, row, kind or format.kinds[0]))
        except BadRow as fault:
            if kind != "prompts":
                return False
            readings.append(str(fault))
    return all(reading == readings[0] for reading in readings)


def _records_alone(format: Format, row: dict[str, Any], kind: RecordKind, is_named: bool = False) -> list[Any]:
    """The records of a row as if it were the only one."""
    if kind == "texts":
        return texts_of(format, row)
    row = row if format.merge is None else format.merge([row])
    return [record_of(draft, kind) for draft in drafts_of(format, row, kind, is_named)]


def _ambiguity(
    name: str, kind: RecordKind | None, formats: Iterable[Format], origin: str, row: dict[str, Any], has_flags: bool
) -> str:
    """The question to the user, with what the row would become in each format."""
    question = "say which one with --format" if has_flags else "remove the columns that are not meant"
    lines = [f"{name}: its rows fit several formats; {question}:"]
    for format in formats:
        kinds = [kind] if kind else list(format.readers)
        flag = f"--format {format.name:<14}" if has_flags else f"{format.name:<14}"
        lines.append(f"  {flag} {' and '.join(kinds)}: {_reading(format, kinds[0], row)}")
    row_text = json.dumps(row, default=repr)
    if len(row_text) > 5 * TEXT_IN_MESSAGE:
        row_text = row_text[: 5 * TEXT_IN_MESSAGE] + "..."
    return "\n".join([*lines, f"  the row at {origin}: {row_text}"])


def _reading(format: Format, kind: RecordKind, row: dict[str, Any]) -> str:
    try:
        record = _records_alone(format, row, kind, is_named=True)[0]
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
    """A demonstration for each answer of each conversation, the earlier answers first, so that all are learned.

    Answers that their data set marks as not to be learned (`Message.is_trained`) stay context.
    """
    for demonstration in demonstrations:
        messages = demonstration.prompt.messages
        for end in range(1, len(messages)):
            question, answer = messages[end - 1 : end + 1]
            is_turn = (question.role, answer.role) == ("user", "assistant") and answer.is_trained
            if is_turn and question.content.strip() and answer.content.strip():
                prompt = dataclasses.replace(demonstration.prompt, messages=messages[:end])
                yield Demonstration(prompt, answer.content)
        yield demonstration


def read_rankings(name: str, strict: bool = False, format: str | None = None) -> tuple[list[Ranking], RefusedRows]:
    """All rankings at once, and what was refused. UserError if there is none."""
    return _all(Source(name, "rankings", format, strict))


def read_prompts(
    name: str, strict: bool = False, format: str | None = None, columns: str | None = None, has_flags: bool = False
) -> tuple[list[Prompt], RefusedRows]:
    """All prompts at once, from rows of any format, and what was refused. UserError if there is none."""
    return _all(Source(name, "prompts", format, strict, columns=columns, has_flags=has_flags))


def read_texts(name: str, strict: bool = False, format: str | None = None) -> tuple[list[Text], RefusedRows]:
    """All texts at once, and what was refused. UserError if there is none."""
    return _all(Source(name, "texts", format, strict))


def _all(source: Source[Record]) -> tuple[list[Record], RefusedRows]:
    return list(source), source.refused
