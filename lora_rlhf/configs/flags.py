"""Flags to a configuration: which words belong to which field, the file behind --config, --help and --print_config."""

import argparse
import dataclasses
import inspect
import itertools
import json
import shlex
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from lora_rlhf.configs.marks import former_names, with_new_names
from lora_rlhf.configs.values import (
    convert_values,
    did_you_mean,
    field_texts,
    field_types,
    from_words,
    read_yaml,
    required_fields,
    to_yaml,
    without_none,
)
from lora_rlhf.system.errors import UserError

Config = TypeVar("Config")

# Fields that take the words before the first flag, and how help and messages call these.
WORDS = {"file": "FILE", "files": "FILE...", "folder": "FOLDER", "other_runs": "RUN..."}
HELP_FLAGS = ("--help", "-h")
PRINT_FLAGS = ("--print_config", "--print-config")
FILE_HELP = "--config FILE.yaml reads flags from a file, which those given here override; --print_config writes one."


def parse_flags(command: str, kind: type[Config], arguments: Sequence[str]) -> Config:
    """The configuration that a command's arguments ask for.

    Words before the first flag are the value of `file`, `files` or `folder`, or of `run` and `other_runs`. A yes-or-no
    flag alone is true, and a flag that takes a list may be followed by several words. --help and --print_config print
    and exit. UserError for unknown flags, unfit values and missing ones.
    """
    hints = field_types(kind)
    takes_file = "config" not in hints  # of `run`, --config is a field: the recipe
    if any(argument in HELP_FLAGS for argument in arguments):
        print(_help_text(command, kind, hints, FILE_HELP if takes_file else None))
        raise SystemExit(0)
    prints = takes_file and any(argument in PRINT_FLAGS for argument in arguments)
    former = former_names(kind)
    known = hints | {"config": str} | {old: hints[new] for old, new in former.items()}
    given = _values_by_field(command, known, [a for a in arguments if not (prints and a in PRINT_FLAGS)])
    path = given.pop("config", None) if takes_file else None
    file_values = {} if path is None else with_new_names(former, read_yaml(path, follow_links=True), path)
    from_file, file_faults = convert_values(kind, file_values)
    from_flags, flag_faults = convert_values(kind, with_new_names(former, given, command))
    if faults := [f"{path}: {fault}" for fault in file_faults] + [f"{command}: {fault}" for fault in flag_faults]:
        raise UserError("\n".join(faults))
    values = from_file | from_flags
    missing = [name for name in required_fields(kind) if name not in values]
    if prints:
        _print_config(kind(**values, **dict.fromkeys(missing)), missing)
        raise SystemExit(0)
    if missing:
        names = " and ".join(WORDS.get(name, f"--{name}") for name in missing)
        raise UserError(f"{command}: {names} must be given{', here or in a --config file' if takes_file else ''}")
    return kind(**values)


def words_of_flag(name: str, hint: Any, text: str) -> list[str]:
    """The words of a command line that give a field this text, as a person types it; a tuple's items as in a shell.

    UserError for quotes that do not close.
    """
    words = [text]
    if typing.get_origin(without_none(hint)[0]) is tuple:
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise UserError(f"{name} is {text!r}: {error}") from error
        if not words or any(word.startswith("-") for word in words):
            words = [json.dumps(words)]
    if words[0].startswith("-"):
        return [f"--{name}={words[0]}"]
    return [f"--{name}", *words]


