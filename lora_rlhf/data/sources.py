"""From a file or dataset to records, as a stream: all usable rows, and a count of all refused ones."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from lora_rlhf.data.columns import Columns
from lora_rlhf.data.containers import source_rows
from lora_rlhf.data.formats import GRADED_FORMATS, Format, RecordKind, find_format
from lora_rlhf.data.groups import Groups
from lora_rlhf.data.labels import fingerprint
from lora_rlhf.data.messages import text_to_compare
from lora_rlhf.data.names import IGNORED_PREFIX
from lora_rlhf.data.readers import Draft, make_draft
from lora_rlhf.data.readers_ranked import ranks_from_scores
from lora_rlhf.data.recognise import SEVERAL, UNKNOWN, explain_other_format, explain_unrecognised_row, recognise_formats
from lora_rlhf.data.records import (
    Grade,
    find_grade,
    is_grade_column,
    make_drafts,
    make_record,
    make_texts,
    unused_columns,
)
from lora_rlhf.data.refusals import BadRow, Damaged, RefusedRows, none_of_phrase
from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking, StepLabels, Text, Vote, set_meta_and_origin
from lora_rlhf.data.wrapped import explain_wrapped_rows
from lora_rlhf.system.errors import UserError

Record = TypeVar("Record", Demonstration, Ranking, StepLabels, Prompt, Text)

# The formats in which `make_row` writes records: an unused column cannot have the name of one of their columns.
FORMAT_BY_KIND: dict[RecordKind, Format] = {
    "demonstrations": find_format("prompt-completion"),
    "rankings": find_format("ranking"),
    "steps": find_format("step-labels"),
    "prompts": find_format("prompt"),
    "texts": find_format("text"),
}
MESSAGES, CORRECTION = find_format("messages"), find_format("correction")
MESSAGE_CHARACTERS = 60  # of a text in a message
NOT_CHOSEN = "another answer to the prompt has a higher score"
NOT_GOOD = "no answer to the prompt has a score above 0"
LABELLED_BAD = "the answer is labelled as bad"


class Answer(NamedTuple):
    """One graded answer of a prompt whose other answers are in other rows; JSON values, to be saved in `Groups`."""

    origin: str
    name: str
    meta: dict[str, Any]
    turns: list[list[Any]]
    response: list[Any]
    grade: float
    is_verdict: bool
    tools: str


class Source(Generic[Record]):
    """The records of a file, folder, glob or hub dataset, read anew by each iteration, one row in memory at a time.

    While and after iterating, `read`, `used` and `refused` count rows (used + refused = read), `records` counts the
    records made of them, and `formats` the used rows of each format. `recognised` holds the formats of all rows, also
    of refused ones. `depends_on_order`: whether the reading of a row depended on other rows.

    name: see `locate`. kind: the kind of record to read; None: the main kind of each row's format. format: a name in
    docs/data.md; None: each row's columns decide. strict: the first row that cannot be used raises UserError. tolerant:
    a file that is damaged or has no usable row raises no UserError; the fault is counted as a refusal. columns: the
    value of --columns, see `Columns`. has_flags: the command has --format and --columns, so messages may name them.
    keeps_votes: of rankings; an answer with a verdict becomes a `Vote`, and is not ranked with the prompt's others.
    most_refused: the first refused row after so many raises UserError.
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
        keeps_votes: bool = False,
        most_refused: int | None = None,
    ) -> None:
        self.name, self.kind, self.keeps_votes = str(name), kind, keeps_votes
        self.strict, self.tolerant, self.has_flags, self.most_refused = strict, tolerant, has_flags, most_refused
        self._format = None if format is None else self._find_format(format)
        self._columns = Columns(columns)
        self._reset()

    def _find_format(self, name: str) -> Format:
        """The format with this name. UserError if it cannot be read as this kind of record."""
        format = find_format(name)
        if self.kind is not None and self.kind not in format.readers:
            if format.unusable_reason:
                raise UserError(f"--format {name}: {format.unusable_reason}")
            kinds = " and ".join(format.readers)
            raise UserError(f"--format {name} holds {kinds}; {self.kind} are wanted from {self.name}")
        return format

    def _reset(self) -> None:
        """Sets all counts to 0 and forgets the formats and the rows that belong together."""
        self.read = self.used = self.records = 0
        self.depends_on_order = False
        self.refused = RefusedRows(self.strict, self.most_refused)
        self.formats: Counter[str] = Counter()
        self.recognised: set[str] = set()
        self._certain_formats: set[Format] = set()  # formats of rows that fit only one
        # groups of rows (by tree) and of answers (by prompt), whose members may be anywhere in the file
        self._rows_by_tree: Groups | None = None
        self._answers_by_prompt: Groups | None = None

    def __iter__(self) -> Iterator[Record]:
        self._reset()
        for origin, row in self._open_rows():
            self.read += 1
            try:
                records = self._read_row(origin, row)
            except BadRow as fault:
                self._refuse(origin, self._explain_fault(fault, row))
            else:
                yield from records
        for rows in self._rows_by_tree or ():
            yield from self._read_tree(rows)
        for answers in self._answers_by_prompt or ():
            yield from self._read_answers([Answer(*answer) for answer in answers])
        if not self.tolerant and not self.records:
            self._raise_unusable()

    def require_first(self) -> None:
        """Reads up to the first usable record: raises early what iterating would raise for a file without one."""
        next(iter(self), None)

    def _open_rows(self) -> Iterator[tuple[str, Any]]:
        """Yields (origin, row) for all rows; subclasses read others."""
        return source_rows(self.name)

    def _refuse(self, origin: str, fault: BadRow) -> None:
        self.refused.add(origin, fault.with_advice(self.has_flags))

    def _explain_fault(self, fault: BadRow, row: Any) -> BadRow:
        """The fault, or its cause if the row is an object that holds several rows."""
        if isinstance(row, dict):
            return explain_wrapped_rows(row, not fault.reason.startswith(UNKNOWN)) or fault
        return fault

    def _count_records(self, records: Sequence[Any], rows: int, name: str) -> None:
        """Counts records that were made of `rows` rows of a format."""
        self.used += rows
        self.records += len(records)
        self.formats[name] += rows

    # -----------------------------------------------------------------------------------------------------------------
    # one row

    def _read_row(self, origin: str, row: Any) -> list[Any]:
        """The records of a row; [] if the row belongs to others, with which it is read later."""
        row = self._columns.rename_columns(row if type(row) is dict else self._check_row(origin, row))
        format = self._choose_format(origin, row)
        wrapper = format if format.unwrap is not None else None
        if format.unwrap is not None:
            row = format.unwrap(row)
            format = CORRECTION if "correction" in row else MESSAGES
        kind = self.kind or format.kinds[0] if format.readers else self.kind or "demonstrations"
        if kind == "texts":
            self.recognised.add(format.name)
            texts = make_texts(format, row)
            self._count_records(texts, 1, format.name)
            return texts
        if format.group_key is not None:
            self.recognised.add(format.name)
            self.depends_on_order = True
            self._rows_by_tree = self._rows_by_tree or Groups()
            self._rows_by_tree.add(fingerprint(f"{format.name} {format.group_key(row)}"), [origin, format.name, row])
            return []
        grade = None if kind == "prompts" else find_grade(format, row)
        name = (wrapper or format).name if grade is None else grade.format.name
        self.recognised.add(name)
        is_named = self._format is not None or bool(self._columns.known_name_by_column)
        drafts = make_drafts(format, row, "demonstrations" if grade is not None else kind, is_named)
        if grade is not None and len(drafts) > 1:
            raise BadRow("a verdict or score stands beside several answers", ", ".join(grade.columns))
        if grade is None and drafts[0].grade is not None:
            grade = Grade(drafts[0].grade, False, ())
        if grade is not None and grade.is_verdict and self.keeps_votes:
            return [self._make_vote(origin, row, format, name, drafts[0], grade)]
        if grade is not None and not (grade.is_verdict and kind == self.kind == "demonstrations"):
            self._save_answer(origin, row, format, name, drafts[0], grade)
            return []
        if grade is not None and not grade.value:
            raise BadRow(LABELLED_BAD, ", ".join(grade.columns))
        records = [make_record(draft, kind) for draft in drafts]
        meta = self._unused_values(row, format, kind)
        for draft, record in zip(drafts, records, strict=True):
            self._set_sources([record], origin, {**meta, **draft.meta} if draft.meta else meta)
        self._count_records(records, 1, name)
        return records

    def _check_row(self, origin: str, row: Any) -> dict[str, Any]:
        """The row of a value that is not a plain object: a list of messages is a conversation. BadRow for others."""
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

    def _choose_format(self, origin: str, row: dict[str, Any]) -> Format:
        """The row's format. BadRow if there is none; UserError if several fit and no earlier row decides."""
        formats = self._fitting_formats(row)
        if self._format is not None:
            if self._format.name in GRADED_FORMATS:
                graded_formats = [f for f in formats if (grade := find_grade(f, row)) and grade.format is self._format]
                if not graded_formats:
                    raise explain_other_format(self._format, row)
                return graded_formats[0]
            # the user named it, even if another format is more specific
            if self._format not in formats and not self._format.is_format_of(row):
                raise explain_other_format(self._format, row)
            return self._format
        if not formats:
            raise explain_unrecognised_row(row, self.kind)
        if formats[0].unusable_reason and self.kind not in formats[0].readers:
            raise BadRow(formats[0].unusable_reason, f"format {formats[0].name}")
        if len(formats) == 1 or _is_same_reading(formats, self.kind, row):
            self._certain_formats.add(formats[0])
            return formats[0]
        self.depends_on_order = True
        if certain_formats := [format for format in formats if format in self._certain_formats]:
            return certain_formats[0]  # a row that fits several formats is read like the rows before it
        names = ", ".join(format.name for format in formats)
        if self.kind is not None and any(self.kind not in format.readers for format in formats):
            # graded answers, which are ranked with others: no --format names the one of the answer
            raise BadRow(SEVERAL, names + ("; try --columns ignore=NAME" if self.has_flags else ""))
        if self._certain_formats:
            raise BadRow(SEVERAL, names + ("; say which one with --format" if self.has_flags else ""))
        raise UserError(_ambiguity_message(self.name, self.kind, formats, origin, row, self.has_flags))

    def _fitting_formats(self, row: dict[str, Any]) -> tuple[Format, ...]:
        """The formats that a row fits; only those with the columns that --columns names, if there are any."""
        is_graded = self._format is not None and self._format.name in GRADED_FORMATS
        formats = recognise_formats(row, "demonstrations" if is_graded else self.kind)
        if self.kind == "rankings" and all(format.unusable_reason for format in formats):
            # answers of one prompt in several rows, each with its grade
            answer_formats = recognise_formats(row, "demonstrations")
            formats = tuple(format for format in answer_formats if find_grade(format, row) is not None) or formats
        if len(formats) > 1 and self._columns.known_name_by_column:
            named_columns = set(self._columns.known_name_by_column.values())
            return tuple(format for format in formats if named_columns <= format.columns) or formats
        return formats

    def _unused_values(self, row: dict[str, Any], format: Format, kind: RecordKind) -> dict[str, Any]:
        """{column: value} of the row's columns that were not used, for the prompt's meta."""
        meta = {name.removeprefix(IGNORED_PREFIX): row[name] for name in unused_columns(format, tuple(row), kind)}
        if meta and (kind == "demonstrations" or (kind == "rankings" and format.has_one_answer)):
            meta = {name: value for name, value in meta.items() if not is_grade_column(name, value)}
        for name in FORMAT_BY_KIND[kind].columns.intersection(meta):
            del meta[name]
        return meta

    def _set_sources(self, records: Sequence[Any], origin: str, meta: dict[str, Any]) -> None:
        """Sets the meta and the origin of the records' prompts."""
        for record in records:
            set_meta_and_origin(record if isinstance(record, Prompt) else record.prompt, meta, origin)

    def _make_vote(
        self, origin: str, row: dict[str, Any], format: Format, name: str, draft: Draft, grade: Grade
    ) -> Vote:
        """The vote of a row with one answer and a verdict on it. BadRow if it is not valid."""
        answer = make_record(draft._replace(ranks=None), "demonstrations")
        assert isinstance(answer, Demonstration)
        response = text_to_compare(Message("assistant", answer.response, tool_calls=answer.tool_calls))
        vote = Vote(answer.prompt, response, bool(grade.value))
        self._set_sources([vote], origin, self._unused_values(row, format, "rankings"))
        self._count_records([vote], 1, name)
        return vote

    # -----------------------------------------------------------------------------------------------------------------
    # rows that belong together

    def _save_answer(
        self, origin: str, row: dict[str, Any], format: Format, name: str, draft: Draft, grade: Grade
    ) -> None:
        """Saves a graded answer until all answers to its prompt were read."""
        make_record(draft._replace(ranks=None), "demonstrations")  # an invalid answer is refused without the others
        self.depends_on_order = True
        self._answers_by_prompt = self._answers_by_prompt or Groups()
        turns = [message.values for message in draft.turns]
        key = fingerprint(json.dumps([turns, grade.is_verdict, *([draft.tools] if draft.tools else [])]))
        meta = self._unused_values(row, format, self.kind or "rankings")
        response = Message("assistant", draft.answers[0], tool_calls=draft.tool_calls).values
        answer = Answer(origin, name, meta, turns, response, grade.value, grade.is_verdict, draft.tools)
        self._answers_by_prompt.add(key, answer)

    def _read_answers(self, answers: list[Answer]) -> list[Any]:
        """The records of one prompt's answers: a ranking, or demonstrations of the good ones or of the best ones."""
        first = answers[0]
        best_grade = max(answer.grade for answer in answers)
        can_be_ranked = len(answers) > 1 and (
            self.kind is not None or best_grade > min(answer.grade for answer in answers)
        )
        turns = tuple(Message(*turn) for turn in first.turns)
        if self.kind == "rankings" or (self.kind is None and can_be_ranked):
            try:
                if not can_be_ranked:
                    raise BadRow("a ranking needs at least 2 rows of one prompt")
                ranks = ranks_from_scores([answer.grade for answer in answers])
                responses = tuple(text_to_compare(Message(*answer.response)) for answer in answers)
                ranking = make_record(Draft(turns, responses, ranks, tools=first.tools), "rankings")
            except BadRow as fault:
                for answer in answers:
                    self._refuse(answer.origin, fault)
                return []
            self._set_sources([ranking], first.origin, first.meta)
            self._count_records([ranking], len(answers), first.name)
            return [ranking]
        records = []
        for answer in answers:
            if answer.is_verdict and not answer.grade:
                self._refuse(answer.origin, BadRow(LABELLED_BAD))
            elif not answer.is_verdict and best_grade <= 0:
                self._refuse(answer.origin, BadRow(NOT_GOOD, f"{answer.grade:g}"))
            elif answer.grade < best_grade:
                self._refuse(answer.origin, BadRow(NOT_CHOSEN, f"{answer.grade:g} and {best_grade:g}"))
            else:
                draft = make_draft(turns, Message(*answer.response))
                record = make_record(draft._replace(tools=first.tools), "demonstrations")
                self._set_sources([record], answer.origin, answer.meta)
                self._count_records([record], 1, answer.name)
                records.append(record)
        return records

    def _read_tree(self, rows: list[Any]) -> list[Any]:
        """The records of a tree whose messages are in several rows."""
        origin, name, first_row = rows[0]
        format = find_format(name)
        kinds = [self.kind] if self.kind else [kind for kind in format.kinds if kind != "prompts"]
        faults: list[BadRow] = []
        for kind in kinds:
            try:
                merged = first_row if format.merge_rows is None else format.merge_rows([row for _, _, row in rows])
                records = [make_record(draft, kind) for draft in make_drafts(format, merged, kind)]
            except BadRow as fault:
                faults.append(fault)
                continue
            self._set_sources(records, origin, self._unused_values(first_row, format, kind))
            self._count_records(records, len(rows), name)
            return records
        for row_origin, _, _ in rows:
            self._refuse(row_origin, faults[0])
        return []

    def _raise_unusable(self) -> None:
        """Raises UserError for a file without a usable row."""
        if not self.read:
            raise UserError(f"{self.name}: no rows; the file is empty")
        raise UserError(f"{self.name}: {none_of_phrase(self.read, 'row')} can be used:\n{self.refused.summary()}")


