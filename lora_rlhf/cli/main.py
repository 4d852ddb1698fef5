"""The command line: a command, its configuration from words, flags and file, one call."""

import contextlib
import dataclasses
import difflib
import itertools
import json
import logging
import os
import re
import sys
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NoReturn

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from lora_rlhf import __version__
from lora_rlhf.cli.commands import COMMANDS
from lora_rlhf.configs.values import check, read_yaml
from lora_rlhf.system import workers
from lora_rlhf.system.errors import Stopped, UserError

OUT_OF_MEMORY = (
    "out of memory: lower --micro_batch_size (results do not depend on it) or --generation_batch_size, or give "
    "--gradient_checkpointing true"
)

# For what is loaded later, unless it is set already.
ENVIRONMENT = {
    # How OpenMP's threads wait for one another: spinning for microseconds, then sleeping. With small tensors, sleeping
    # at once halves the speed, and spinning on slows everything down on a busy machine.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "30000",
    # Batches of ever other lengths would break the GPU's memory into pieces that no longer hold the longest one.
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
}
QUIET = {"TQDM_DISABLE": "1"}  # for all but the first of several processes

# What people type who know the commands of other projects.
OTHER_NAMES = {"train": "sft, reward or ppo", "rm": "reward", "generate": "sample", "eval": "evaluate"}

# Fields that take the words before the first flag, and how help and messages call these.
WORDS = {"file": "FILE", "files": "FILE...", "folder": "FOLDER", "other_runs": "RUN..."}

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status.

    0, 1 (out of memory, a file that cannot be written, a guard), 2 (a mistake of the user's), 130 (Ctrl-C) or 143
    (SIGTERM).
    """
    for name, value in (ENVIRONMENT if workers.is_main() else ENVIRONMENT | QUIET).items():
        os.environ.setdefault(name, value)
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lora_rlhf").setLevel(logging.INFO if workers.is_main() else logging.ERROR)
    try:
        _dispatch([argument for argument in given if argument != "--debug"])
        workers.leave()
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader, `head` or a pager, has seen enough; Python would complain once more when it closes the stream
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        if debug:
            raise
        if workers.is_main():
            print(f"\n{stop}", file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        if debug:
            raise
        print("\ninterrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if debug:
            raise
        print(
            f"error: {error}\nwhat had finished before is kept: mend this and give the same command again",
            file=sys.stderr,
        )
        return 1
    except (MemoryError, RuntimeError) as error:
        # by name: importing torch to name its OutOfMemoryError would slow every --help down
        if debug or not (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"):
            raise
        print(f"error: {OUT_OF_MEMORY}\n{error}", file=sys.stderr)
        return 1
    return 0


def _dispatch(given: list[str]) -> None:
    if given[:1] == ["--version"]:
        print(f"lora-rlhf {__version__}")
        return
    for name, command in COMMANDS.items():
        words = name.split()
        if given[: len(words)] == words:
            config = parse(name, given[len(words) :])
            check(config)
            command.call(config)
            return
    wanted = list(itertools.takewhile(lambda argument: not argument.startswith("-"), given))[:2]
    listed = [name for name in COMMANDS if not wanted or wanted == name.split()[:1]]
    if not listed or (not wanted and given and given[0] not in ("-h", "--help")):
        raise UserError(f"unknown command {_meant(wanted or given[:1])} (`lora-rlhf --help` lists them)")
    print(_overview(listed))


def _meant(words: list[str]) -> str:
    """The command that is not there, as far as it is one, and the one that was probably meant."""
    rooms = {name.split()[0] for name in COMMANDS if " " in name}
    unknown = " ".join(words if words[0] in rooms else words[:1])
    names = {name.split()[-1]: name for name in COMMANDS} | {name: name for name in COMMANDS} | OTHER_NAMES
    for candidate in (" ".join(words), words[0]):
        if close := difflib.get_close_matches(candidate, names, n=1, cutoff=0.7):
            return f"{unknown!r}; did you mean {names[close[0]]}?"
    return repr(unknown)


def _overview(names: Iterable[str]) -> str:
    lines = "\n".join(f"  {name:<17} {COMMANDS[name].summary}" for name in names)
    return f"""usage: lora-rlhf COMMAND [flags]

{lines}

  COMMAND --help               every flag, with its default
  COMMAND --config FILE.yaml   flags from a file; those on the command line override it
  COMMAND --print_config       such a file, to standard output
  COMMAND --debug              the traceback of an error"""


def parse(name: str, arguments: Sequence[str]) -> Any:
    """The configuration that a command's arguments ask for. UserError for unknown flags and unfit values."""
    kind = COMMANDS[name].kind
    parser = _Parser(prog=f"lora-rlhf {name}", description=kind.__doc__, allow_abbrev=False)
    parser.add_class_arguments(kind, as_group=False)
    parser.hints = typing.get_type_hints(kind)
    for action in parser._actions:
        if typing.get_origin(parser.hints.get(action.dest)) is tuple:
            action.metavar = WORDS.get(action.dest, f"{action.dest.upper()}...")
    parser.usage = " ".join(["%(prog)s", *(word for field, word in WORDS.items() if field in parser.hints), "[flags]"])
    if "config" not in parser.hints:
        parser.add_argument(
            "--config", action="config", help="YAML file with these flags; those given here override it."
        )
    parser.given = _normalize(arguments, parser.hints)
    if parser.file is not None:
        read_yaml(parser.file)  # says which file and line is at fault, which the parser does not
    for field, word in [*WORDS.items(), ("run", "RUN")]:
        if sum(argument.startswith(f"--{field}=") for argument in parser.given) > 1:
            raise UserError(f"{name}: {word} is given twice, before the first flag and as --{field}")
    values = parser.parse_args(parser.given)
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})


