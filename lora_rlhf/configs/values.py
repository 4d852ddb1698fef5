"""How a configuration is read, checked and written: words and YAML to a frozen dataclass, all faults named at once."""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import itertools
import math
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from lora_rlhf.system.errors import UserError
from lora_rlhf.system.plain_files import read_file

Config = TypeVar("Config")

MOST_YAML_BYTES = 2**20
MOST_VALUES = 100_000  # of a YAML file
MOST_SEED = 2**63  # seeds are below it, as PyTorch's generators take them


def check(config: Any) -> None:
    """UserError with every fault of a configuration, one a line."""
    if faults := config.faults():
        stage = type(config).__name__.removesuffix("Config").lower()
        raise UserError("\n".join(f"{stage}: {fault}" for fault in faults))


def from_dict(kind: type[Config], values: Mapping[str, Any], source: str) -> Config:
    """A configuration from a mapping. UserError names `source` and every key that is unknown, missing or unfit."""
    converted, faults = convert_values(kind, values)
    faults += [f"{name} is missing" for name in required_fields(kind) if name not in values]
    if faults:
        known = ", ".join(sorted(field_types(kind)))
        raise UserError("\n".join(f"{source}: {fault}" for fault in faults) + f"\n{source}: the keys are: {known}")
    return kind(**converted)


def convert_values(kind: type[Any], values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values as the types of their fields, and a fault for each that is unknown or does not fit."""
    hints = field_types(kind)
    converted, faults = {}, []
    for name, value in values.items():
        if name not in hints:
            faults.append(f"unknown key {name!r}{did_you_mean(str(name), hints)}")
            continue
        try:
            converted[name] = _convert(hints[name], value)
        except ValueError as error:
            if value is None:
                faults.append(f"{name} has no value, expected {describe_type(hints[name])}")
                continue
            faults.append(f"{name} is {error.args[0]!r}, expected {describe_type(hints[name])}")
    return converted, faults


def field_types(kind: type[Any]) -> dict[str, Any]:
    """Name of each field -> its type, in the order of the fields."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def required_fields(kind: type[Any]) -> list[str]:
    """The fields without a default."""
    return [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]


def field_texts(kind: type[Any]) -> dict[str, str]:
    """Name of each field -> the text below it in the source of the class, or of the class that it comes from."""
    texts = {}
    for parent in reversed([parent for parent in kind.__mro__ if dataclasses.is_dataclass(parent)]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(parent))).body
        assert isinstance(definition, ast.ClassDef)
        for statement, following in itertools.pairwise(definition.body):
            match statement, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = " ".join(text.split())
    return texts


def from_words(hint: Any, words: Sequence[str]) -> Any:
    """The value that the words behind a flag stand for; `convert_values` reads the numbers among them."""
    plain, is_optional = without_none(hint)
    if typing.get_origin(plain) is not tuple:
        return None if is_optional and words[0] == "null" else words[0]
    with contextlib.suppress(yaml.YAMLError, ValueError, RecursionError):  # the last two are for dates and depth
        if len(words) == 1 and isinstance(values := yaml.safe_load(words[0]), list):
            return values
    return list(words)


