"""Rows of tables: CSV and TSV with a header, Parquet, and the record batches of Arrow, as plain Python values."""

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lora_rlhf.data.cells import parse_list
from lora_rlhf.data.formats import LIST_COLUMNS, SPELLINGS
from lora_rlhf.data.io import UNREADABLE, open_bytes, unreadable
from lora_rlhf.data.json_rows import MAX_ELEMENT
from lora_rlhf.data.json_values import NOT_UTF8
from lora_rlhf.data.names import folded
from lora_rlhf.data.refusals import BadRow, Damaged

if TYPE_CHECKING:
    import pyarrow

DELIMITERS = ",\t;"
SEPARATOR = re.compile(r'"?sep=(.)"?\s*')
MOST_WORDS = 5  # of a column's name
UNNAMED = "Unnamed: "  # how pandas calls a column without a name
# What stands for an empty cell: pandas reads these so, too.
MISSING = frozenset(("", "nan", "NaN", "NULL", "null", "N/A", "n/a", "NA", "<NA>", "#N/A", "None"))
BATCH_ROWS = 256
FORMLESS = (ValueError, OverflowError)  # text that is not UTF-8; dates and times beyond Python's
PARQUET_BUFFER = 2**20  # bytes read at a time of each column; without it a whole row group would be held


def csv_header(line: str, delimiter: str | None = None) -> tuple[str, list[str]]:
    """(delimiter, names) of a table's header: the delimiter that gives most names, a comma if none does."""
    # as a file, in which a carriage return alone ends a line, too
    parsed = {
        mark: next(csv.reader(io.StringIO(line, newline=""), delimiter=mark), []) for mark in (delimiter or DELIMITERS)
    }
    delimiter = max(parsed, key=lambda mark: len(parsed[mark]))
    return delimiter, [name.strip() for name in parsed[delimiter]]


def csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields ("path:line", row) for each row of a table whose first line names the columns.

    Cells are text, and None where they are empty or hold one of MISSING; those of the columns that hold lists are
    parsed. Columns without a name are left out: programs that number the rows write one. Rows that do not fit the
    header are refused. A first line "sep=;", as Excel writes it, names the delimiter.
    """
    csv.field_size_limit(MAX_ELEMENT)  # the library's own limit of 128 KiB is one for all of the process, too
    name, line, first_line = str(path), 1, 1
    with open_bytes(path) as stream:
        # what is not UTF-8 becomes lone surrogates, so that the other rows can be read
        lines = io.TextIOWrapper(cast(io.BufferedReader, stream), "utf-8-sig", errors="surrogateescape", newline="")
        try:
            header, separator = lines.readline(), None
            while header and (not header.strip() or SEPARATOR.fullmatch(header)):
                separator = SEPARATOR.fullmatch(header) or separator
                header, line = lines.readline(), line + 1
            delimiter, names = csv_header(header, None if separator is None else separator[1])
            if header_fault := _header_fault(names) or _missing_header(names):
                yield f"{name}:{line}", header_fault
                return
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            while True:
                first_line = line + reader.line_num + 1
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    fault = _csv_fault(error)
                    yield f"{name}:{first_line}", fault
                    if isinstance(fault, Damaged):
                        return
                    continue
                if cells:
                    yield f"{name}:{first_line}", _csv_row(names, cells)
        except UNREADABLE as error:
            yield f"{name}:{first_line}", unreadable(error)


def _header_fault(names: Sequence[str]) -> Damaged | None:
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        return Damaged("the header is not UTF-8 text; save the file as UTF-8")
    duplicate = next((name for name in names if name and names.count(name) > 1), None)
    return None if duplicate is None else Damaged("a column stands twice in the header", repr(duplicate))


def _missing_header(names: Sequence[str]) -> Damaged | None:
    """What to say of a first line that is a row rather than names: none is known, and one is a sentence."""
    is_sentence = [len(name.split()) > MOST_WORDS or name.endswith((".", "?", "!")) for name in names]
    if not any(is_sentence) or any(folded(name) in SPELLINGS for name in names):
        return None
    advice = "write the names of the columns above it, such as prompt,completion"
    return Damaged("the first line seems to be a row, not a header", advice)


def _csv_fault(error: csv.Error) -> BadRow:
    if "unexpected end of data" in str(error):
        return Damaged("a quoted cell has no end", 'a quote (") within a cell is written twice')
    if "field larger" in str(error):
        return Damaged("a cell is longer than 256 MiB", "a quoted cell may have no end")
    return BadRow("the line is not CSV", str(error))


def _csv_row(names: Sequence[str], cells: Sequence[str]) -> dict[str, Any] | BadRow:
    if len(cells) != len(names):
        reason = "the row has more cells than the header" if len(cells) > len(names) else "the row lacks cells"
        return BadRow(reason, f"{len(cells)} cells, {len(names)} columns")
    row: dict[str, Any] = {}
    for name, cell in zip(names, cells, strict=True):
        if not cell.isascii():
            try:
                cell.encode()
            except UnicodeEncodeError:
                return BadRow(NOT_UTF8, f"column {name!r}; save the file as UTF-8")
        if not name or name.startswith(UNNAMED):
            continue
        row[name] = _cell_value(name, cell)
        if isinstance(row[name], BadRow):
            return row[name]
    return row


def _cell_value(name: str, cell: str) -> Any:
    if cell[:1] in ("[", "{") and SPELLINGS.get(folded(name)) in LIST_COLUMNS:
        return parse_list(cell)
    return None if cell in MISSING else cell


def parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields ("path row N", row) for each row of a Parquet file, N from 1, read in small batches."""
    import pyarrow
    from pyarrow import parquet

    name, count = str(path), 0
    try:
        with parquet.ParquetFile(path, buffer_size=PARQUET_BUFFER, pre_buffer=False) as file:
            if fault := _header_fault(file.schema_arrow.names):
                yield f"{name} row 1", fault
                return
            for batch in file.iter_batches(BATCH_ROWS, use_threads=False):
                for row in batch_rows(batch):
                    count += 1
                    yield f"{name} row {count}", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # the last for names of columns
        yield f"{name} row {count + 1}", Damaged("the Parquet file is cut short or damaged", str(error))


