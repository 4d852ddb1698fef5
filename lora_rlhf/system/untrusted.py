"""JSON files that anybody may have written: read within limits, or refused with the fault named."""

import json
import math
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from lora_rlhf.system.errors import UserError
from lora_rlhf.system.plain_files import read_file

MOST_BYTES = 16 * 2**20
MOST_VALUES = 500_000  # a value takes a hundred times the memory of its comma
MOST_LEVELS = 32  # of objects and lists; what this package and PEFT write has fewer than ten
LONGEST_INTEGER = 20  # digits: those of 64 bits

# What a field may hold, in words and as a test.
FieldType = tuple[str, Callable[[Any], bool]]
YES_OR_NO: FieldType = ("true or false", lambda value: isinstance(value, bool))

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120


def read_object(path: Path, way_out: str, most_bytes: int = MOST_BYTES, follow_links: bool = False) -> dict[str, Any]:
    """The object that a JSON file holds. Numbers are finite, integers have at most 20 digits, texts can be printed.

    UserError, which ends in `way_out`: a file that is not there, not a plain file or larger than `most_bytes` (it is
    then not read), of more than MOST_VALUES values (commas and brackets in texts included; it is then not parsed), not
    JSON in UTF-8, not an object, nested too deep, or with a name twice in one object. Also a symbolic link, unless
    links are followed.
    """
    try:
        return object_of(read_file(path, most_bytes, follow_links))
    except UserError as error:
        raise UserError(f"{error}; {way_out}") from error
    except FileNotFoundError as error:
        raise UserError(f"{path} cannot be used: not there; {way_out}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be used: {error.strerror or error}; {way_out}") from error
    except ValueError as error:
        raise UserError(f"{path} cannot be used: {error}; {way_out}") from error


def object_of(raw: bytes, most_values: int = MOST_VALUES) -> dict[str, Any]:
    """The object in a JSON text in UTF-8, within the limits of `read_object`. ValueError where it holds none."""
    num_values = sum(map(raw.count, b",[{"))  # at most: a value follows a comma or an opening bracket
    if num_values > most_values:
        raise ValueError(f"{num_values:,} commas and brackets, more than the {most_values:,} that such a file can have")
    try:
        value = json.loads(
            raw.decode(),
            object_pairs_hook=_object_with_unique_keys,
            parse_int=_parse_integer,
            parse_constant=_refuse_nan,
        )
        if not isinstance(value, dict):
            raise ValueError(f"holds {quote(value)}, expected an object in braces")
        _require_plain(value)
    except RecursionError:
        raise ValueError("nested too deep") from None
    return value


def require(values: Mapping[str, Any], types: Mapping[str, FieldType], where: str = "") -> None:
    """ValueError for a field that is missing or of another type. `where` is put before its name in the message."""
    for name, (expected, fits) in types.items():
        if name not in values:
            raise ValueError(f"{quote(where + name)} is missing")
        if not fits(values[name]):
            raise ValueError(f"{quote(where + name)} is {quote(values[name])}, expected {expected}")


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a number; to Python, true and false are numbers too."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def quote(value: Any) -> str:
    """A value for a message: on one line, shortened, with control characters escaped."""
    return _SHORT.repr(value)


def _object_with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{quote(name)} stands there twice")
        values[name] = value
    return values


def _parse_integer(text: str) -> int:
    if len(text) > LONGEST_INTEGER:
        raise ValueError(f"holds an integer of {len(text)} digits")
    return int(text)


def _refuse_nan(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _require_plain(value: Any) -> None:
    """ValueError for valid JSON that later code cannot handle: depth, 1e999, half characters."""
    level = [value]
    for _ in range(MOST_LEVELS):
        for item in level:
            if isinstance(item, float) and not math.isfinite(item):
                raise ValueError("holds a number that is not finite")
            if isinstance(item, str):
                _require_printable(item)
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise ValueError(f"nested deeper than {MOST_LEVELS} levels")


def _children(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return [*item, *item.values()]
    return item if isinstance(item, list) else []


def _require_printable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{quote(text)} holds half a character") from None
