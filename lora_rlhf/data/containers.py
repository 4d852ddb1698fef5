"""The rows of any file. Its bytes decide the container: JSONL, JSON, a table, Parquet or text, gzipped or not."""

import codecs
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from lora_rlhf.data.formats import SPELLINGS
from lora_rlhf.data.hub import hub_rows, saved_rows
from lora_rlhf.data.io import GZIP, UNREADABLE, ByteStream, damaged_row, open_bytes
from lora_rlhf.data.json_rows import is_json_list, is_not_jsonl, json_documents, json_lines
from lora_rlhf.data.locate import DataFiles, HubDataset, data_suffix, locate
from lora_rlhf.data.names import column_meaning, fold_name
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.tables import csv_header, csv_rows, parquet_rows
from lora_rlhf.system.errors import UserError

HEAD = 2**16  # bytes that decide the container
TEXT_CHUNK = 2**20  # bytes of plain text in one row
PARQUET = b"PAR1"
JSON_SUFFIXES = {".jsonl", ".ndjson", ".json"}
TABLE_SUFFIXES = {".csv", ".tsv"}
# A list of rows begins with an object, and an object with a name; a text that begins with "[1]" or "{x" does not.
JSON_LIST = re.compile(r"\[\s*[{\]\"]")
LISTS_IN_LINES = re.compile(r"\[[^\n]*\]\s*\n\s*\[")
JSON_OBJECT = re.compile(r"\{\s*[\"}]")

Container = Literal["jsonl", "json", "csv", "parquet", "text"]