def without_none(hint: Any) -> tuple[Any, bool]:
    """(type without None, whether None was part of it) of a field's type; other unions are not used."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint, False
    return next(argument for argument in typing.get_args(hint) if argument is not types.NoneType), True


def describe_type(hint: Any) -> str:
    """What a field takes, in words."""
    hint, is_optional = without_none(hint)
    if is_optional:
        return f"{describe_type(hint)}, or null"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin is tuple:
        return "one or more words" if arguments[0] is str else "one or more numbers"
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(hint, "text")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known name that is spelled most like this one, as a question; empty when none is."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""


def to_yaml(config: Any) -> str:
    """The YAML that reproduces this configuration."""
    return yaml.safe_dump(_plain(vars(config)), sort_keys=False)


def plain_defaults(kind: type[Any]) -> dict[str, Any]:
    """The defaults as a YAML file would hold them."""
    fields = dataclasses.fields(kind)
    return _plain({field.name: field.default for field in fields if field.default is not dataclasses.MISSING})


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML takes the last of two equal keys in silence; here they are an error that names the line."""

    def get_single_node(self) -> yaml.Node | None:
        """As PyYAML does, but anchors that stand for very much are an error: their repr would fill memory."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            self._count_values(node, {})
        return node

    def _count_values(self, node: yaml.Node, counts: dict[int, int]) -> int:
        """How many values a node stands for, those behind its anchors counted at each place."""
        if id(node) not in counts:
            counts[id(node)] = MOST_VALUES  # of a node that holds itself
            items = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
            children = [] if isinstance(node, yaml.ScalarNode) else items
            counts[id(node)] = 1 + sum(self._count_values(child, counts) for child in children)
        if counts[id(node)] > MOST_VALUES:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: its anchors stand for over {MOST_VALUES:,} values")
        return counts[id(node)]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML does, but a key that is there twice is an error."""
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: the key {key.value!r} is there twice")
            keys.add(str(key.value))
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path, follow_links: bool = False) -> dict[str, Any]:
    """A YAML file that holds a mapping. UserError names the file, and the line of a syntax error.

    follow_links: of a file that the user named; in a run folder none is followed.
    """
    try:
        values = yaml.load(read_file(Path(path), MOST_YAML_BYTES, follow_links), Loader=_UniqueKeys)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the last two are for dates, bytes and depth
        raise UserError(f"{path}: not YAML ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, found {type(values).__name__}")
    return values


# How the text of a flag, or of a YAML file, becomes a value of another type; YAML takes 2e-4 for text.
FROM_TEXT: dict[Any, Callable[[str], Any]] = {int: int, float: float, bool: {"true": True, "false": False}.__getitem__}


def _convert(hint: Any, value: Any) -> Any:
    """The value as the annotated type. ValueError(value), or (item) of a list, where it is another."""
    hint, is_optional = without_none(hint)
    if value is None and is_optional:
        return None
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], item) for item in value)
    if (origin is Literal and value in arguments) or (origin is None and type(value) is hint):
        return value
    if hint is float and type(value) is int:
        return float(value)
    if hint in FROM_TEXT and isinstance(value, str):
        with contextlib.suppress(ValueError, KeyError):
            return FROM_TEXT[hint](value)
    raise ValueError(value)


def at_least(config: Any, bound: int, *names: str) -> list[str]:
    """Faults of values below a bound."""
    values = {name: getattr(config, name) for name in names}
    return [
        f"{name} is {value}, must be at least {bound}"
        for name, value in values.items()
        if value is not None and value < bound
    ]


def positive(config: Any, *names: str) -> list[str]:
    """Faults of values that are not above 0; None is no value."""
    values = [(name, getattr(config, name)) for name in names if getattr(config, name) is not None]
    return [f"{n} is {value}, must be above 0" for n, value in values if not value > 0 or math.isinf(value)]


def share(config: Any, *names: str, upper: float = 0.99) -> list[str]:
    """Faults of values outside 0 to `upper`."""
    values = [(name, getattr(config, name)) for name in names]
    return [f"{name} is {value}, must be between 0 and {upper:g}" for name, value in values if not 0 <= value <= upper]


def device_faults(config: Any) -> list[str]:
    """The fault of a device that has another form than those that PyTorch is given here; None is no device."""
    if config.device is None or re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", config.device):
        return []
    return [f"device is {config.device!r}, expected auto, cpu, cuda or cuda:N (other GPUs lack operations)"]


def seed_faults(config: Any) -> list[str]:
    """The fault of a seed that PyTorch's generators do not take; None is no seed."""
    fits = config.seed is None or 0 <= config.seed < MOST_SEED
    return [] if fits else [f"seed is {config.seed}, must be from 0 to {MOST_SEED - 1}"]


def multiple(config: Any, name: str, of: str) -> list[str]:
    """The fault of a size that its unit does not divide, with the nearest that it does."""
    value, unit = getattr(config, name), getattr(config, of)
    if unit < 1 or value % unit == 0:
        return []
    nearest = max(unit, value // unit * unit)
    return [f"{name} is {value}, must be a multiple of {of} {unit}: try {nearest} or {nearest + unit}"]
