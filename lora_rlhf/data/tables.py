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
from lora_rlhf.data.io import UNREADABLE, damaged_row, open_bytes
from lora_rlhf.data.json_rows import MAX_ELEMENT
from lora_rlhf.data.json_values import NOT_UTF8
from lora_rlhf.data.names import fold_name
from lora_rlhf.data.refusals import BadRow, Damaged

if TYPE_CHECKING:
    import pyarrow

DELIMITERS = ",\t;"
SEPARATOR = re.compile(r'"?sep=(.)"?\s*')
MAX_WORDS = 5  # of a column's name
UNNAMED = "Unnamed: "  # pandas names a column without a name so
# Texts that mean an empty cell, as in pandas.
MISSING = frozenset(("", "nan", "NaN", "NULL", "null", "N/A", "n/a", "NA", "<NA>", "#N/A", "None"))
BATCH_ROWS = 256
CONVERSION_ERRORS = (ValueError, OverflowError)  # text that is not UTF-8; dates and times beyond Python's
PARQUET_BUFFER = 2**20  # bytes of each column that are read at a time; without it a whole row group is in memory


def csv_header(line: str, delimiter: str | None = None) -> tuple[str, list[str]]:
    """(delimiter, names) of a table's header: the delimiter that gives most names, a comma if several give as many."""
    # StringIO with newline="": a carriage return alone also ends a line, as in the file
    names_by_delimiter = {
        delimiter_character: next(csv.reader(io.StringIO(line, newline=""), delimiter=delimiter_character), [])
        for delimiter_character in (delimiter or DELIMITERS)
    }
    delimiter = max(names_by_delimiter, key=lambda delimiter_character: len(names_by_delimiter[delimiter_character]))
    return delimiter, [name.strip() for name in names_by_delimiter[delimiter]]


def csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields ("path:line", row) for each row of a table whose first line names the columns.

    A cell is text; None if it is empty or one of MISSING; parsed if its column holds lists. Columns without a name are
    left out: programs that number the rows write one. Rows that do not fit the header are refused. A first line
    "sep=;", as Excel writes it, names the delimiter.
    """
    csv.field_size_limit(MAX_ELEMENT)  # also the library's default of 128 KiB holds for the whole process
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
            if header_fault := _find_header_fault(names) or _find_missing_header(names):
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
                    fault = _fault_from_csv_error(error)
                    yield f"{name}:{first_line}", fault
                    if isinstance(fault, Damaged):
                        return
                    continue
                if cells:
                    yield f"{name}:{first_line}", _make_csv_row(names, cells)
        except UNREADABLE as error:
            yield f"{name}:{first_line}", damaged_row(error)


def _find_header_fault(names: Sequence[str]) -> Damaged | None:
    """The Damaged for names that are not UTF-8 or that occur twice; None if there is no fault."""
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        return Damaged("the header is not UTF-8 text; save the file as UTF-8")
    duplicate = next((name for name in names if name and names.count(name) > 1), None)
    return None if duplicate is None else Damaged("a column stands twice in the header", repr(duplicate))


def _find_missing_header(names: Sequence[str]) -> Damaged | None:
    """The Damaged for a first line that is a row rather than names: none is known, and one is a sentence."""
    is_sentence = [len(name.split()) > MAX_WORDS or name.endswith((".", "?", "!")) for name in names]
    if not any(is_sentence) or any(fold_name(name) in SPELLINGS for name in names):
        return None
    advice = "write the names of the columns above it, such as prompt,completion"
    return Damaged("the first line seems to be a row, not a header", advice)


def _fault_from_csv_error(error: csv.Error) -> BadRow:
    """The library's error as a BadRow, or as a Damaged if the rest of the file cannot be read."""
    if "unexpected end of data" in str(error):
        return Damaged("a quoted cell has no end", 'a quote (") within a cell is written twice')
    if "field larger" in str(error):
        return Damaged("a cell is longer than 256 MiB", "a quoted cell may have no end")
    return BadRow("the line is not CSV", str(error))


def _make_csv_row(names: Sequence[str], cells: Sequence[str]) -> dict[str, Any] | BadRow:
    """The row of these cells; a BadRow if their number is wrong or a cell cannot be read."""
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
    """The value of a cell: text, None if it is empty, parsed if its column holds lists."""
    if cell[:1] in ("[", "{") and SPELLINGS.get(fold_name(name)) in LIST_COLUMNS:
        return parse_list(cell)
    return None if cell in MISSING else cell


def parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields ("path row N", row) for each row of a Parquet file, N from 1, read in small batches.

    A damaged file ends with a fault in place of a row.
    """
    import pyarrow
    from pyarrow import parquet

    name, count = str(path), 0
    try:
        with parquet.ParquetFile(path, buffer_size=PARQUET_BUFFER, pre_buffer=False) as file:
            if fault := _find_header_fault(file.schema_arrow.names):
                yield f"{name} row 1", fault
                return
            for batch in file.iter_batches(BATCH_ROWS, use_threads=False):
                for row in batch_rows(batch):
                    count += 1
                    yield f"{name} row {count}", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # UnicodeDecodeError: for names of columns
        yield f"{name} row {count + 1}", Damaged("the Parquet file is cut short or damaged", str(error))


def batch_rows(batch: "pyarrow.RecordBatch") -> list[dict[str, Any] | BadRow]:
    """The rows of a record batch as plain Python values; a BadRow for a row that cannot be converted."""
    try:
        rows = batch.to_pylist()
    except CONVERSION_ERRORS:  # convert row by row, to lose only the rows with such a value
        return [_convert_single_row(batch.slice(index, 1)) for index in range(batch.num_rows)]
    # most columns are text, which needs no conversion
    other_columns = [field.name for field in batch.schema if not _is_plain_type(field.type)]
    return [to_plain_row(row, other_columns) for row in rows] if other_columns else rows


def _convert_single_row(batch: "pyarrow.RecordBatch") -> dict[str, Any] | BadRow:
    """The only row of a batch as plain Python values; a BadRow if it cannot be converted."""
    try:
        return to_plain_row(batch.to_pylist()[0])
    except UnicodeDecodeError:
        return BadRow(NOT_UTF8)
    except CONVERSION_ERRORS as error:
        return BadRow("a value has no form in Python", str(error))


def _is_plain_type(type_: "pyarrow.DataType") -> bool:
    """Whether Arrow gives values of this type as plain Python values."""
    from pyarrow import types

    if types.is_struct(type_):
        return all(_is_plain_type(field.type) for field in type_)
    if types.is_list(type_) or types.is_large_list(type_):
        return _is_plain_type(type_.value_type)
    plain_types = (types.is_string, types.is_large_string, types.is_integer, types.is_boolean, types.is_null)
    return any(is_type(type_) for is_type in plain_types)


def to_plain_row(row: dict[str, Any], names: Sequence[str] | None = None) -> dict[str, Any] | BadRow:
    """The row with the named columns (None: all) as JSON can hold them; a BadRow if one holds bytes or an object.

    Dates and times become ISO text, decimals numbers, NaN and infinity None.
    """
    try:
        return row | {name: _to_plain_value(row[name]) for name in (row if names is None else names)}
    except _NotPlainError as error:
        return BadRow("the row holds bytes or objects, not text", str(error))


class _NotPlainError(Exception):
    pass


def _to_plain_value(value: Any) -> Any:
    """The value as JSON can hold it, also within lists and objects. Raises _NotPlainError for bytes and objects."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float | Decimal):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _to_plain_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain_value(item) for item in value]
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise _NotPlainError(f"got {type(value).__name__}")
