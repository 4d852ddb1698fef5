"""What the kernel leaves to this process: memory, and the control groups that limit it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CONTROL_GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """Memory in bytes that this process could have, and that it could still get. `limited`: by a control group."""

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
            # pages of files that nobody has used lately count as used, and are given back when memory is wanted
            given_back = dict(row.split() for row in read(folder / "memory.stat").splitlines())
            files = int(given_back.get("total_inactive_file", given_back.get("inactive_file", 0)))
            free = max(0, int(limit) - int(used) + files)
            least = Memory(int(limit), min(least.available, free), limited=True)
    return least


def control_groups(controller: str, proc: Path, root: Path) -> Iterator[Path]:
    """The folders of this process's control groups, from its own outwards: version 2, or a controller of version 1."""
    for row in read(proc / "self/cgroup").splitlines():
        _, controllers, path = row.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root
        own = base / path.lstrip("/")  # in a container it may name a folder of the host that is not here
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(base) and folder.is_dir())


def read(path: Path) -> str:
    """A file of the kernel's; empty where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
