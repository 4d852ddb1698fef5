"""Disks: room for runs, temporary files and downloads, and whether files there can be locked."""

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
class Place:
    """A folder that something is written to, and what there is when it is short of room.

    With less than `note_gib` it is worth a note, with less than `least_gib` a run is likely to fail.
    """

    check: str
    path: str
    elsewhere: str
    note_gib: float
    least_gib: float = 0.0
    needed: bool = True


@dataclass(frozen=True)
class Space:
    """The disk below a place. `folder` is the place itself or, while that is not there, the nearest folder above it."""

    folder: str
    free: int
    total: int
    filesystem: str
    writable: bool


def places(run: str, temporary: str, hub_cache: str) -> list[Place]:
    """What this project writes to."""
    return [
        Place("disk: runs", run, "give --run a folder on another disk", 10, 3),
        Place("disk: temporary", temporary, "set TMPDIR to a folder on another disk", 3, needed=False),
        Place("disk: hub cache", hub_cache, "set HF_HOME to a folder on another disk", 10, needed=False),
    ]


def space(path: str, mounts: Path = MOUNTS) -> Space:
    """Room and kind of the disk that a path is on or would be on. OSError where even that cannot be read."""
    folder = os.path.abspath(os.path.expanduser(path))
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    usage = shutil.disk_usage(folder)
    writable = os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)
    return Space(folder, usage.free, usage.total, filesystem(folder, mounts), writable)


def filesystem(folder: str, mounts: Path = MOUNTS) -> str:
    """The kind of file system that a folder is on, such as ext4, nfs4 or tmpfs; empty where the system does not say."""
    inside, best, kind = os.path.realpath(folder), "", ""
    with contextlib.suppress(OSError):
        for row in mounts.read_text().splitlines():
            point, this = row.split()[1:3]
            point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), point)  # a space is \040
            # of two on the same point, the later one is what is seen
            if (inside + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best):
                best, kind = point, this
    return kind


def judge_space(place: Place, found: Space) -> Finding:
    """Whether a place has room and can be written to."""
    values = {
        "path": place.path,
        "free_gib": gib(found.free),
        "total_gib": gib(found.total),
        "filesystem": found.filesystem,
        "writable": found.writable,
    }
    text = f"{gib(found.free)} GiB free in {place.path}" + (f" ({found.filesystem})" if found.filesystem else "")
    serious: Status = "problem" if place.needed else "note"
    if not found.writable:
        return Finding(place.check, serious, f"{found.folder} cannot be written to", place.elsewhere, values)
    if found.free < place.least_gib * GIB:
        return Finding(place.check, "problem", text, f"free some, or {place.elsewhere}", values)
    advice = []
    if found.free < place.note_gib * GIB:
        advice.append(f"less than {place.note_gib:g} GiB: free some, or {place.elsewhere}")
    if found.filesystem in IN_MEMORY:
        advice.append(f"what is written there takes memory: {place.elsewhere} if that is short")
    return Finding(place.check, "note" if advice else "ok", text, "; ".join(advice), values)


def lock_fault(folder: str) -> str | None:
    """Why a lock in that folder does not keep a second process out; None if it does. OSError if no file can be made."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".lock-") as file, _opened(file.name) as second:
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
    """Whether two processes at the same run would notice each other."""
    values = {"path": folder, "fault": fault}
    if fault is None:
        return Finding("locks", "ok", "a run can be locked against a second process", values=values)
    advice = "do not start a second process on a run, or give --run a folder on a local disk"
    return Finding("locks", "note", f"files in {folder} cannot be locked ({fault})", advice, values)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
