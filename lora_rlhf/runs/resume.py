"""Whether a run may go on: one process at a time, with the settings, parents and data that it began with."""

import contextlib
import fcntl
import logging
import os
import platform
import time
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import yaml

from lora_rlhf.configs.common import StageConfig
from lora_rlhf.configs.marks import SAFE_TO_CHANGE_ON_RESUME, fields_with_mark, former_names, with_new_names
from lora_rlhf.configs.values import plain_defaults, read_yaml, to_yaml
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.plain_files import open_file

log = logging.getLogger("lora_rlhf")

LOOKS, LOOK_SECONDS = 4, 0.05  # tries to lock, and the time between two
WHERE = ("name", "from_run")  # in a base's record: where its files are. They are known by their hash
COMPUTED_IN = "computed_in"  # the dtype in a base's record (model/open.py); a run may go on in another one


class Lock:
    """Lets one process at a time write to a folder. The kernel releases it when the process ends, in whatever way."""

    def __init__(self, path: Path, way_out: str = "wait for it, stop it, or choose another --run") -> None:
        self._path = path
        self._way_out = way_out
        self._file: FileIO | None = None

    def acquire(self) -> None:
        """UserError when another process holds the lock; the message names that process."""
        file = open_file(self._path, "a+b")  # held open as long as the lock is
        try:
            self._lock(file)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).decode(errors="replace").strip() or "unknown"
            file.close()
            raise UserError(
                f"{self._path.parent}: another process is at work there ({holder}); {self._way_out}"
            ) from None
        except OSError as error:  # some network file systems have no locks
            log.warning("%s: cannot be locked (%s): do not start a second process on it", self._path, error.strerror)
        with contextlib.suppress(OSError):  # on a full disk the lock works without the process's name in it
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n".encode())
        self._file = file

    @property
    def descriptor(self) -> int:
        """For a child process: the lock is held until all who have the descriptor have closed it."""
        assert self._file is not None
        return self._file.fileno()

    @staticmethod
    def _lock(file: FileIO) -> None:
        """BlockingIOError where another process holds the lock for longer than `is_held` does, which only looks."""
        for number in range(LOOKS):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if number == LOOKS - 1:
                    raise
                time.sleep(LOOK_SECONDS)

    def is_held(self) -> bool | None:
        """Whether a process is at work under the lock; None where that cannot be told. Leaves the file as it is."""
        try:
            with open_file(self._path) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        except (OSError, UserError):
            return None
        return False

    def release(self) -> None:
        """The file stays: if it were removed, two other processes could each lock a file of their own."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def require_free(self) -> None:
        """UserError when another process holds the lock; leaves everything as it is."""
        if self._path.exists() and os.access(self._path, os.W_OK):
            self.acquire()
            self.release()


def require_same_settings(config: StageConfig, recorded: Path, allow_changes: bool) -> dict[str, dict[str, Any]]:
    """The settings that differ from `recorded`, the configuration file of the unfinished run: {name: before and now}.

    UserError with every difference, unless they are allowed; and where the file cannot be read.
    """
    # a setting that is younger than the run had its default's effect
    then = plain_defaults(type(config)) | with_new_names(former_names(type(config)), read_yaml(recorded), None)
    now: dict[str, Any] = yaml.safe_load(to_yaml(config))
    safe = fields_with_mark(type(config), SAFE_TO_CHANGE_ON_RESUME)
    changes = {
        key: {"before": then.get(key), "now": now.get(key)}
        for key in dict.fromkeys((*then, *now))
        if key not in safe and then.get(key) != now.get(key)
    }
    if changes and not allow_changes:
        raise UserError(
            f"{recorded.parent}: an unfinished run of other settings is there:\n{list_changes(changes)}\n"
            "give the settings that it began with to go on, --allow_changes to go on with the new ones, or "
            "--overwrite to begin again"
        )
    return changes


def require_same_origin(
    folder: Path, then: Mapping[str, Any], now: Mapping[str, Any], allow_changes: bool
) -> list[str]:
    """The names of the data that are other than when the unfinished run in `folder` began.

    `then` and `now` are manifests. UserError for another base or parent, and for other data unless it is allowed.
    """
    free = (*WHERE, COMPUTED_IN)
    bases = [{key: value for key, value in manifest["base"].items() if key not in free} for manifest in (then, now)]
    ids = [{role: parent["id"] for role, parent in manifest["parents"].items()} for manifest in (then, now)]
    for kind, differs in (("base", bases[0] != bases[1]), ("parents", ids[0] != ids[1])):  # folders may move
        if differs:
            changed = {key: {"before": then[kind].get(key), "now": now[kind].get(key)} for key in now[kind]}
            differing = {key: pair for key, pair in changed.items() if pair["before"] != pair["now"]}
            raise UserError(
                f"{folder}: the unfinished run there began with other {kind}:\n{list_changes(differing)}\n"
                "--overwrite begins again"
            )
    changed_data = [
        name for name, record in now["data"].items() if then["data"].get(name, {}).get("sha256") != record["sha256"]
    ]
    if changed_data and not allow_changes:
        files = ", ".join(f"{name} ({now['data'][name]['path']})" for name in changed_data)
        raise UserError(
            f"{folder}: the data has changed since the unfinished run there began: {files}; --allow_changes goes on "
            "with it as it is now, --overwrite begins again"
        )
    return changed_data


def list_changes(changes: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a change."""
    return "\n".join(f"  {key}: {pair['before']!r} then, {pair['now']!r} now" for key, pair in changes.items())
