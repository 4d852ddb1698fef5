"""Run folders that mean harm, made by a generator, and what each command that reads runs makes of one.

Each command runs in a fork of this process, which has imported what they need: seconds and memory are the command's.
"""

import json
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lora_rlhf_demo.app  # noqa: F401  (imported before the forks)
from lora_rlhf_demo.config import DemoConfig
from lora_rlhf_demo.label_session import LabelActions
from lora_rlhf_demo.requests import Open
from lora_rlhf_demo.runs import list_runs, run_summary
from lora_rlhf_demo.tail import Tails

import lora_rlhf.chat.terminal
import lora_rlhf.evaluation.report
import lora_rlhf.exporting.export
import lora_rlhf.release.package  # noqa: F401
from lora_rlhf.cli.main import main
from lora_rlhf.system.errors import UserError
from tests.support.demo import PORT, ask, last, save_run, trained, worker_of
from tests.support.models import save_tiny_model

COMMANDS = ("package", "evaluate", "export", "chat", "demo")
MOST_SECONDS, MOST_MIB = 5.0, 500  # more than the command takes on a good run
MOST_TRIES = 3  # of a command that takes longer: other work on the machine must not count
KILLED_AFTER = 60.0
INTERRUPTED = 130
ADDRESS = re.compile(r"(http://\S+)   \(Ctrl-C ends it\)")
FILES = (
    *(f"{stage}/{name}" for stage in ("sft", "reward", "ppo") for name in ("manifest.json", "config.yaml")),
    *(f"{stage}/adapter/{name}" for stage in ("sft", "ppo") for name in ("adapter_config.json",)),
    *(f"{stage}/adapter/adapter_model.safetensors" for stage in ("sft", "reward", "ppo")),
    *("sft/metrics.jsonl", "ppo/metrics.jsonl", "ppo/samples.jsonl", "recipe.yaml", "report.json", "report.md"),
    *("answers.jsonl", "candidates.jsonl", "data/candidates.jsonl", "rankings.jsonl", "votes.jsonl", "gate/a.json"),
)
YAML_BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
STRANGE: tuple[Any, ...] = (
    *(None, [], {}, -1, 1e308, True, 2**63, "", "../../outside", "/etc", "/dev/zero", "\x1b]0;x\x07", "\u202egnp"),
    *("a" * 10**5, {"name": "/dev/zero"}, [[]] * 1000),
)


def link(path: Path, draw: random.Random) -> None:
    path.symlink_to(draw.choice(["../../../outside/secret", "/dev/zero", "/etc/passwd", "nowhere", path.name]))


def sparse(path: Path, draw: random.Random) -> None:
    """A file of zeros that takes no room on the disk."""
    path.touch()
    os.truncate(path, draw.choice([2**28, 2**30 - 1, 2**41, 2**42]))


def garbage(path: Path, draw: random.Random) -> None:
    texts = (YAML_BOMB, "[" * 10**6, '{"a":' * 10**5, "\x1b[31m\u202e", "a: !!python/object/apply:os.system [id]", "")
    path.write_bytes(draw.choice([*(text.encode() for text in texts), draw.randbytes(1000), b"\xff" * 8 + b"{}"]))


def wide(path: Path, draw: random.Random) -> None:
    """15 MiB that take much more as values."""
    row = draw.choice(["[]", "{}", '"a"', "1.5", '{"step": 1}'])
    many = 15 * 2**20 // (len(row) + 1)
    is_rows = path.suffix == ".jsonl"
    path.write_text((row + "\n") * many if is_rows else '{"a": [' + ",".join([row] * many) + "]}")


def strange_values(path: Path, draw: random.Random) -> None:
    """A JSON file with other values, at any depth, and an unknown key; for other files, unknown keys alone."""
    values: Any = json.loads(path.read_text()) if path.suffix == ".json" and path.exists() else {"unknown": 1}
    inner = values
    for _ in range(draw.randint(1, 3)):
        key = draw.choice([*inner, "unknown"])
        if isinstance(inner.get(key), dict) and inner[key] and draw.random() < 0.5:
            inner = inner[key]
            continue
        inner[key] = draw.choice(STRANGE)
    path.write_text(json.dumps(values))


