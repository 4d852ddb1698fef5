"""Processor cores that other processes leave to this one."""

import os
import statistics
import time
from pathlib import Path

from lora_rlhf.system.memory import PROC, read

STAT = PROC / "stat"
LOOKS = 5
BETWEEN_LOOKS_S = 0.01


def idle_cores(stat: Path = STAT) -> int | None:
    """How many of this process's cores no other process computes on now, at least 1; None where the system hides it.

    PyTorch's threads wait for the slowest of them at every operation. One that shares its core with another process
    holds up all: on two busy cores, two threads took 12 times as long as one.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    running = []
    for _ in range(LOOKS):
        counts = [line.split()[1] for line in read(stat).splitlines() if line.startswith("procs_running")]
        if not counts:
            return None
        running.append(int(counts[0]) - 1)
        time.sleep(BETWEEN_LOOKS_S)
    others = round(statistics.median(running))
    return max(1, min(usable, (os.cpu_count() or usable) - others))
