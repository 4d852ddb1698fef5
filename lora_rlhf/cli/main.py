"""The command line: a command, its configuration from words, flags and file, one call."""

import difflib
import itertools
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from lora_rlhf import __version__
from lora_rlhf.cli.commands import COMMANDS
from lora_rlhf.cli.flags import parse_flags
from lora_rlhf.configs.catalogue import BY_NAME, REWARD
from lora_rlhf.configs.values import check
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
*EARLIER, LAST = BY_NAME
OTHER_NAMES = {"train": f"{', '.join(EARLIER)} or {LAST}", "rm": REWARD.name, "generate": "sample", "eval": "evaluate"}


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


def parse(name: str, arguments: Sequence[str]) -> Any:
    """The configuration that a command's arguments ask for. UserError for unknown flags and unfit values."""
    return parse_flags(name, COMMANDS[name].kind, arguments)


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
