"""JSON rows: one a line, or over many lines, in a list or one after another. A window of the text is in memory."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_rlhf.data.io import UNREADABLE, ByteStream, LineStream, damaged_row
from lora_rlhf.data.json_values import (
    DECODER,
    NOT_UTF8,
    bad_row_from_error,
    check_depth,
    decode_json,
    error_message,
    is_cut_short,
)
from lora_rlhf.data.refusals import BadRow, Damaged

MAX_ELEMENT = 256 * 2**20  # bytes of a line, characters of an element: one without an end must not fill the memory
WINDOW = 2**20
LOOKAHEAD = 16  # characters; a value that ends closer to the window's end may be cut: "12" of "123", "1" of "1e+5"
BREAKS_OFF = "the JSON text breaks off"

_SPACE = re.compile(r"[ \t\n\r]*")
_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{}]', re.DOTALL)
_SCALAR = re.compile(r"[-+.\w]+")


def json_lines(path: Path, stream: LineStream, lines_before: int = 0) -> Iterator[tuple[str, Any]]:
    """Yields ("path:line", row) for each line of JSONL that is not blank; see `containers.file_rows`.

    lines_before: the number of the file's lines before those of the stream.
    """
    name, number = str(path), lines_before  # a Path costs more to write than a row to decode
    try:
        while line := stream.readline(MAX_ELEMENT + 1):
            number += 1
            if len(line) > MAX_ELEMENT:
                yield f"{name}:{number}", Damaged("a line is longer than 256 MiB")
                return
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line := line.strip():
                yield f"{name}:{number}", decode_json(line)
    except UNREADABLE as error:
        yield f"{name}:{number + 1}", damaged_row(error)


def json_documents(
    path: Path, stream: ByteStream, window: int = WINDOW, limit: int = MAX_ELEMENT
) -> Iterator[tuple[str, Any]]:
    """Yields ("path:line row N", row) for each element of a JSON list, or for each of several JSON values.

    N counts from 1; several rows may be on one line. window: bytes in memory at a time, more only while one element is
    longer; limit: the most characters of one element.
    """
    name, text, number = str(path), _Window(stream, window, limit), 0
    try:
        in_list = text.next_character() == "["
        if in_list:
            text.position += 1
        while (character := text.next_character()) and not (in_list and character == "]"):
            if in_list and number:
                if character != ",":
                    raise Damaged("a comma is missing in the JSON list", f"found {character!r} at {text.location()}")
                text.position += 1
                text.next_character()
            line, value = text.line_number(), text.read_value()
            number += 1
            yield f"{name}:{line} row {number}", value
        if in_list:
            if not character:
                raise Damaged(BREAKS_OFF, f"the list has no end at {text.location()}")
            text.position += 1
            if character := text.next_character():
                raise Damaged("text follows the end of the JSON list", f"found {character!r} at {text.location()}")
    except Damaged as fault:
        yield f"{name}:{text.line_number()} row {number + 1}", fault
    except UNREADABLE as error:
        yield f"{name}:{text.line_number()} row {number + 1}", damaged_row(error)


def is_not_jsonl(head: str) -> bool:
    """Whether a text that begins with "{" is JSON but not JSONL: objects over many lines, or several in a line."""
    line, newline, _ = head.lstrip().partition("\n")
    try:
        _, end = DECODER.raw_decode(line)
        return line[end:].lstrip().startswith("{")
    except json.JSONDecodeError as error:
        # a line that ends within a string is cut short: an object over many lines breaks between its tokens
        return bool(newline) and not error.msg.startswith("Unterminated") and _is_valid_beginning(head.lstrip())
    except (BadRow, RecursionError, ValueError):
        return False


def is_json_list(line: str) -> bool:
    """Whether a line is a JSON list and nothing else."""
    return isinstance(decode_json(line.strip()), list)


def _is_valid_beginning(head: str) -> bool:
    """Whether the first value of a text is correct JSON as far as the text goes."""
    try:
        DECODER.raw_decode(head)
    except json.JSONDecodeError as error:
        return is_cut_short(error, head)
    except (BadRow, RecursionError, ValueError):
        pass
    return True


class _Window:
    """The part of a JSON text that is in memory, and the `position` in it from which the next value is read."""

    def __init__(self, stream: ByteStream, size: int, limit: int) -> None:
        self._stream = stream
        self._window_bytes = size
        self._limit = limit
        # what is not UTF-8 becomes lone surrogates, so that the other rows can be read
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="surrogateescape")
        self._damage: BaseException | None = None
        self._at_end = False
        self._is_utf8 = True
        self._counted_line = 1
        self._line_start = 0  # index at which the line of `_counted_to` begins; negative if that text was dropped
        self._counted_to = 0
        self._text = ""
        self.position = 0

    def line_number(self) -> int:
        """The line of the position, from 1."""
        if num_breaks := self._text.count("\n", self._counted_to, self.position):
            self._counted_line += num_breaks
            self._line_start = self._text.rindex("\n", self._counted_to, self.position) + 1
        self._counted_to = self.position
        return self._counted_line

    def location(self, index: int | None = None) -> str:
        """Returns "line L, column C" of a character at or after the position; None: of the position itself."""
        line, index = self.line_number(), self.position if index is None else index
        num_breaks = self._text.count("\n", self.position, index)
        line_start = self._text.rindex("\n", self.position, index) + 1 if num_breaks else self._line_start
        return f"line {line + num_breaks}, column {index - line_start + 1}"

    def next_character(self) -> str:
        """Skips white space; returns the character at the new position, or "" at the end of the text."""
        while True:
            self.position = _SPACE.match(self._text, self.position).end()  # type: ignore[union-attr]
            if self.position < len(self._text) or self._at_end:
                return self._text[self.position : self.position + 1]
            self._read_more()

    def read_value(self) -> Any:
        """Reads the value at the position and moves behind it. Raises Damaged if its end cannot be found."""
        while True:
            text, start = self._text, self.position
            try:
                value, end = DECODER.raw_decode(text, start)
            except json.JSONDecodeError as error:
                if self._at_end or not is_cut_short(error, text):
                    reason = BREAKS_OFF if self._at_end and is_cut_short(error, text) else "the JSON text is broken"
                    raise Damaged(reason, f"{error_message(error)} at {self.location(error.pos)}") from None
                end = len(text)
            except (BadRow, RecursionError, ValueError) as error:
                value, end = bad_row_from_error(error), _value_end_index(text, start)
            if self._at_end or end + LOOKAHEAD <= len(text):
                self.position = end
                return value if isinstance(value, BadRow) else self._check_value(value, text[start:end])
            self._read_more()

    def _check_value(self, value: Any, text: str) -> Any:
        """The value, or a BadRow if its text is not UTF-8 or is nested too deeply."""
        if not self._is_utf8:
            try:
                text.encode()
            except UnicodeEncodeError:
                return BadRow(NOT_UTF8)
        return check_depth(value, text)

    def _read_more(self) -> None:
        """Drops the text before the position and reads more.

        It reads as many bytes as there are characters left, so that a long element is copied only about twice.
        """
        self.line_number()
        unread = self._text[self.position :]
        if len(unread) > self._limit:
            raise Damaged("an element is longer than 256 MiB")
        data = self._read_bytes(max(self._window_bytes, len(unread)))
        self._at_end = not data
        new_text = self._decoder.decode(data, final=self._at_end)
        try:
            new_text.encode()
        except UnicodeEncodeError:
            self._is_utf8 = False
        self._line_start -= self.position
        self._text, self.position, self._counted_to = unread + new_text, 0, 0

    def _read_bytes(self, num_bytes: int) -> bytes:
        """The next bytes of the file, fewer at its end; raises the file's damage if there are none before it."""
        parts = []
        while num_bytes > 0 and self._damage is None:
            try:
                part = self._stream.read1(num_bytes)
            except UNREADABLE as error:
                self._damage = error  # raised after the bytes before it were used
                break
            if not part:
                break
            parts.append(part)
            num_bytes -= len(part)
        if self._damage and not parts:
            raise self._damage
        return b"".join(parts)


def _value_end_index(text: str, start: int) -> int:
    """The end of a value that cannot be decoded: where its brackets are closed, else the end of the text."""
    if text[start] not in "[{":
        scalar = _SCALAR.match(text, start)
        return scalar.end() if scalar else len(text)
    depth = 0
    for match in _BRACKETS.finditer(text, start):
        token = match[0]
        if token == '"':
            break
        depth += (token in "[{") - (token in "]}")
        if depth == 0:
            return match.end()
    return len(text)