# (first bytes, what the file is, what the user can do) of files that are not read here
FOREIGN = (
    (b"PK\x03\x04", "a ZIP archive (or an Excel sheet)", "unpack it with unzip, or save the sheet as CSV"),
    (b"\xfd7zXZ\x00", "packed with xz", "unpack it with xz -d"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", "unpack it with zstd -d"),
    (b"BZh", "packed with bzip2", "unpack it with bunzip2"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it with 7z x"),
    (GZIP, "gzipped twice", "unpack it once with gunzip"),
    (PARQUET, "a gzipped Parquet file", "unpack it with gunzip: Parquet is packed already"),
    (codecs.BOM_UTF16_LE, "UTF-16 text", "save it as UTF-8: iconv -f UTF-16 -t UTF-8"),
    (codecs.BOM_UTF16_BE, "UTF-16 text", "save it as UTF-8: iconv -f UTF-16 -t UTF-8"),
    (b"ARROW1", "an Arrow file", "give the folder that save_to_disk wrote, or save it as Parquet"),
    (b"%PDF", "a PDF", "save its text as UTF-8"),
)


def source_rows(name: str) -> Iterator[tuple[str, Any]]:
    """Yields (origin, row) for all rows that a name stands for (see `locate`)."""
    source = locate(name)
    if isinstance(source, DataFiles):
        for path in source.paths:
            yield from file_rows(path)
    elif isinstance(source, HubDataset):
        yield from hub_rows(source)
    else:
        yield from saved_rows(source.path)


def file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields (origin, row) for every row of a file, in flat memory.

    origin: "path:line", the line on which the row begins; "path row N" for Parquet; "path:line row N" for JSON that is
    not one row a line. row: usually a dict; a BadRow for a row that is not one; a Damaged, last, where the rest of the
    file cannot be read. Plain text comes in rows {"text": ...} of whole lines, at most 1 MiB each.

    Raises UserError as `detect_container`.
    """
    container = detect_container(path)
    if container == "parquet":
        return parquet_rows(path)
    if container == "csv":
        return csv_rows(path)
    if container == "text":
        return _read_stream_rows(path, _text_rows)
    return _read_stream_rows(path, json_lines if container == "jsonl" else json_documents)


def detect_container(path: Path) -> Container:
    """Which container a file is, gzipped or not.

    Raises UserError for a file that is not there, that may not be read, or whose kind is not read here.
    """
    try:
        with open(path, "rb") as file:
            if file.read(len(PARQUET)) == PARQUET:
                return "parquet"
        head = _read_head(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    _require_text(path, head)
    # errors="replace": the head may end within a character
    return _detect_text_container(data_suffix(path), head.decode("utf-8-sig", errors="replace").lstrip())


def _detect_text_container(suffix: str, head: str) -> Container:
    """The container of a file that is not Parquet, from its suffix and the beginning of its text."""
    if head.startswith("[") and (JSON_LIST.match(head) or suffix in JSON_SUFFIXES):
        return "jsonl" if LISTS_IN_LINES.match(head) and is_json_list(head.partition("\n")[0]) else "json"
    if head.startswith("{") and (JSON_OBJECT.match(head) or suffix in JSON_SUFFIXES):
        return "json" if is_not_jsonl(head) else "jsonl"
    if suffix in TABLE_SUFFIXES or _is_table_header(head):
        return "csv"
    return "jsonl" if suffix in JSON_SUFFIXES else "text"


def _read_stream_rows(
    path: Path, read: Callable[[Path, ByteStream], Iterator[tuple[str, Any]]]
) -> Iterator[tuple[str, Any]]:
    """Opens the file, unpacked if it is gzipped, and yields what `read` yields."""
    with open_bytes(path) as stream:
        yield from read(path, stream)


def _read_head(path: Path) -> bytes:
    """The first bytes of the unpacked file, at most HEAD. Damage is no error here: reading the rows reports it."""
    head = b""
    with open_bytes(path) as stream, suppress(*UNREADABLE):  # damage is reported where reading the rows comes to it
        while len(head) < HEAD and (part := stream.read1(HEAD - len(head))):
            head += part
    return head


def _require_text(path: Path, head: bytes) -> None:
    """UserError, with what the user can do, if a file that begins with `head` is not UTF-8 text."""
    for magic, kind, way_out in FOREIGN:
        if head.startswith(magic):
            raise UserError(f"{path}: this is {kind}; {way_out}")
    if head[257:262] == b"ustar":
        raise UserError(f"{path}: this is a tar archive; unpack it with tar -xf and give the folder")
    if b"\0" in head:
        halves = head[:256:2], head[1:256:2]  # of UTF-16, one half of most letters is 0
        if any(half.count(0) > 0.6 * len(half) for half in halves):
            raise UserError(f"{path}: this is UTF-16 text; save it as UTF-8: iconv -f UTF-16LE -t UTF-8")
        readable_kinds = "JSONL, JSON, CSV, Parquet and UTF-8 text, also gzipped"
        raise UserError(f"{path}: this is a binary file, or text that is not UTF-8; what can be read: {readable_kinds}")


def _is_table_header(head: str) -> bool:
    """Whether the first line names several columns that are all known here."""
    _, names = csv_header(head.partition("\n")[0])
    return len(names) > 1 and all(fold_name(name) in SPELLINGS or column_meaning(name) for name in names)


def _text_rows(path: Path, stream: ByteStream) -> Iterator[tuple[str, Any]]:
    """Yields (origin, row) for chunks of whole lines of plain text; see `file_rows`."""
    line, remainder = 1, b""
    try:
        while data := remainder + stream.read(TEXT_CHUNK - len(remainder)):
            chunk_bytes = len(data) if len(data) < TEXT_CHUNK else _cut_index(data)
            chunk, remainder = data[:chunk_bytes], data[chunk_bytes:]
            if chunk.strip():
                yield f"{path}:{line}", _decode_text_row(chunk, line)
            line += chunk.count(b"\n")
    except UNREADABLE as error:
        yield f"{path}:{line}", damaged_row(error)


def _cut_index(data: bytes) -> int:
    """The index to cut at: after the last line end, else after the last space, else between two characters."""
    if cut := data.rfind(b"\n") + 1 or data.rfind(b" ") + 1:
        return cut
    cut = len(data) - 1
    while cut > len(data) - 4 and data[cut] & 0xC0 == 0x80:  # within a character of UTF-8
        cut -= 1
    return cut


def _decode_text_row(chunk: bytes, line: int) -> dict[str, str] | BadRow:
    """The row of a chunk that begins at this line; a BadRow if the chunk is not UTF-8."""
    try:
        return {"text": chunk.decode("utf-8-sig" if line == 1 else "utf-8").replace("\r\n", "\n")}
    except UnicodeDecodeError as error:
        bad_line = line + chunk.count(b"\n", 0, error.start)
        return BadRow("the text is not UTF-8; save the file as UTF-8", f"line {bad_line}")
