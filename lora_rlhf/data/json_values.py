"""One JSON text to one value. Numbers that JSON cannot write become None; values nested too deeply are refused."""

import json
import math
import re
import sys
from typing import Any

from lora_rlhf.data.refusals import BadRow

MAX_DEPTH = 200  # far beyond any data set; deeper rows would exhaust the stack of recursive code
LARGEST = int(sys.float_info.max)  # a larger whole number cannot become a float
NOT_UTF8 = "the row is not UTF-8 text"
NOT_JSON = "the line is not JSON"

_CUT_TOKEN = re.compile(
    r"\s*[-+.\w\\]{0,16}\s*"
)  # the beginning of a number, a word or an escape, cut by the text's end


def _row_from_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these (name, value) pairs. BadRow for a name that occurs twice or that UTF-8 cannot write."""
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        raise BadRow("a column stands twice in the row", repr(next(name for name in row if names.count(name) > 1)))
    if not (names_joined := "".join(row)).isascii():
        try:
            names_joined.encode()
        except UnicodeEncodeError:  # only an escape (\ud800) can cause it; values are checked later
            raise BadRow("a column's name holds half a character") from None
    return row


def _float_or_none(text: str) -> float | None:
    """The number; None if it is infinite."""
    value = float(text)
    return value if math.isfinite(value) else None


def _int_or_none(text: str) -> int | None:
    """The number; None if it is too large for a float."""
    value = int(text)
    return value if -LARGEST <= value <= LARGEST else None


# NaN and numbers that overflow become None: they are not JSON, and every reader refuses a missing number
DECODER = json.JSONDecoder(
    object_pairs_hook=_row_from_pairs, parse_float=_float_or_none, parse_int=_int_or_none, parse_constant=lambda _: None
)


def decode_json(data: bytes | str) -> Any:
    """The value of a JSON text, or a BadRow with the reason why it has none. NaN, infinity and overflow become None."""
    try:
        text = data if isinstance(data, str) else data.decode()
        value, end = DECODER.raw_decode(text)
        if end != len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except UnicodeDecodeError as error:
        return BadRow(NOT_UTF8, f"byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return BadRow(NOT_JSON, f"{error_message(error)} at column {error.pos + 1}")
    except (BadRow, RecursionError, ValueError) as error:
        return bad_row_from_error(error)
    return check_depth(value, text)


def is_cut_short(error: json.JSONDecodeError, text: str) -> bool:
    """Whether a text cannot be decoded only because it ends too early."""
    return error.msg.startswith("Unterminated") or bool(_CUT_TOKEN.fullmatch(text, error.pos))


def error_message(error: json.JSONDecodeError) -> str:
    """The library's message, to be followed by " at" and a location: some messages end in "at" already."""
    return error.msg.removesuffix(" at")


def bad_row_from_error(error: Exception) -> BadRow:
    """The BadRow of a JSON text that is nested too deeply, has too long a number, or has a name twice."""
    if isinstance(error, BadRow):
        return error
    if isinstance(error, RecursionError):
        return BadRow("the row is nested too deeply", f"more than {MAX_DEPTH} levels")
    return BadRow("a number has thousands of digits")


def check_depth(value: Any, text: str) -> Any:
    """The value of this text, or a BadRow if it is nested too deeply for recursive code."""
    # most rows hold only text, and to look for one bracket is far cheaper than to count them all
    is_nested = "[" in text or text.find("{", 1) > 0
    if is_nested and text.count("[") + text.count("{") > MAX_DEPTH and _is_deeper_than(value, MAX_DEPTH):
        return bad_row_from_error(RecursionError())
    return value


def _is_deeper_than(value: Any, max_depth: int) -> bool:
    """Whether lists and objects are nested in more than `max_depth` levels."""
    values = [value]
    for _ in range(max_depth):
        values = [inner for item in values for inner in _inner_values(item) if isinstance(inner, dict | list)]
        if not values:
            return False
    return True


def _inner_values(value: Any) -> list[Any]:
    """The values of an object or list; none of anything else."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