def _is_same_reading(formats: Iterable[Format], kind: RecordKind | None, row: dict[str, Any]) -> bool:
    """Whether the row gives the same records in all these formats, so that any of them can be taken."""
    readings: list[object] = []
    for format in formats:
        try:
            readings.append(_read_single_row(format, row, kind or format.kinds[0]))
        except BadRow as fault:
            if kind != "prompts":
                return False
            readings.append(str(fault))
    return all(reading == readings[0] for reading in readings)


def _read_single_row(format: Format, row: dict[str, Any], kind: RecordKind, is_named: bool = False) -> list[Any]:
    """The records of a row without any other row."""
    if kind == "texts":
        return make_texts(format, row)
    row = row if format.merge_rows is None else format.merge_rows([row])
    return [make_record(draft, kind) for draft in make_drafts(format, row, kind, is_named)]


def _ambiguity_message(
    name: str, kind: RecordKind | None, formats: Iterable[Format], origin: str, row: dict[str, Any], has_flags: bool
) -> str:
    """The question to the user, with the reading of the row in each format."""
    advice = "say which one with --format" if has_flags else "remove the columns that are not meant"
    lines = [f"{name}: its rows fit several formats; {advice}:"]
    for format in formats:
        kinds = [kind] if kind else list(format.readers)
        flag = f"--format {format.name:<14}" if has_flags else f"{format.name:<14}"
        lines.append(f"  {flag} {' and '.join(kinds)}: {_describe_reading(format, kinds[0], row)}")
    row_text = json.dumps(row, default=repr)
    if len(row_text) > 5 * MESSAGE_CHARACTERS:
        row_text = row_text[: 5 * MESSAGE_CHARACTERS] + "..."
    return "\n".join([*lines, f"  the row at {origin}: {row_text}"])


