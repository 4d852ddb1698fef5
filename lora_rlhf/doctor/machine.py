"""The computer itself: system, processor cores that this process may use, threads; and whether its memory suffices."""

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from lora_rlhf.doctor.findings import GIB, Finding, gib
from lora_rlhf.system.memory import CONTROL_GROUPS, PROC, Memory, control_groups, read

QUICKSTART_GIB = 1.5  # what the quickstart takes at its peak
COMFORTABLE_GIB = 3.0


@dataclass(frozen=True)
class Cores:
    """Processor cores: all, and as many as this process may keep busy (a share of one counts as a fraction)."""

    total: int
    usable: float
    name: str


def judge_system(system: str, release: str, python: str) -> Finding:
    """The operating system and Python."""
    values = {"system": system, "release": release, "python": python, "executable": sys.executable}
    found = f"{system} {release}, Python {python}"
    if system != "Linux":
        return Finding("system", "note", found, "this project is tested on Linux alone", values)
    return Finding("system", "ok", found, values=values)


def cores(proc: Path = PROC, groups: Path = CONTROL_GROUPS) -> Cores:
    """The cores of this machine and those that affinity and control groups leave to this process."""
    total = os.cpu_count() or 1
    usable: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    for folder in control_groups("cpu", proc, groups):
        quota, period = [*read(folder / "cpu.max").split(), "", ""][:2]
        quota = quota or read(folder / "cpu.cfs_quota_us")
        period = period or read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():  # without a limit it is "max", in version 1 "-1"
            usable = min(usable, int(quota) / int(period))
    names = [line.partition(":")[2].strip() for line in read(proc / "cpuinfo").splitlines() if "model name" in line]
    return Cores(total, usable, names[0] if names else platform.machine())


def judge_cores(found: Cores) -> Finding:
    """How many cores there are to work with."""
    limited = f" of {found.total}" if found.usable < found.total else ""
    values = {"total": found.total, "usable": found.usable, "name": found.name}
    return Finding("cores", "ok", f"{found.usable:g}{limited} cores, {found.name}", values=values)


def judge_memory(found: Memory | None) -> Finding:
    """Whether the memory suffices for the smallest use of this project."""
    if found is None:
        return Finding("memory", "note", "this system does not say how much memory is free")
    free, total = gib(found.available), gib(found.total)
    values = {"available_gib": free, "total_gib": total, "limited": found.limited}
    text = f"{free} GiB of {total} GiB available" + (" (the limit of the control group)" if found.limited else "")
    if found.available < QUICKSTART_GIB * GIB:
        advice = f"the quickstart alone takes {QUICKSTART_GIB:g} GiB: close other programs, or raise the limit"
        return Finding("memory", "problem", text, advice, values)
    if found.available < COMFORTABLE_GIB * GIB:
        advice = "enough for the tiny world; other models need more while they are loaded"
        return Finding("memory", "note", text, advice, values)
    return Finding("memory", "ok", text, values=values)


def judge_threads(threads: int, setting: str | None, usable: float, has_gpu: bool) -> Finding:
    """Whether PyTorch's threads fit the cores. `setting` is OMP_NUM_THREADS."""
    fitting = max(1, int(usable))
    told = "OMP_NUM_THREADS is not set" if setting is None else f"OMP_NUM_THREADS={setting}"
    found = f"PyTorch computes with {threads} thread{'s' * (threads > 1)} on the CPU; {told}"
    values = {"threads": threads, "OMP_NUM_THREADS": setting, "usable_cores": usable}
    if threads > fitting:
        advice = f"more threads than cores to use wait for one another: export OMP_NUM_THREADS={fitting}"
        return Finding("threads", "note", found, advice, values)
    if setting is not None and threads < fitting and not has_gpu:
        advice = f"that leaves {fitting - threads} of {fitting} cores idle: unset OMP_NUM_THREADS"
        return Finding("threads", "note", found, advice, values)
    return Finding("threads", "ok", found, values=values)
