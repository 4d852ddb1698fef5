"""Dataclasses written as JSON objects, and read back with the field at fault named."""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from lora_rlhf.system.untrusted import is_number, quote

Item = TypeVar("Item")

LEFT_OUT = "left_out"
PLAIN: Mapping[Any, tuple[str, Callable[[Any], bool]]] = {
    str: ("text", lambda value: isinstance(value, str)),
    float: ("a number", is_number),
    int: ("a whole number of at least 0", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 0),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    dict: ("an object in braces", lambda value: isinstance(value, dict)),
    list: ("a list", lambda value: isinstance(value, list)),
}


def optional(default: Callable[[], Any] = lambda: None) -> Any:
    """A dataclass field that JSON leaves out while it has its default: None, or what `default` makes."""
    return dataclasses.field(default_factory=default, metadata={LEFT_OUT: default})


def to_json(value: Any) -> Any:
    """The JSON value of a dataclass: its fields in their order, and numbers that JSON cannot write as null.

    A field whose name Python keeps for itself ends in an underscore, which JSON does not have.
    """
    if dataclasses.is_dataclass(value):
        return {
            field.name.rstrip("_"): to_json(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if LEFT_OUT not in field.metadata or getattr(value, field.name) != field.metadata[LEFT_OUT]()
        }
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_json(kind: type[Item], value: Any, where: str = "") -> Item:
    """The dataclass that a JSON value holds. `where`: the value's own name, for messages.

    Fields with a default may be missing, and what JSON has beyond the fields is left out. An int counts something: it
    is 0 or more. ValueError for the first field that is missing or holds something else.
    """
    item: Item = _read(kind, value, where)
    return item


def _read(kind: Any, value: Any, where: str) -> Any:
    """A value of a type that fields have: those of PLAIN, dataclasses, Literal, list[T], dict[str, T], each or None."""
    if kind is Any:
        return value
    is_optional = isinstance(kind, types.UnionType)
    if is_optional:
        if value is None:
            return None
        kind = next(member for member in typing.get_args(kind) if member is not types.NoneType)
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is Literal:
        expected, fits = f"{', '.join(arguments[:-1])} or {arguments[-1]}", value in arguments
    else:
        expected, test = PLAIN[dict if dataclasses.is_dataclass(origin) else origin]
        fits = test(value)
    if not fits:
        expected = f"{expected.replace(' or ', ', ')} or null" if is_optional else expected
        raise ValueError(f"{quote(where)} is {quote(value)}, expected {expected}")
    if dataclasses.is_dataclass(origin):
        return _read_fields(origin, value, f"{where}." if where else "")
    if origin is dict and arguments:
        return {name: _read(arguments[1], item, f"{where}.{name}") for name, item in value.items()}
    if origin is list and arguments:
        return [_read(arguments[0], item, f"{where}.{number}") for number, item in enumerate(value)]
    return value


def _read_fields(kind: Any, values: Mapping[str, Any], prefix: str) -> Any:
    hints, found = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        name = field.name.rstrip("_")
        if name in values:
            found[field.name] = _read(hints[field.name], values[name], prefix + name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{quote(prefix + name)} is missing")
    return kind(**found)
