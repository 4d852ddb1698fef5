"""One JSON text to one value. Numbers that JSON cannot write become None; values nested too deeply are refused."""

import json
import math
import re
import sys
from typing import Any

from lora_rlhf.data.refusals import BadRow

MAX_DEPTH = 200  # far beyond any data set; deeper rows would exhaust the stack of whatever walks them later
LARGEST = int(sys.float_info.max)  # a whole number beyond it overflows wherever a float is made of it
NOT_UTF8 = "the row is not UTF-8 text"
NOT_JSON = "the line is not JSON"

_CUT_TOKEN = re.compile(
    r"\s*[-+.\w\\]{0,16}\s*"
)  # the beginning of a number, a word or an escape, cut by the text's end


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
DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_int=_int, parse_constant=lambda _: None)


def decode_json(data: bytes | str) -> Any:
    """The value of a JSON text, or a BadRow that says why it has none. NaN, infinity and overflow become None."""
    try:
        text = data if isinstance(data, str) else data.decode()
        value, end = DECODER.raw_decode(text)
        if end != len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except UnicodeDecodeError as error:
        return BadRow(NOT_UTF8, f"byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return BadRow(NOT_JSON, f"{message(error)} at column {error.pos + 1}")
    except (BadRow, RecursionError, ValueError) as error:
        return as_bad_row(error)
    return checked(value, text)


def incomplete(error: json.JSONDecodeError, text: str) -> bool:
    """Whether a text cannot be decoded for no other reason than that it ends too early."""
    return error.msg.startswith("Unterminated") or bool(_CUT_TOKEN.fullmatch(text, error.pos))


def message(error: json.JSONDecodeError) -> str:
    """What is wrong, ready for " at" and a place: some of the library's messages end in that word already."""
    return error.msg.removesuffix(" at")


def as_bad_row(error: Exception) -> BadRow:
    """The refusal of a JSON text that is nested too deeply, holds too long a number, or a name twice."""
    if isinstance(error, BadRow):
        return error
    if isinstance(error, RecursionError):
        return BadRow("the row is nested too deeply", f"more than {MAX_DEPTH} levels")
    return BadRow("a number has thousands of digits")


def checked(value: Any, text: str) -> Any:
    """The value that stands as this text, or a BadRow if it is nested too deeply for whoever walks it."""
    # most rows hold nothing but text, and looking for one bracket is far cheaper than counting them
    nested = "[" in text or text.find("{", 1) > 0
    if nested and text.count("[") + text.count("{") > MAX_DEPTH and _depth_exceeds(value, MAX_DEPTH):
        return as_bad_row(RecursionError())
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
