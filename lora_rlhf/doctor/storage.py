"""Disks: free space for runs, temporary files and downloads, and whether files there can be locked."""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_rlhf.doctor.findings import GIB, Finding, Status, gib

MOUNTS = Path("/proc/self/mounts")
IN_MEMORY = {"tmpfs", "ramfs"}


@dataclass(frozen=True)
class Destination:
    """A folder that something is written to; `elsewhere` says how to write to another disk.

    Less free space than `note_gib` is worth a note; with less than `least_gib` a run is likely to fail.
    """

    check: str
    path: str
    elsewhere: str
    note_gib: float
    least_gib: float = 0.0
    needed: bool = True


@dataclass(frozen=True)
class DiskSpace:
    """The disk of a path. `folder` is the path itself or, while it does not exist, the nearest folder above it."""

    folder: str
    free: int
    total: int
    filesystem: str
    writable: bool


def destinations(run: str, temporary: str, hub_cache: str) -> list[Destination]:
    """The folders that this project writes to."""
    return [
        Destination("disk: runs", run, "give --run a folder on another disk", 10, 3),
        Destination("disk: temporary", temporary, "set TMPDIR to a folder on another disk", 3, needed=False),
        Destination("disk: hub cache", hub_cache, "set HF_HOME to a folder on another disk", 10, needed=False),
    ]


def space(path: str, mounts: Path = MOUNTS) -> DiskSpace:
    """Space and kind of the disk that a path is on or would be on. OSError where the disk cannot be read."""
    folder = os.path.abspath(os.path.expanduser(path))
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    usage = shutil.disk_usage(folder)
    writable = os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)
    return DiskSpace(folder, usage.free, usage.total, filesystem(folder, mounts), writable)


def filesystem(folder: str, mounts: Path = MOUNTS) -> str:
    """The kind of file system that a folder is on, such as ext4, nfs4 or tmpfs; empty where the system does not say."""
    path, innermost, kind = os.path.realpath(folder), "", ""
    with contextlib.suppress(OSError):
        for row in mounts.read_text().splitlines():
            point, point_kind = row.split()[1:3]
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point)  # a space is \040
            # of two mounts on the same point, the later one hides the earlier
            if (path + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(innermost):
                innermost, kind = point, point_kind
    return kind


def judge_space(destination: Destination, space: DiskSpace) -> Finding:
    """Whether a folder can be written to, and its disk has space."""
    values = {
        "path": destination.path,
        "free_gib": gib(space.free),
        "total_gib": gib(space.total),
        "filesystem": space.filesystem,
        "writable": space.writable,
    }
    text = f"{gib(space.free)} GiB free in {destination.path}" + (f" ({space.filesystem})" if space.filesystem else "")
    severity: Status = "problem" if destination.needed else "note"
    if not space.writable:
        return Finding(
            destination.check, severity, f"{space.folder} cannot be written to", destination.elsewhere, values
        )
    if space.free < destination.least_gib * GIB:
        return Finding(destination.check, "problem", text, f"free some, or {destination.elsewhere}", values)
    advice = []
    if space.free < destination.note_gib * GIB:
        advice.append(f"less than {destination.note_gib:g} GiB: free some, or {destination.elsewhere}")
    if space.filesystem in IN_MEMORY:
        advice.append(f"what is written there takes memory: {destination.elsewhere} if that is short")
    return Finding(destination.check, "note" if advice else "ok", text, "; ".join(advice), values)


def lock_fault(folder: str) -> str | None:
    """Why a lock in that folder does not keep a second process out; None if it does. OSError if no file can be made."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".lock-") as file, _open(file.name) as second:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.strerror or str(error)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        return "two processes can hold the same lock"


def judge_locks(folder: str, fault: str | None) -> Finding:
    """Whether two processes of the same run would notice each other."""
    values = {"path": folder, "fault": fault}
    if fault is None:
        return Finding("locks", "ok", "a run can be locked against a second process", values=values)
    advice = "do not start a second process on a run, or give --run a folder on a local disk"
    return Finding("locks", "note", f"files in {folder} cannot be locked ({fault})", advice, values)


@contextlib.contextmanager
def _open(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
