"""JSON rows: one a line, or over many lines, in a list or one after another, read through a window that moves on."""

import codecs
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_rlhf.data.io import UNREADABLE, ByteStream, LineStream, unreadable
from lora_rlhf.data.refusals import BadRow, Damaged

MAX_DEPTH = 200  # far beyond any data set; deeper rows would exhaust the stack of whatever walks them later
MAX_ELEMENT = 256 * 2**20  # bytes of a line, characters of an element: what has no end must not fill the memory
WINDOW = 2**20
LOOKAHEAD = 16  # a value that ends nearer to the window's end may go on: "12" of "123", "1" of "1e+5"
LARGEST = int(sys.float_info.max)  # a whole number beyond it overflows wherever a float is made of it
NOT_UTF8 = "the row is not UTF-8 text"
NOT_JSON = "the line is not JSON"
BREAKS_OFF = "the JSON text breaks off"

_SPACE = re.compile(r"[ \t\n\r]*")
_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{}]', re.DOTALL)
_SCALAR = re.compile(r"[-+.\w]+")
_CUT_TOKEN = re.compile(r"\s*[-+.\w\\]{0,16}\s*")  # what a window's end may leave of a number, a word or an escape


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        raise BadRow("a column stands twice in the row", repr(next(name for name in row if names.count(name) > 1)))
    if not (names_joined := "".join(row)).isascii():
        try:
            names_joined.encode()
        except UnicodeEncodeError:  # an escape alone can bring it in; values are checked where they become text
            raise BadRow("a column's name holds half a character") from None
    return row


def _float(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _int(text: str) -> int | None:
    value = int(text)
    return value if -LARGEST <= value <= LARGEST else None


# NaN and what overflows become None: they are no JSON, and every reader already refuses a number that is missing
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_float, parse_int=_int, parse_constant=lambda _: None
)


