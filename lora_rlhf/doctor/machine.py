"""The computer itself: system, processor cores and memory that this process may use, and threads."""

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_rlhf.doctor.findings import GIB, Finding, gib

PROC = Path("/proc")
CONTROL_GROUPS = Path("/sys/fs/cgroup")
QUICKSTART_GIB = 1.5  # what the quickstart takes at its peak
COMFORTABLE_GIB = 3.0


@dataclass(frozen=True)
class Cores:
    """Processor cores: all, and as many as this process may keep busy (a share of one counts as a fraction)."""

    total: int
    usable: float
    name: str


@dataclass(frozen=True)
class Memory:
    """Memory in bytes that this process could have, and that it could still get. `limited`: by a control group."""

    total: int
    available: int
    limited: bool = False


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
        quota, period = [*_read(folder / "cpu.max").split(), "", ""][:2]
        quota = quota or _read(folder / "cpu.cfs_quota_us")
        period = period or _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():  # without a limit it is "max", in version 1 "-1"
            usable = min(usable, int(quota) / int(period))
    names = [line.partition(":")[2].strip() for line in _read(proc / "cpuinfo").splitlines() if "model name" in line]
    return Cores(total, usable, names[0] if names else platform.machine())


def judge_cores(found: Cores) -> Finding:
    """How many cores there are to work with."""
    limited = f" of {found.total}" if found.usable < found.total else ""
    values = {"total": found.total, "usable": found.usable, "name": found.name}
    return Finding("cores", "ok", f"{found.usable:g}{limited} cores, {found.name}", values=values)


def memory(proc: Path = PROC, groups: Path = CONTROL_GROUPS) -> Memory | None:
    """The machine's memory, or the control group's where that has less. None where the system does not say."""
    sizes = {}
    for row in _read(proc / "meminfo").splitlines():
        name, _, size = row.partition(":")
        sizes[name] = int(size.split()[0]) * 1024  # the file says kB and means KiB
    if "MemTotal" not in sizes or "MemAvailable" not in sizes:
        return None
    least = Memory(sizes["MemTotal"], sizes["MemAvailable"])
    for folder in control_groups("memory", proc, groups):
        limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
        if limit.isdigit() and used.isdigit() and int(limit) < least.total:
            # pages of files that nobody has used lately count as used, and are given back when memory is wanted
            given_back = dict(row.split() for row in _read(folder / "memory.stat").splitlines())
            files = int(given_back.get("total_inactive_file", given_back.get("inactive_file", 0)))
            free = max(0, int(limit) - int(used) + files)
            least = Memory(int(limit), min(least.available, free), limited=True)
    return least


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


def control_groups(controller: str, proc: Path, root: Path) -> Iterator[Path]:
    """The folders of this process's control groups, from its own outwards: version 2, or a controller of version 1."""
    for row in _read(proc / "self/cgroup").splitlines():
        _, controllers, path = row.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root
        own = base / path.lstrip("/")  # in a container it may name a folder of the host that is not here
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(base) and folder.is_dir())


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