def lying_tensors(path: Path, draw: random.Random) -> None:
    """A header of tensors that are not there, or of no size that memory has."""
    shape = draw.choice([[10**9, 10**9], [2**62], [-1], [0, 2**40], [4, 64]])
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, draw.choice([0, 1024, 2**50])]}}
    raw = json.dumps(header).encode()
    path.write_bytes(draw.choice([len(raw), 2**62, 10**8]).to_bytes(8, "little") + raw)


def pipe(path: Path, _: random.Random) -> None:
    os.mkfifo(path)


HARM: tuple[Callable[[Path, random.Random], None], ...] = (
    *(link, sparse, garbage, wide, strange_values, strange_values, lying_tensors, pipe),
)


class Place:
    """A folder with a small base, a good run of three stages, prompts, and a file outside that nothing may touch."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, folder / "runs"
        save_tiny_model("llama", folder / "model")
        save_run(trained(folder / "model"), folder / "good" / "run")
        (folder / "outside").mkdir()
        (folder / "outside" / "secret").write_text('{"secret": 1}\n')
        (folder / "prompts.jsonl").write_text("".join(f'{{"prompt": "What is {i}?"}}\n' for i in range(8)))
        (folder / "questions.txt").write_text("Hello.\n")

    def make_run(self, number: int) -> Path:
        """A copy of the good run in which two to four files mean harm; the same number makes the same run."""
        run, draw = self.runs / f"run{number}", random.Random(number)
        shutil.copytree(self.folder / "good" / "run", run)
        for name in draw.sample(FILES, k=draw.randint(2, 4)):
            path, harm = run / name, draw.choice(HARM)
            path.parent.mkdir(exist_ok=True)
            if harm is not strange_values:
                path.unlink(missing_ok=True)
            harm(path, draw)
        return run

    def arguments(self, command: str, run: Path) -> list[str]:
        to, name = self.folder / "out" / command, run.name
        limits = ["--device", "cpu", "--max_prompt_tokens", "64", "--max_response_tokens", "4"]
        return {
            "package": [command, str(run), "--to", f"{to}-{name}", "--with_adapters"],
            "evaluate": [command, str(run), "--prompts", str(self.folder / "prompts.jsonl"), *limits],
            "export": [command, str(run), "--to", f"{to}-{name}", "--device", "cpu", "--parity_tokens", "4", "--force"],
            "chat": [command, str(run), "--device", "cpu", "--max_response_tokens", "4"],
        }[command]

    def try_command(self, command: str, run: Path) -> "Outcome":
        """What a command makes of a run. With `demo`, the page is fetched and all that its tabs read."""
        (self.folder / "out").mkdir(exist_ok=True)
        said = self.folder / "said"
        call = (lambda: look_at(run, said)) if command == "demo" else (lambda: main(self.arguments(command, run)))
        return in_fork(call, self.folder / "questions.txt", said)

    def untouched(self) -> dict[str, tuple[int, int]]:
        """Size and time of all files that no command may write."""
        kept = [path for name in ("model", "good", "outside") for path in (self.folder / name).rglob("*")]
        kept += [self.folder / "prompts.jsonl", *self.folder.iterdir()]
        expected = {"said", "out", "runs"}  # what is written on purpose
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in kept if path.name not in expected}


@dataclass(frozen=True)
class Outcome:
    """How a command ended: `status` None for one that was killed, `mib` the most memory that it held.

    seconds: from its start to its end. processor_seconds: those in which it computed, whatever else the machine does.
    """

    status: int | None
    seconds: float
    processor_seconds: float
    mib: float
    said: str

    @property
    def fault(self) -> str | None:
        """What is wrong with the end; None for a good end, or for a refusal in a line."""
        errors = [line for line in self.said.splitlines() if line.startswith("error:")]
        if self.status not in (0, 1, 2):
            return f"status {self.status}"
        if "Traceback" in self.said or "\x1b" in self.said or "\u202e" in self.said:
            return "a traceback or control characters"
        if self.status and len(errors) != 1:
            return f"{len(errors)} lines of error"
        return None if len(self.said) < 20_000 else f"{len(self.said)} characters"


def sweep(place: Place, numbers: Iterable[int]) -> Iterator[tuple[str, int, Outcome, str | None]]:
    """(command, number, outcome, what is wrong with it) of each command on each run; a good run has number -1."""
    good = {}
    for command in COMMANDS:
        run = shutil.copytree(place.folder / "good" / "run", place.runs / f"good-{command}")
        good[command] = outcome = place.try_command(command, run)
        yield command, -1, outcome, outcome.fault or (f"status {outcome.status}" if outcome.status else None)
    files = place.untouched()
    for number in numbers:
        for command in COMMANDS:
            usual = good[command]
            for _ in range(MOST_TRIES):
                run = place.make_run(number)
                outcome = place.try_command(command, run)
                shutil.rmtree(run)
                shutil.rmtree(place.folder / "out", ignore_errors=True)
                if outcome.seconds <= usual.seconds + MOST_SECONDS:
                    break
            fault = outcome.fault
            if outcome.seconds > usual.seconds + MOST_SECONDS:
                fault = f"{outcome.seconds:.1f} s"
            if outcome.processor_seconds > usual.processor_seconds + MOST_SECONDS:
                fault = f"{outcome.processor_seconds:.1f} s of computing"
            if outcome.mib > usual.mib + MOST_MIB:
                fault = f"{outcome.mib:.0f} MiB"
            if place.untouched() != files:
                fault = "something outside was written"
            yield command, number, outcome, fault


def in_fork(call: Callable[[], int], given: Path, said: Path) -> Outcome:
    """The outcome of a call in a fork of this process, which reads `given` and writes to `said`."""
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            for number, name, flags in ((0, given, os.O_RDONLY), (1, said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
                os.dup2(os.open(name, flags, 0o600), number)
            os.dup2(1, 2)
            sys.stdin = open(0, closefd=False)  # noqa: SIM115
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            status = call()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        except BaseException:
            import traceback

            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(99)
    while True:
        ended, wait_status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() - started > KILLED_AFTER:
            os.kill(child, 9)
        time.sleep(0.005)
    seconds = time.monotonic() - started
    ended_with = os.WEXITSTATUS(wait_status) if os.WIFEXITED(wait_status) else None
    text = said.read_text(errors="replace")
    return Outcome(ended_with, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, text)


def look_at(run: Path, said: Path) -> int:
    """`lora-rlhf demo` with that run first, until its page is there; then all that its tabs ask of the run."""
    root = run.parent
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    threading.Thread(target=_fetch_and_interrupt, args=(said,), daemon=True).start()
    status = main(["demo", "--root", str(root), "--run", run.name, "--device", "cpu", "--port", str(PORT)])
    if status not in (0, INTERRUPTED):  # the line can be there before the command waits for Ctrl-C
        return status
    worker = worker_of(root)
    looks: tuple[Callable[[], Any], ...] = (
        lambda: list_runs(root),
        lambda: run_summary(root, run.name),
        lambda: LabelActions(DemoConfig(root=str(root))).read_labelling(run.name),
        lambda: Tails().read_tail(run / "sft" / "metrics.jsonl"),
        lambda: last(worker, Open(run.name)),
        lambda: last(worker, ask(run.name, "Hello.")),
    )
    for look in looks:
        try:
            look()
        except UserError as error:
            print(f"shown: {error}")
    worker.close()
    return 0


def _fetch_and_interrupt(said: Path) -> None:
    """Fetches the page as soon as the command has said its address, and then ends the command as Ctrl-C does."""
    while not (address := ADDRESS.search(said.read_text(errors="replace"))):
        time.sleep(0.02)
    for name in ("", "config"):
        with urllib.request.urlopen(address[1] + name, timeout=20) as answer:
            answer.read()
    os.kill(os.getpid(), signal.SIGINT)
