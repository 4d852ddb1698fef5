"""What both halves of ppo_against_trl.py share, so that both are measured alike: settings, clock, memory."""

import argparse
import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from lora_rlhf.system.errors import Stopped, first_line

GPU = torch.cuda.is_available()
MIB = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The settings that both are given alike."""
    parser.add_argument("--folder", required=True, help="with model, prompts and our parent stages")
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--micro-batch-size", type=int, required=True)
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--response-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rollout-batch-size", type=int, required=True, help="responses generated at a time")
    parser.add_argument("--gradient-checkpointing", action="store_true")


@dataclass
class Clock:
    """When iterations end, and what parts they have."""

    ends: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)  # CPU seconds of the process, at the same moments
    parts: list[dict[str, float]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    _update: float | None = None

    def now(self) -> float:
        if GPU:
            torch.cuda.synchronize()
        return time.monotonic()

    def start(self) -> None:
        """The first iteration begins."""
        self.ends.append(self.now())
        self.processor.append(time.process_time())

    def rollout(self, seconds: float, tokens: int) -> None:
        """This iteration's responses are sampled."""
        self.parts.append({"rollout_s": seconds})
        self.tokens.append(tokens)
        self._update = None

    def update_begins(self) -> None:
        """Called before every training forward; the first of an iteration counts."""
        if self._update is None:
            self._update = self.now()

    def tick(self) -> None:
        """An iteration ends."""
        end = self.now()
        if self._update is not None:
            part = self.parts[-1]
            part["update_s"] = end - self._update
            part["score_s"] = end - self.ends[-1] - part["rollout_s"] - part["update_s"]
        self.ends.append(end)
        self.processor.append(time.process_time())


def run(measure: Callable[[argparse.Namespace], dict[str, Any]], description: str | None) -> None:
    """Measures with the given settings and prints one JSON; memory that does not suffice is a result, too."""
    parser = argparse.ArgumentParser(description=description)
    add_arguments(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with contextlib.redirect_stdout(sys.stderr):  # TRL prints its metrics
        try:
            measured = measure(args)
        except (torch.OutOfMemoryError, MemoryError, Stopped) as error:
            if isinstance(error, Stopped) and "out of memory" not in str(error):
                raise
            measured = {"does_not_fit": first_line(error), "rollout_batch_size": args.rollout_batch_size}
    print(json.dumps(measured))


def finish(clock: Clock, before: float, args: argparse.Namespace) -> dict[str, Any]:
    """What a half reports. SystemExit when it did not generate exactly the tokens that it was to."""
    expected = args.batch_size * args.response_tokens
    if clock.tokens != [expected] * args.iterations:
        raise SystemExit(f"{expected} tokens were to be generated in every iteration, but it were {clock.tokens}")
    measured = {
        "seconds": _steps(clock.ends),
        "processor_seconds": _steps(clock.processor),
        "parts": clock.parts,
        "tokens_per_iteration": expected,
        "rollout_batch_size": args.rollout_batch_size,
        "resident_before_mib": before,
        "peak_resident_mib": peak_resident_mib(),
    }
    if GPU:
        measured["peak_gpu_allocated_mib"] = torch.cuda.max_memory_allocated() / MIB
        measured["peak_gpu_reserved_mib"] = torch.cuda.max_memory_reserved() / MIB
    return measured


def _steps(moments: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(moments)]


def resident_mib() -> float:
    """Resident size of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MIB


def peak_resident_mib() -> float:
    """Largest resident size of this process so far. Not ru_maxrss, which begins with that of the parent's."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024 / MIB
