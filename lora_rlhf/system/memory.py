"""How much memory this process can have: the machine's, or that of the control groups that limit it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CONTROL_GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """Bytes that this process could have in all, and could still get. `limited`: by a control group."""

    total: int
    available: int
    limited: bool = False


def memory(proc: Path = PROC, groups: Path = CONTROL_GROUPS) -> Memory | None:
    """The machine's memory, or the control group's where that has less. None where the system does not say."""
    sizes = {}
    for row in read(proc / "meminfo").splitlines():
        name, _, size = row.partition(":")
        sizes[name] = int(size.split()[0]) * 1024  # the file says kB and means KiB
    if "MemTotal" not in sizes or "MemAvailable" not in sizes:
        return None
    least = Memory(sizes["MemTotal"], sizes["MemAvailable"])
    for folder in control_groups("memory", proc, groups):
        limit = read(folder / "memory.max") or read(folder / "memory.limit_in_bytes")
        used = read(folder / "memory.current") or read(folder / "memory.usage_in_bytes")
        if limit.isdigit() and used.isdigit() and int(limit) < least.total:
            # cached pages of files count as used, but the kernel frees them when a process needs memory
            statistics = dict(row.split() for row in read(folder / "memory.stat").splitlines())
            cached = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
            free = max(0, int(limit) - int(used) + cached)
            least = Memory(int(limit), min(least.available, free), limited=True)
    return least


def control_groups(controller: str, proc: Path, root: Path) -> Iterator[Path]:
    """The folders of this process's control groups, the innermost first: version 2, or a controller of version 1."""
    for row in read(proc / "self/cgroup").splitlines():
        _, controllers, path = row.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root
        group = base / path.lstrip("/")  # in a container it may name a folder of the host that is not here
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(base) and folder.is_dir())


def read(path: Path) -> str:
    """The text of a file in /proc or /sys; empty where it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
