"""The command line: a command, its configuration from flags and file, one call. Heavy imports wait until that call."""

import dataclasses
import difflib
import itertools
import logging
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser, set_parsing_settings

from lora_rlhf import __version__
from lora_rlhf.config import EvaluateConfig, PPOConfig, RewardConfig, SampleConfig, SFTConfig
from lora_rlhf.errors import UserError
from lora_rlhf.recipe import RecipeConfig, run_recipe
from lora_rlhf.settings import check, read_yaml
from lora_rlhf.tinyworld.datasets import LabelConfig, TinyworldConfig, label, make
from lora_rlhf.tinyworld.gold import score, score_request
from lora_rlhf.tinyworld.requests import find

OUT_OF_MEMORY = (
    "out of memory: lower --micro_batch_size (results do not depend on it) or --generation_batch_size, or give "
    "--gradient_checkpointing true"
)

# How threads wait for one another, for the OpenMP that PyTorch loads later: spinning for microseconds, then sleeping.
# With small tensors, sleeping at once halves the speed, and spinning on slows everything down on a busy machine.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "30000"}

set_parsing_settings(docstring_parse_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How good a response to a prompt of the tiny world is, by the hidden gold score."""

    prompt: str
    """A prompt of the tiny world, for example: Where does the fox live?"""
    response: str
    """Any answer to it."""

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        known = find(self.prompt) is not None
        return (
            []
            if known
            else [f"prompt {self.prompt!r} is not one of the tiny world; `lora-rlhf tinyworld make` writes some"]
        )


def _sft(config: SFTConfig) -> None:
    from lora_rlhf.stages import sft

    sft.train(config)


def _sample(config: SampleConfig) -> None:
    from lora_rlhf.stages import sample

    sample.sample(config)


def _reward(config: RewardConfig) -> None:
    from lora_rlhf.stages import reward

    reward.train(config)


def _ppo(config: PPOConfig) -> None:
    from lora_rlhf.stages import ppo

    ppo.train(config)


def _evaluate(config: EvaluateConfig) -> None:
    from lora_rlhf.evaluate.report import evaluate, table

    print(table(evaluate(config, gold=score)))


def _run(config: RecipeConfig) -> None:
    run_recipe(config.config, config.overrides)


def _make(config: TinyworldConfig) -> None:
    for name, count in make(config).items():
        print(f"{config.files[name]}: {count} rows")


def _label(config: LabelConfig) -> None:
    measured = label(config)
    print(f"rankings: {config.to}")
    if measured is not None and measured.rate is not None:
        print(f"labelers agree on {100 * measured.rate:.1f} % of {measured.num_pairs} pairs: {config.agreement_to}")


def _score(config: ScoreConfig) -> None:
    request = find(config.prompt)
    assert request is not None  # else the configuration was at fault
    gold = score_request(request, config.response)
    for name, quality in vars(gold).items():
        print(f"{name:<10} {quality:.2f}")
    print(f"{'total':<10} {gold.total:.2f}")


@dataclass(frozen=True)
class Command:
    """What a command does in a few words, what it is configured by and what it calls."""

    summary: str
    kind: type[Any]
    call: Callable[[Any], None]


COMMANDS = {
    "sft": Command("stage 1: supervised fine-tuning on demonstrations", SFTConfig, _sft),
    "sample": Command("K responses per prompt from a stage, ready to be ranked", SampleConfig, _sample),
    "reward": Command("stage 2: reward model on rankings or pairs", RewardConfig, _reward),
    "ppo": Command("stage 3: PPO against the reward model", PPOConfig, _ppo),
    "evaluate": Command("compare the stages of a run on held-out prompts", EvaluateConfig, _evaluate),
    "run": Command("all stages of a recipe; goes on where it stopped", RecipeConfig, _run),
    "tinyworld make": Command("demonstrations and prompts of the tiny world", TinyworldConfig, _make),
    "tinyworld label": Command("rankings by simulated labelers", LabelConfig, _label),
    "tinyworld score": Command("how good a response is by the hidden gold score", ScoreConfig, _score),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status.

    0, 1 (out of memory, or a file that cannot be written), 2 (a mistake of the user's) or 130 (Ctrl-C).
    """
    for name, value in WAITING.items():
        os.environ.setdefault(name, value)
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lora_rlhf").setLevel(logging.INFO)
    try:
        _dispatch([argument for argument in given if argument != "--debug"])
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
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
    wanted = " ".join(itertools.takewhile(lambda argument: not argument.startswith("-"), given))
    listed = [name for name in COMMANDS if not wanted or name.split()[0] == wanted]
    if not listed or (not wanted and given and given[0] not in ("-h", "--help")):
        raise UserError(
            f"unknown command {wanted or given[0]!r}{_nearest(wanted, COMMANDS)} (`lora-rlhf --help` lists them)"
        )
    print(_overview(listed))


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
    if "config" not in parser.hints:
        parser.add_argument(
            "--config", action="config", help="YAML file with these flags; those given here override it."
        )
    parser.given = _normalize(arguments, parser.hints)
    if parser.file is not None:
        read_yaml(parser.file)  # says which file and line is at fault, which the parser does not
    values = parser.parse_args(parser.given)
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})


def _normalize(arguments: Sequence[str], hints: dict[str, Any]) -> list[str]:
    """Known flags with underscores for dashes, and `--flag` alone as `--flag=true` where it is a yes or no."""
    normal: list[str] = []
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or (name not in hints and name != "print_config"):
            normal.append(argument)
        elif hints.get(name) is bool and not equals and (following is None or following.startswith("--")):
            normal.append(f"--{name}=true")
        else:
            normal.append(f"--{name}{equals}{value}")
    return normal


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
            names = " and ".join(f"--{name}" for name in found[1].split(", "))
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
        return "a list such as [0.0, 1.0]"
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(hint, "text")


if __name__ == "__main__":
    sys.exit(main())
