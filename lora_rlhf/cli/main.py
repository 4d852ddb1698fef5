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
from lora_rlhf.configs.catalogue import BY_NAME, REWARD
from lora_rlhf.configs.flags import parse_flags
from lora_rlhf.configs.values import check
from lora_rlhf.system import workers
from lora_rlhf.system.cores import idle_cores
from lora_rlhf.system.errors import Stopped, UserError, first_line
from lora_rlhf.system.shown_text import visible_output

OUT_OF_MEMORY = (
    "out of memory: lower --micro_batch_size (results do not depend on it) or --generation_batch_size, or give "
    "--gradient_checkpointing true"
)

# Settings of libraries that are loaded later, where the user has not set them.
ENVIRONMENT = {
    # OpenMP's threads wait for each other by spinning for microseconds, then they sleep. With small tensors, sleeping
    # at once halves the speed; spinning for long slows down every process of a busy machine.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "30000",
    # Batches of many lengths would fragment the GPU's memory until the longest one no longer fits.
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
}
HELP = ("-h", "--help", "--version", "--print_config", "--print-config")
QUIET = {"TQDM_DISABLE": "1"}  # for all but the first of several processes

# The commands of other projects, which people may type here.
*EARLIER, LAST = BY_NAME
OTHER_NAMES = {"train": f"{', '.join(EARLIER)} or {LAST}", "rm": REWARD.name, "generate": "sample", "eval": "evaluate"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status.

    0: done. 1: out of memory, a file that cannot be written, a guard. 2: a mistake of the user's. 130: Ctrl-C.
    143: SIGTERM. 129: SIGHUP.
    """
    for name, value in (ENVIRONMENT if workers.is_main() else ENVIRONMENT | QUIET).items():
        os.environ.setdefault(name, value)
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "torch" not in sys.modules and not any(word in HELP for word in words):
        _limit_threads()
    with visible_output():
        return _run(words, "--debug" in words)


def _run(words: list[str], debug: bool) -> int:
    """Runs a command, and prints its error; the exit status. `debug`: raises it instead."""
    logging.basicConfig(format="%(message)s")
    level = logging.DEBUG if "--verbose" in words else logging.INFO
    logging.getLogger("lora_rlhf").setLevel(level if workers.is_main() else logging.ERROR)
    try:
        _dispatch([word for word in words if word not in ("--debug", "--verbose")])
        workers.disconnect()
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader (`head`, a pager) has closed the pipe; Python would report it again when it closes the stream
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
        # compared by name: importing torch for its errors would slow down every --help
        kind = type(error).__name__
        if not debug and kind == "AcceleratorError" and "device-side assert" not in str(error):
            print(f"error: the GPU failed ({first_line(error)}); nvidia-smi shows whether it answers", file=sys.stderr)
            return 1
        if debug or not (isinstance(error, MemoryError) or kind == "OutOfMemoryError"):
            raise
        print(f"error: {OUT_OF_MEMORY}\n{error}", file=sys.stderr)
        return 1
    return 0


def _limit_threads() -> None:
    """Has PyTorch use no more threads than there are idle cores, unless OMP_NUM_THREADS says how many."""
    idle = idle_cores()
    if idle is not None and idle < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(idle))


def _dispatch(arguments: list[str]) -> None:
    """Finds the command in the words, reads its configuration, and calls it."""
    if arguments[:1] == ["--version"]:
        print(f"lora-rlhf {__version__}")
        return
    for name, command in COMMANDS.items():
        length = len(name.split())
        if arguments[:length] == name.split():
            config = parse(name, arguments[length:])
            check(config)
            command.call(config)
            return
    words = list(itertools.takewhile(lambda argument: not argument.startswith("-"), arguments))[:2]
    names = [name for name in COMMANDS if not words or words == name.split()[:1]]
    if not names or (not words and arguments and arguments[0] not in ("-h", "--help")):
        raise UserError(f"unknown command {_with_likely_name(words or arguments[:1])} (`lora-rlhf --help` lists them)")
    print(_overview_text(names))


def parse(name: str, arguments: Sequence[str]) -> Any:
    """The configuration that a command's arguments ask for. UserError for unknown flags and unfit values."""
    return parse_flags(name, COMMANDS[name].kind, arguments)


def _with_likely_name(words: list[str]) -> str:
    """The unknown command, and the one that was probably meant."""
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    unknown = " ".join(words if words[0] in groups else words[:1])
    names = {name.split()[-1]: name for name in COMMANDS} | {name: name for name in COMMANDS} | OTHER_NAMES
    for candidate in (" ".join(words), words[0]):
        if close := difflib.get_close_matches(candidate, names, n=1, cutoff=0.7):
            return f"{unknown!r}; did you mean {names[close[0]]}?"
    return repr(unknown)


def _overview_text(names: Iterable[str]) -> str:
    lines = "\n".join(f"  {name:<17} {COMMANDS[name].summary}" for name in names)
    return f"""usage: lora-rlhf COMMAND [flags]

{lines}

  COMMAND --help               every flag, with its default
  COMMAND --config FILE.yaml   flags from a file; those on the command line override it
  COMMAND --print_config       such a file, to standard output
  COMMAND --debug              the traceback of an error
  COMMAND --verbose            also how the machine is used: engines, copies of weights"""