def batch_rows(batch: "pyarrow.RecordBatch") -> list[dict[str, Any] | BadRow]:
    """The rows of a record batch as plain Python values, or a BadRow for a row that has none."""
    try:
        rows = batch.to_pylist()
    except FORMLESS:  # only the rows that hold such a value are lost
        return [_row_alone(batch.slice(index, 1)) for index in range(batch.num_rows)]
    # most columns are text, and need no second look
    other_columns = [field.name for field in batch.schema if not _is_plain(field.type)]
    return [plain_row(row, other_columns) for row in rows] if other_columns else rows


def _row_alone(batch: "pyarrow.RecordBatch") -> dict[str, Any] | BadRow:
    try:
        return plain_row(batch.to_pylist()[0])
    except UnicodeDecodeError:
        return BadRow(NOT_UTF8)
    except FORMLESS as error:
        return BadRow("a value has no form in Python", str(error))


def _is_plain(type_: "pyarrow.DataType") -> bool:
    from pyarrow import types

    if types.is_struct(type_):
        return all(_is_plain(field.type) for field in type_)
    if types.is_list(type_) or types.is_large_list(type_):
        return _is_plain(type_.value_type)
    plain_types = (types.is_string, types.is_large_string, types.is_integer, types.is_boolean, types.is_null)
    return any(is_type(type_) for is_type in plain_types)


def plain_row(row: dict[str, Any], names: Sequence[str] | None = None) -> dict[str, Any] | BadRow:
    """The row with what JSON can hold in the named columns (None: all); a BadRow if one holds bytes or an object.

    Dates and times become ISO text, decimals numbers, NaN and infinity None.
    """
    try:
        return row | {name: _plain(row[name]) for name in (row if names is None else names)}
    except _NotPlain as error:
        return BadRow("the row holds bytes or objects, not text", str(error))


class _NotPlain(Exception):
    pass


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float | Decimal):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise _NotPlain(f"got {type(value).__name__}")
