"""Rows in files: JSONL, JSON and plain text, gzipped or not, each row with its line; and writing JSONL atomically."""

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lora_rlhf.data.refusals import BadRow
from lora_rlhf.errors import UserError

ROW_SUFFIXES = (".jsonl", ".json")
TEXT_SUFFIX = ".txt"


def plain_suffix(path: Path) -> str:
    """The suffix that tells the format, in lower case and without `.gz`."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes one JSON object a line (gzipped if the name ends in `.gz`) and returns their number.

    The file appears whole or not at all: temporary name, fsync, rename. NaN and infinity are refused (not JSON).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    try:
        with open(temporary, "wb") as raw:
            # mtime 0: the same rows give the same bytes, so a data hash in a manifest means something
            packed = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if path.suffix == ".gz" else raw
            for row in rows:
                packed.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n")
                count += 1
            if packed is not raw:
                packed.close()
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return count


def file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields ("file:line", row) for each row of a JSONL or JSON file; a line that is not JSON yields a BadRow.

    A file that can not be read to its end (broken gzip, a JSON list that stops) is a UserError.
    """
    try:
        with _open(path) as stream:
            first = _first_byte(stream)
        with _open(path) as stream:
            yield from _list_rows(path, stream) if first == b"[" else _line_rows(path, stream)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: can not be read: {error}") from error


def file_text(path: Path) -> str:
    """The whole of a text file, gzipped or not. Raises UserError if it is not UTF-8."""
    try:
        with _open(path) as stream:
            return _decode(path, stream.read())
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: can not be read: {error}") from error


def _open(path: Path) -> BinaryIO:
    # bytes, split at "\n" only: text mode would also hide which line is not UTF-8
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else open(path, "rb")  # type: ignore[return-value]


def _first_byte(stream: BinaryIO) -> bytes:
    for line in stream:
        if text := line.removeprefix(b"\xef\xbb\xbf").strip():
            return text[:1]
    return b""


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None


def _line_rows(path: Path, stream: BinaryIO) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError:
            row = BadRow("the line is not UTF-8 text")
        except json.JSONDecodeError as error:
            row = BadRow("the line is not JSON", f"{error.msg} at column {error.colno}")
        except RecursionError:
            row = BadRow("the line is nested too deeply")
        yield f"{path}:{number}", row


def _list_rows(path: Path, stream: BinaryIO) -> Iterator[tuple[str, Any]]:
    text = _decode(path, stream.read())
    decoder = json.JSONDecoder()
    position = _skip_space(text, text.index("[") + 1)
    line, counted = 1, 0
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            row, end = decoder.raw_decode(text, position)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{path}:{line}: this element of the JSON list can not be read: {error}") from None
        yield f"{path}:{line}", row
        position = _skip_space(text, end)
        if text[position : position + 1] == ",":
            position = _skip_space(text, position + 1)
        elif text[position : position + 1] != "]":
            line += text.count("\n", counted, position)
            raise UserError(f"{path}:{line}: the JSON list stops or lacks a comma here; is the file cut short?")


def _skip_space(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\t", "\n", "\r"):
        position += 1
    return position
