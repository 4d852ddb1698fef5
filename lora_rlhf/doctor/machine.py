"""The computer: system, processor cores that this process may use, threads, and whether the memory suffices."""

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from lora_rlhf.doctor.findings import GIB, Finding, to_gib
from lora_rlhf.system.memory import CONTROL_GROUPS, PROC, Memory, control_groups, read

QUICKSTART_GIB = 1.5  # peak of the quickstart
COMFORTABLE_GIB = 3.0


@dataclass(frozen=True)
class Cores:
    """Processor cores: all, and how many this process may keep busy, which a limit can make a fraction."""

    total: int
    usable: float
    name: str


def system_finding(system: str, release: str, python: str) -> Finding:
    """The operating system and Python."""
    values = {"system": system, "release": release, "python": python, "executable": sys.executable}
    text = f"{system} {release}, Python {python}"
    if system != "Linux":
        return Finding("system", "note", text, "this project is tested on Linux alone", values)
    return Finding("system", "ok", text, values=values)


def read_cores(proc: Path = PROC, groups: Path = CONTROL_GROUPS) -> Cores:
    """The cores of this machine, and how many of them affinity and control groups leave to this process."""
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


def cores_finding(cores: Cores) -> Finding:
    """How many cores this process can use."""
    limit_text = f" of {cores.total}" if cores.usable < cores.total else ""
    values = {"total": cores.total, "usable": cores.usable, "name": cores.name}
    return Finding("cores", "ok", f"{cores.usable:g}{limit_text} cores, {cores.name}", values=values)


def memory_finding(memory: Memory | None) -> Finding:
    """Whether the memory suffices for the smallest use of this project."""
    if memory is None:
        return Finding("memory", "note", "this system does not say how much memory is free")
    free, total = to_gib(memory.available), to_gib(memory.total)
    values = {"available_gib": free, "total_gib": total, "limited": memory.limited}
    text = f"{free} GiB of {total} GiB available" + (" (the limit of the control group)" if memory.limited else "")
    if memory.available < QUICKSTART_GIB * GIB:
        advice = f"the quickstart alone takes {QUICKSTART_GIB:g} GiB: close other programs, or raise the limit"
        return Finding("memory", "problem", text, advice, values)
    if memory.available < COMFORTABLE_GIB * GIB:
        advice = "enough for the tiny world; other models need more while they are loaded"
        return Finding("memory", "note", text, advice, values)
    return Finding("memory", "ok", text, values=values)


def threads_finding(
    threads: int, setting: str | None, usable_cores: float, has_gpu: bool, idle: int | None = None
) -> Finding:
    """Whether PyTorch's threads fit the cores. `setting` is OMP_NUM_THREADS; `idle`: cores that nobody computes on."""
    max_threads = max(1, int(usable_cores))
    variable = "OMP_NUM_THREADS is not set" if setting is None else f"OMP_NUM_THREADS={setting}"
    text = f"PyTorch computes with {threads} thread{'s' * (threads > 1)} on the CPU; {variable}"
    values = {"threads": threads, "OMP_NUM_THREADS": setting, "usable_cores": usable_cores}
    if threads > max_threads:
        advice = f"more threads than cores to use wait for one another: export OMP_NUM_THREADS={max_threads}"
        return Finding("threads", "note", text, advice, values)
    if idle is not None and idle < max_threads:
        advice = f"no more than {idle} threads are started; wait for the others, since this slows all of you down"
        busy_text = f"{text}; other processes compute on {max_threads - idle} of {max_threads} cores"
        return Finding("threads", "note", busy_text, advice, values)
    if setting is not None and threads < max_threads and not has_gpu:
        advice = f"that leaves {max_threads - threads} of {max_threads} cores idle: unset OMP_NUM_THREADS"
        return Finding("threads", "note", text, advice, values)
    return Finding("threads", "ok", text, values=values)