def _normalize(arguments: Sequence[str], hints: dict[str, Any]) -> list[str]:
    """The arguments as the parser takes them: `--flag=value` with underscores, a file of flags before the others.

    Words before the first flag are the value of `file`, `files` or `folder`, or of `run` and `other_runs`. A yes-or-no
    flag alone is true, and a flag that takes a list may be followed by several words. What is not known here is left
    for the parser to refuse.
    """
    groups: list[list[str]] = [[]]  # the words before the first flag, then each flag with the words after it
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and (name in hints or name in ("config", "print_config")):
            groups.append([f"--{name}", value] if equals else [f"--{name}"])
        elif flag.startswith("--") or argument == "-h":
            groups.append([argument])
        else:
            groups[-1].append(argument)
    if groups[0] and "other_runs" in hints:
        first, *others = groups[0]
        groups[0] = ["--run", first]
        groups += [["--other_runs", *others]] if others else []
    elif groups[0]:
        groups[0][:0] = [f"--{field}" for field in WORDS if field in hints]
    groups.sort(key=lambda group: group[:1] != ["--config"])  # so that the flags override it wherever they stand
    return [argument for group in groups for argument in _joined(group, hints)]


def _joined(group: list[str], hints: dict[str, Any]) -> list[str]:
    """A flag and its value as one argument, and whatever else stands there behind it."""
    name, *words = group or [""]
    hint = hints.get(name.removeprefix("--"), str if name == "--config" else None)
    if typing.get_origin(hint) is tuple and words:
        return [f"{name}={_list(words, is_text=typing.get_args(hint)[0] is str)}"]
    if hint is bool and not words:
        return [f"{name}=true"]
    return group if hint is None or not words else [f"{name}={words[0]}", *words[1:]]


def _list(words: list[str], is_text: bool) -> str:
    """Several words as the YAML list that the parser reads; one word that is such a list stays as it is."""
    with contextlib.suppress(yaml.YAMLError):
        if len(words) == 1 and isinstance(yaml.safe_load(words[0]), list):
            return words[0]
    return f"[{', '.join(json.dumps(word) if is_text else word for word in words)}]"


class _Parser(ArgumentParser):
    """A parser whose complaints are UserErrors in this project's words."""

    hints: dict[str, Any]
    given: list[str]

    @property
    def file(self) -> str | None:
        """The file behind --config, where that is one of flags."""
        if "config" in self.hints:
            return None
        for argument, following in itertools.zip_longest(self.given, self.given[1:]):
            if argument == "--config" or argument.startswith("--config="):
                return argument.removeprefix("--config=") if argument != "--config" else following
        return None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(self._say(message)) from ex

    def _say(self, message: str) -> str:
        command = self.prog.removeprefix("lora-rlhf ")
        if found := re.match(r"unrecognized arguments: (\S+)", message):
            kind = "flag" if found[1].startswith("-") else "argument"
            return f"{command}: unknown {kind} {self._unknown(found[1].partition('=')[0])}"
        if found := re.match(r"Option '(.+)' is not accepted", message):
            return f"{self.file}: unknown key {self._unknown(found[1])}"
        if found := re.match(r"the following arguments are required: (.+)", message):
            names = " and ".join(WORDS.get(name, f"--{name}") for name in found[1].split(", "))
            return f"{command}: {names} must be given{'' if 'config' in self.hints else ', here or in a --config file'}"
        if found := re.match(r'Parser key "(\w+)":.*?(?:Got|Given) value: (.*)', message, re.DOTALL):
            is_flag = any(argument.partition("=")[0] == f"--{found[1]}" for argument in self.given)
            place = command if is_flag else self.file
            return f"{place}: {found[1]} is {found[2]!r}, expected {_spell(self.hints[found[1]])}"
        return f"{command}: {message.removeprefix('argument ')}"

    def _unknown(self, name: str) -> str:
        flags = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        dashed = f"--{name.lstrip('-').replace('-', '_')}"
        return f"{name}{_nearest(dashed, flags)} (`{self.prog} --help` lists them)"


def _nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is spelled most like this one, as a question; empty when none is."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""


def _spell(hint: Any) -> str:
    """What a flag takes, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin is types.UnionType:
        return f"{_spell(arguments[0])}, or null"
    if origin is tuple:
        return "one or more words" if arguments[0] is str else "one or more numbers"
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(hint, "text")