def decode_json(data: bytes | str) -> Any:
    """The value of a JSON text, or a BadRow that says why it has none. NaN, infinity and overflow become None."""
    try:
        text = data if isinstance(data, str) else data.decode()
        value, end = _DECODER.raw_decode(text)
        if end != len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except UnicodeDecodeError as error:
        return BadRow(NOT_UTF8, f"byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return BadRow(NOT_JSON, f"{error.msg} at column {error.pos + 1}")
    except (BadRow, RecursionError, ValueError) as error:
        return _fault(error)
    return _checked(value, text)


def json_lines(path: Path, stream: LineStream, before: int = 0) -> Iterator[tuple[str, Any]]:
    """Yields ("path:line", row) for each line of JSONL that is not blank; see `containers.file_rows`.

    before: the number of lines that stand before those of the stream.
    """
    place, number = str(path), before  # a Path costs more to write than a row to decode
    try:
        while line := stream.readline(MAX_ELEMENT + 1):
            number += 1
            if len(line) > MAX_ELEMENT:
                yield f"{place}:{number}", Damaged("a line is longer than 256 MiB")
                return
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line := line.strip():
                yield f"{place}:{number}", decode_json(line)
    except UNREADABLE as error:
        yield f"{place}:{number + 1}", unreadable(error)


def json_documents(
    path: Path, stream: ByteStream, window: int = WINDOW, limit: int = MAX_ELEMENT
) -> Iterator[tuple[str, Any]]:
    """Yields ("path:line", row) for each element of a JSON list, or for each of several values that follow one another.

    window: bytes held at a time, more only while one element is longer; limit: the most characters of one element.
    """
    place, text = str(path), _Window(stream, window, limit)
    try:
        in_list = text.mark() == "["
        if in_list:
            text.position += 1
        first = True
        while (mark := text.mark()) and not (in_list and mark == "]"):
            if in_list and not first:
                if mark != ",":
                    raise Damaged("a comma is missing in the JSON list", f"found {mark!r}")
                text.position += 1
                text.mark()
            first = False
            yield f"{place}:{text.line()}", text.value()
        if in_list:
            if not mark:
                raise Damaged(BREAKS_OFF, "the list has no end")
            text.position += 1
            if mark := text.mark():
                raise Damaged("text follows the end of the JSON list", f"found {mark!r}")
    except Damaged as fault:
        yield f"{place}:{text.line()}", fault
    except UNREADABLE as error:
        yield f"{place}:{text.line()}", unreadable(error)


def spans_lines(head: str) -> bool:
    """Whether a text that begins with "{" holds objects over many lines, or several in a line, and not one a line."""
    line, newline, _ = head.lstrip().partition("\n")
    try:
        _, end = _DECODER.raw_decode(line)
        return line[end:].lstrip().startswith("{")
    except json.JSONDecodeError as error:
        # a line that is cut short within a string is no object over many lines: those break between the tokens
        return bool(newline) and not error.msg.startswith("Unterminated") and _goes_on(head.lstrip())
    except (BadRow, RecursionError, ValueError):
        return False


def _goes_on(head: str) -> bool:
    """Whether nothing is wrong with the first value of a text, as far as the text reaches."""
    try:
        _DECODER.raw_decode(head)
    except json.JSONDecodeError as error:
        return _incomplete(error, head)
    except (BadRow, RecursionError, ValueError):
        pass
    return True


def _incomplete(error: json.JSONDecodeError, text: str) -> bool:
    """Whether a text cannot be decoded for no other reason than that it ends too early."""
    return error.msg.startswith("Unterminated") or bool(_CUT_TOKEN.fullmatch(text, error.pos))


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
        self._counted = 0
        self._text = ""
        self.position = 0

    def line(self) -> int:
        """The line of the position."""
        self._lines += self._text.count("\n", self._counted, self.position)
        self._counted = self.position
        return self._lines

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
                value, end = _DECODER.raw_decode(text, start)
            except json.JSONDecodeError as error:
                if self._at_end or not _incomplete(error, text):
                    reason = BREAKS_OFF if self._at_end and _incomplete(error, text) else "the JSON text is broken"
                    raise Damaged(reason, error.msg) from None
                end = len(text)
            except (BadRow, RecursionError, ValueError) as error:
                value, end = _fault(error), _end_of_value(text, start)
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
        return _checked(value, text)

    def _grow(self) -> None:
        """Drops what was read and takes in more: twice what is left, so that a long element costs its length twice."""
        self.line()
        rest = self._text[self.position :]
        if len(rest) > self._limit:
            raise Damaged("an element is longer than 256 MiB")
        data = self._read(max(self._size, len(rest)))
        self._at_end = not data
        new = self._decoder.decode(data, final=self._at_end)
        try:
            new.encode()
        except UnicodeEncodeError:
            self._is_utf8 = False
        self._text, self.position, self._counted = rest + new, 0, 0

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
    """Where a value ends that cannot be decoded, told by its brackets; the text's end if it goes on."""
    if text[start] not in "[{":
        found = _SCALAR.match(text, start)
        return found.end() if found else len(text)
    depth = 0
    for found in _BRACKETS.finditer(text, start):
        token = found[0]
        if token == '"':
            break
        depth += (token in "[{") - (token in "]}")
        if depth == 0:
            return found.end()
    return len(text)


def _fault(error: Exception) -> BadRow:
    if isinstance(error, BadRow):
        return error
    if isinstance(error, RecursionError):
        return BadRow("the row is nested too deeply", f"more than {MAX_DEPTH} levels")
    return BadRow("a number has thousands of digits")


def _checked(value: Any, text: str) -> Any:
    """The value that stands as this text, or a BadRow if it is nested too deeply for whoever walks it."""
    # most rows hold nothing but text, and looking for one bracket is far cheaper than counting them
    nested = "[" in text or text.find("{", 1) > 0
    if nested and text.count("[") + text.count("{") > MAX_DEPTH and _depth_exceeds(value, MAX_DEPTH):
        return _fault(RecursionError())
    return value


def _depth_exceeds(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        level = [inner for item in level for inner in _inside(item) if isinstance(inner, dict | list)]
        if not level:
            return False
    return True


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
