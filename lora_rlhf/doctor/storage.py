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

from lora_rlhf.doctor.findings import GIB, Finding, Status, to_gib

MOUNTS = Path("/proc/self/mounts")
IN_MEMORY = {"tmpfs", "ramfs"}


@dataclass(frozen=True)
class Destination:
    """A folder that files are written to; `other_disk_advice` says how to write to another disk.

    Less free space than `note_gib` is worth a note; with less than `least_gib` a run is likely to fail.
    """

    check: str
    path: str
    other_disk_advice: str
    note_gib: float
    least_gib: float = 0.0
    is_needed: bool = True


@dataclass(frozen=True)
class DiskSpace:
    """The disk of a path. `folder` is the path itself or, if it does not exist, the nearest folder above it."""

    folder: str
    free: int
    total: int
    filesystem: str
    is_writable: bool


def list_destinations(run: str, temporary: str, hub_cache: str) -> list[Destination]:
    """The folders that this project writes to."""
    return [
        Destination("disk: runs", run, "give --run a folder on another disk", 10, 3),
        Destination("disk: temporary", temporary, "set TMPDIR to a folder on another disk", 3, is_needed=False),
        Destination("disk: hub cache", hub_cache, "set HF_HOME to a folder on another disk", 10, is_needed=False),
    ]


def read_disk_space(path: str, mounts: Path = MOUNTS) -> DiskSpace:
    """Space and kind of the disk that a path is on or would be on. OSError if the disk cannot be read."""
    folder = os.path.abspath(os.path.expanduser(path))
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    disk_usage = shutil.disk_usage(folder)
    is_writable = os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)
    return DiskSpace(folder, disk_usage.free, disk_usage.total, filesystem_kind(folder, mounts), is_writable)


def filesystem_kind(folder: str, mounts: Path = MOUNTS) -> str:
    """The kind of a folder's file system, such as ext4, nfs4 or tmpfs; empty if the system does not say it."""
    path, mount_point, mount_kind = os.path.realpath(folder), "", ""
    with contextlib.suppress(OSError):
        for row in mounts.read_text().splitlines():
            point, point_kind = row.split()[1:3]
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point)  # a space is \040
            # of two mounts on the same point, the later one hides the earlier
            if (path + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(mount_point):
                mount_point, mount_kind = point, point_kind
    return mount_kind


def space_finding(destination: Destination, disk: DiskSpace) -> Finding:
    """Whether a folder can be written to, and its disk has space."""
    values = {
        "path": destination.path,
        "free_gib": to_gib(disk.free),
        "total_gib": to_gib(disk.total),
        "filesystem": disk.filesystem,
        "writable": disk.is_writable,
    }
    text = f"{to_gib(disk.free)} GiB free in {destination.path}" + (f" ({disk.filesystem})" if disk.filesystem else "")
    severity: Status = "problem" if destination.is_needed else "note"
    if not disk.is_writable:
        return Finding(
            destination.check, severity, f"{disk.folder} cannot be written to", destination.other_disk_advice, values
        )
    if disk.free < destination.least_gib * GIB:
        return Finding(destination.check, "problem", text, f"free some, or {destination.other_disk_advice}", values)
    advice = []
    if disk.free < destination.note_gib * GIB:
        advice.append(f"less than {destination.note_gib:g} GiB: free some, or {destination.other_disk_advice}")
    if disk.filesystem in IN_MEMORY:
        advice.append(f"what is written there takes memory: {destination.other_disk_advice} if that is short")
    return Finding(destination.check, "note" if advice else "ok", text, "; ".join(advice), values)


def lock_fault(folder: str) -> str | None:
    """Why a lock in that folder does not exclude a second process; None if it does. OSError if no file can be made."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".lock-") as file, _open_descriptor(file.name) as second:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.strerror or str(error)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        return "two processes can hold the same lock"


def lock_finding(folder: str, fault: str | None) -> Finding:
    """Whether two processes of the same run would notice each other."""
    values = {"path": folder, "fault": fault}
    if fault is None:
        return Finding("locks", "ok", "a run can be locked against a second process", values=values)
    advice = "do not start a second process on a run, or give --run a folder on a local disk"
    return Finding("locks", "note", f"files in {folder} cannot be locked ({fault})", advice, values)


@contextlib.contextmanager
def _open_descriptor(path: str) -> Iterator[int]:
    """Opens a file without a Python file object; the end of the block closes it."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
