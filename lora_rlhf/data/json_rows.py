"""JSON rows: one a line, or over many lines, in a list or one after another, read through a window that moves on."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_rlhf.data.io import UNREADABLE, ByteStream, LineStream, unreadable
from lora_rlhf.data.json_values import DECODER, NOT_UTF8, as_bad_row, checked, decode_json, incomplete, message
from lora_rlhf.data.refusals import BadRow, Damaged

MAX_ELEMENT = 256 * 2**20  # bytes of a line, characters of an element: what has no end must not fill the memory
WINDOW = 2**20
LOOKAHEAD = 16  # a value that ends nearer to the window's end may go on: "12" of "123", "1" of "1e+5"
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
        yield f"{name}:{number + 1}", unreadable(error)


def json_documents(
    path: Path, stream: ByteStream, window: int = WINDOW, limit: int = MAX_ELEMENT
) -> Iterator[tuple[str, Any]]:
    """Yields ("path:line row N", row) for each element of a JSON list, or for each of several values in a row.

    N counts from 1; a list may stand on one line. window: bytes held at a time, more only while one element is longer;
    limit: the most characters of one element.
    """
    name, text, number = str(path), _Window(stream, window, limit), 0
    try:
        in_list = text.mark() == "["
        if in_list:
            text.position += 1
        while (mark := text.mark()) and not (in_list and mark == "]"):
            if in_list and number:
                if mark != ",":
                    raise Damaged("a comma is missing in the JSON list", f"found {mark!r} at {text.location()}")
                text.position += 1
                text.mark()
            line, value = text.line(), text.value()
            number += 1
            yield f"{name}:{line} row {number}", value
        if in_list:
            if not mark:
                raise Damaged(BREAKS_OFF, f"the list has no end at {text.location()}")
            text.position += 1
            if mark := text.mark():
                raise Damaged("text follows the end of the JSON list", f"found {mark!r} at {text.location()}")
    except Damaged as fault:
        yield f"{name}:{text.line()} row {number + 1}", fault
    except UNREADABLE as error:
        yield f"{name}:{text.line()} row {number + 1}", unreadable(error)


def spans_lines(head: str) -> bool:
    """Whether a text that begins with "{" holds objects over many lines, or several in a line, and not one a line."""
    line, newline, _ = head.lstrip().partition("\n")
    try:
        _, end = DECODER.raw_decode(line)
        return line[end:].lstrip().startswith("{")
    except json.JSONDecodeError as error:
        # a line that is cut short within a string is no object over many lines: those break between the tokens
        return bool(newline) and not error.msg.startswith("Unterminated") and _goes_on(head.lstrip())
    except (BadRow, RecursionError, ValueError):
        return False


def holds_list(line: str) -> bool:
    """Whether a line is a JSON list, and nothing else."""
    return isinstance(decode_json(line.strip()), list)


def _goes_on(head: str) -> bool:
    """Whether nothing is wrong with the first value of a text, as far as the text reaches."""
    try:
        DECODER.raw_decode(head)
    except json.JSONDecodeError as error:
        return incomplete(error, head)
    except (BadRow, RecursionError, ValueError):
        pass
    return True


class _Window:
    """The part of a JSON text that is in memory, from the value that is read next (at `position`)."""

    def __init__(self, stream: ByteStream, size: int, limit: int) -> None:
        self._stream = stream
        self._size = size
        self._limit = limit
        # what is not UTF-8 becomes lone surrogates, so that the other rows can be read
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="surrogateescape")
        self._damage: BaseException | None = None
        self._at_end = False
        self._is_utf8 = True
        self._lines = 1
        self._line_starts = 0  # where the line of what was counted begins; negative once that is dropped
        self._counted = 0
        self._text = ""
        self.position = 0

    def line(self) -> int:
        """The line of the position."""
        if breaks := self._text.count("\n", self._counted, self.position):
            self._lines += breaks
            self._line_starts = self._text.rindex("\n", self._counted, self.position) + 1
        self._counted = self.position
        return self._lines

    def location(self, index: int | None = None) -> str:
        """Line and column of a character of the window that is not before the position; of the position itself."""
        line, index = self.line(), self.position if index is None else index
        breaks = self._text.count("\n", self.position, index)
        starts = self._text.rindex("\n", self.position, index) + 1 if breaks else self._line_starts
        return f"line {line + breaks}, column {index - starts + 1}"

    def mark(self) -> str:
        """Moves to the next character that is no white space and returns it; "" at the end of the text."""
        while True:
            self.position = _SPACE.match(self._text, self.position).end()  # type: ignore[union-attr]
            if self.position < len(self._text) or self._at_end:
                return self._text[self.position : self.position + 1]
            self._grow()

    def value(self) -> Any:
        """Reads the value at the position and moves behind it. Raises Damaged where its end cannot be found."""
        while True:
            text, start = self._text, self.position
            try:
                value, end = DECODER.raw_decode(text, start)
            except json.JSONDecodeError as error:
                if self._at_end or not incomplete(error, text):
                    reason = BREAKS_OFF if self._at_end and incomplete(error, text) else "the JSON text is broken"
                    raise Damaged(reason, f"{message(error)} at {self.location(error.pos)}") from None
                end = len(text)
            except (BadRow, RecursionError, ValueError) as error:
                value, end = as_bad_row(error), _end_of_value(text, start)
            if self._at_end or end + LOOKAHEAD <= len(text):
                self.position = end
                return value if isinstance(value, BadRow) else self._checked(value, text[start:end])
            self._grow()

    def _checked(self, value: Any, text: str) -> Any:
        if not self._is_utf8:
            try:
                text.encode()
            except UnicodeEncodeError:
                return BadRow(NOT_UTF8)
        return checked(value, text)

    def _grow(self) -> None:
        """Drops what was read and takes in more: twice what is left, so that a long element costs its length twice."""
        self.line()
        unread = self._text[self.position :]
        if len(unread) > self._limit:
            raise Damaged("an element is longer than 256 MiB")
        data = self._read(max(self._size, len(unread)))
        self._at_end = not data
        new = self._decoder.decode(data, final=self._at_end)
        try:
            new.encode()
        except UnicodeEncodeError:
            self._is_utf8 = False
        self._line_starts -= self.position
        self._text, self.position, self._counted = unread + new, 0, 0

    def _read(self, size: int) -> bytes:
        parts = []
        while size > 0 and self._damage is None:
            try:
                part = self._stream.read1(size)
            except UNREADABLE as error:
                self._damage = error  # raised when what stands before it has been read
                break
            if not part:
                break
            parts.append(part)
            size -= len(part)
        if self._damage and not parts:
            raise self._damage
        return b"".join(parts)


def _end_of_value(text: str, start: int) -> int:
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