def _values_by_field(command: str, hints: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """Name of each field -> what its flag, or the words before the first flag, say."""
    leading = list(itertools.takewhile(lambda argument: not argument.startswith("--"), arguments))
    groups: list[tuple[str, list[str]]] = []
    for argument in arguments[len(leading) :]:
        if argument.startswith("--"):
            flag, equals, value = argument.partition("=")
            groups.append((flag, [value] if equals else []))
        else:
            groups[-1][1].append(argument)
    given = _leading_values(command, hints, leading)
    for flag, words in groups:
        name = flag.removeprefix("--").replace("-", "_")
        if name not in hints:
            raise _unknown_flag_fault(command, flag, hints)
        if name in given and name in (*WORDS, "run"):
            word = WORDS.get(name, "RUN")
            raise UserError(f"{command}: {word} is given twice; give it once, before the first flag or as --{name}")
        given[name] = _flag_value(command, flag, hints[name], words)
    return given


def _leading_values(command: str, hints: Mapping[str, Any], words: list[str]) -> dict[str, Any]:
    """The fields that the words before the first flag give."""
    if not words:
        return {}
    if "other_runs" in hints:
        run, *other_runs = words
        return {"run": run} | ({"other_runs": other_runs} if other_runs else {})
    name = next((name for name in WORDS if name in hints), None)
    if name is None:
        raise _unknown_flag_fault(command, words[0], hints)
    return {name: _flag_value(command, f"--{name}", hints[name], words)}


def _flag_value(command: str, flag: str, hint: Any, words: list[str]) -> Any:
    """The value that the words behind a flag spell."""
    plain, _ = without_none(hint)
    if not words and plain is not bool:
        raise UserError(f"{command}: {flag} needs a value")
    if len(words) > 1 and typing.get_origin(plain) is not tuple:
        raise _unknown_flag_fault(command, words[1], {})
    return from_words(hint, words) if words else True


def _unknown_flag_fault(command: str, argument: str, hints: Mapping[str, Any]) -> UserError:
    is_flag = argument.startswith("-")
    likely = (
        did_you_mean(f"--{argument.lstrip('-').replace('-', '_')}", [f"--{name}" for name in hints]) if is_flag else ""
    )
    what = "flag" if is_flag else "argument"
    return UserError(f"{command}: unknown {what} {argument}{likely} (`lora-rlhf {command} --help` lists them)")


def _print_config(config: Any, missing: Sequence[str]) -> None:
    """The configuration as a file for --config, in which what is missing is left to be filled in."""
    for line in to_yaml(config).splitlines():
        name = line.partition(":")[0]
        print(f"# {name}: required" if name in missing else line)


def _help_text(command: str, kind: type[Any], hints: Mapping[str, Any], epilog: str | None) -> str:
    """What the command does, and every flag with its text, type and default."""
    words = [word for name, word in WORDS.items() if name in hints]
    usage = " ".join([f"lora-rlhf {command}", *words, "[flags]"])
    parser = argparse.ArgumentParser(usage=usage, description=kind.__doc__, epilog=epilog)
    texts = field_texts(kind)
    for title, fields in fields_by_subject(command, kind).items():
        group = parser.add_argument_group(title)
        for field in fields:
            hint, text = hints[field.name], texts[field.name].replace("%", "%%")
            group.add_argument(
                f"--{field.name}",
                metavar=_metavar(field.name, hint),
                help=f"{text} ({flag_type_and_default(hint, field.default)})",
            )
    return parser.format_help().rstrip()


def fields_by_subject(command: str, kind: type[Any]) -> dict[str, list[dataclasses.Field[Any]]]:
    """{heading: fields}: those most used, then the command's own, then those that it shares with others."""
    declared_in = {name: base for base in kind.__mro__ for name in inspect.get_annotations(base)}
    most_used = list[dataclasses.Field[Any]]()
    own, shared = dict[str, list[dataclasses.Field[Any]]](), dict[str, list[dataclasses.Field[Any]]]()
    title, previous = "", None
    for field in dataclasses.fields(kind):
        declaring = declared_in[field.name]
        if declaring is not previous:
            title, previous = f"flags of {command}" if declaring is kind else "other flags", declaring
        title = field.metadata.get("subject", title)
        if field.default is dataclasses.MISSING or field.metadata.get("most_used"):
            most_used.append(field)
        else:
            (own if declaring is kind else shared).setdefault(title, []).append(field)
    most_used.sort(key=lambda field: field.default is not dataclasses.MISSING)
    return {"most used": most_used} | own | shared


def flag_type_and_default(hint: Any, default: Any) -> str:
    """Type and default of a flag; where it has choices, they stand in its metavar."""
    plain, _ = without_none(hint)
    type_text = f"type: {plain.__name__}, " if plain in (int, float, str) else ""
    if default is dataclasses.MISSING:
        return f"{type_text}required"
    return f"{type_text}default: {default if isinstance(default, str) else json.dumps(default)}"


def _metavar(name: str, hint: Any) -> str:
    plain, _ = without_none(hint)
    origin = typing.get_origin(plain)
    if origin is tuple:
        return WORDS.get(name, f"{name.upper()}...")
    choices = typing.get_args(plain) if origin is Literal else ("true", "false") if plain is bool else ()
    return f"{{{','.join(choices)}}}" if choices else name.upper()