def _describe_reading(format: Format, kind: RecordKind, row: dict[str, Any]) -> str:
    """What the row becomes in a format, in one line."""
    try:
        record = _read_single_row(format, row, kind, is_named=True)[0]
    except BadRow as fault:
        return f"refused: {fault}"
    if isinstance(record, Text):
        return _shorten(record.text)
    if isinstance(record, Prompt):
        return _shorten(record.messages[-1].content)
    if isinstance(record, Demonstration):
        answers: Sequence[str] = [Message("assistant", record.response, tool_calls=record.tool_calls).text]
    elif isinstance(record, StepLabels):
        answers = record.steps
    else:
        answers = record.responses
    return f"{_shorten(record.prompt.messages[-1].content)} -> {' | '.join(map(_shorten, answers))}"


def _shorten(text: str) -> str:
    return json.dumps(text[:MESSAGE_CHARACTERS]) + ("..." if len(text) > MESSAGE_CHARACTERS else "")


def every_turn(demonstrations: Iterable[Demonstration]) -> Iterator[Demonstration]:
    """A demonstration for each answer of each conversation, the earlier answers first, so that all are learned.

    Answers that their data set marks as not to be learned (`Message.is_trained`) stay context.
    """
    for demonstration in demonstrations:
        messages = demonstration.prompt.messages
        for end in range(1, len(messages)):
            question, answer = messages[end - 1 : end + 1]
            is_turn = question.role in ("user", "tool") and answer.role == "assistant" and answer.is_trained
            if is_turn and (question.content.strip() or question.role == "tool") and answer.text.strip():
                prompt = dataclasses.replace(demonstration.prompt, messages=messages[:end])
                yield Demonstration(prompt, answer.content, answer.tool_calls)
        yield demonstration


def read_rankings(name: str, strict: bool = False, format: str | None = None) -> tuple[list[Ranking], RefusedRows]:
    """All rankings at once, and what was refused. UserError if there is none."""
    return _read_all(Source(name, "rankings", format, strict))


def read_prompts(
    name: str, strict: bool = False, format: str | None = None, columns: str | None = None, has_flags: bool = False
) -> tuple[list[Prompt], RefusedRows]:
    """All prompts at once, from rows of any format, and what was refused. UserError if there is none."""
    return _read_all(Source(name, "prompts", format, strict, columns=columns, has_flags=has_flags))


def read_texts(name: str, strict: bool = False, format: str | None = None) -> tuple[list[Text], RefusedRows]:
    """All texts at once, and what was refused. UserError if there is none."""
    return _read_all(Source(name, "texts", format, strict))


def _read_all(source: Source[Record]) -> tuple[list[Record], RefusedRows]:
    return list(source), source.refused
