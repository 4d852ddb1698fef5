"""How a configuration is read, checked and written: YAML to frozen dataclass, with every fault named at once."""

import dataclasses
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from lora_rlhf.system.errors import UserError

Config = TypeVar("Config")


def check(config: Any) -> None:
    """UserError with every fault of a configuration, one a line."""
    if faults := config.faults():
        stage = type(config).__name__.removesuffix("Config").lower()
        raise UserError("\n".join(f"{stage}: {fault}" for fault in faults))


def from_dict(kind: type[Config], values: dict[str, Any], place: str) -> Config:
    """A configuration from a section of a YAML file. UserError names `place` and every key that does not fit."""
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    faults = [f"unknown key {key!r}" for key in values if key not in fields]
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            faults.append(f"{name} is missing")
    converted = {}
    for name, value in values.items():
        if name in fields:
            try:
                converted[name] = _convert(hints[name], value)
            except (TypeError, ValueError):
                faults.append(f"{name} is {value!r}, expected {_spell(hints[name])}")
    if faults:
        known = ", ".join(sorted(fields))
        raise UserError("\n".join(f"{place}: {fault}" for fault in faults) + f"\n{place}: the keys are: {known}")
    return kind(**converted)


def to_yaml(config: Any) -> str:
    """The YAML that reproduces this configuration."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(config).items()}
    return yaml.safe_dump(values, sort_keys=False)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping. UserError names the file, and the line of a syntax error."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the last two are for dates, bytes and depth
        raise UserError(f"{path}: not YAML ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, found {type(values).__name__}")
    return values


def _convert(hint: Any, value: Any) -> Any:
    """The value as the annotated type. ValueError or TypeError where it is another."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(value)
        return value
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _convert(next(a for a in arguments if a is not type(None)), value)
    if origin is tuple:
        return tuple(_convert(arguments[0], item) for item in value)
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise TypeError(value)
    return value


def _spell(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)).replace("typing.", "")


def at_least(config: Any, bound: int, *names: str) -> list[str]:
    """Faults of values below a bound."""
    return [f"{n} is {getattr(config, n)}, must be at least {bound}" for n in names if getattr(config, n) < bound]


def positive(config: Any, *names: str) -> list[str]:
    """Faults of values that are not above 0; None is no value."""
    values = [(name, getattr(config, name)) for name in names if getattr(config, name) is not None]
    return [f"{n} is {value}, must be above 0" for n, value in values if not value > 0 or math.isinf(value)]


def share(config: Any, *names: str, upper: float = 0.99) -> list[str]:
    """Faults of values outside 0 to `upper`."""
    values = [(name, getattr(config, name)) for name in names]
    return [f"{name} is {value}, must be between 0 and {upper:g}" for name, value in values if not 0 <= value <= upper]


def multiple(config: Any, name: str, of: str) -> list[str]:
    """The fault of a size that its unit does not divide, with the nearest that it does."""
    value, unit = getattr(config, name), getattr(config, of)
    if unit < 1 or value % unit == 0:
        return []
    nearest = max(unit, value // unit * unit)
    return [f"{name} is {value}, must be a multiple of {of} {unit}: try {nearest} or {nearest + unit}"]
