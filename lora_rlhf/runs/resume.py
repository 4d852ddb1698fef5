"""Whether a run may go on: one process at a time, of the same settings, parents and data as it began with."""

import contextlib
import fcntl
import logging
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from lora_rlhf.system.errors import UserError
from lora_rlhf.configs.values import plain_defaults, read_yaml, to_yaml
from lora_rlhf.configs.common import StageConfig
from lora_rlhf.configs.marks import SAFE_TO_CHANGE_ON_RESUME, fields_with, former_names, with_new_names

log = logging.getLogger("lora_rlhf")

COMPUTED_IN = "computed_in"  # of a base, by model/open.py: a run may go on in another dtype


class Lock:
    """A folder is written by one process at a time. The kernel drops the lock with the process, however it ends."""

    def __init__(self, path: Path, way_out: str = "wait for it, stop it, or choose another --run") -> None:
        self._path = path
        self._way_out = way_out
        self._file: IO[str] | None = None

    def take(self) -> None:
        """UserError when another process has it, naming that process."""
        file = open(self._path, "a+", encoding="utf-8")  # noqa: SIM115  (held open as long as the lock is)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise UserError(
                f"{self._path.parent}: another process is at work there ({holder}); {self._way_out}"
            ) from None
        except OSError as error:  # some network folders have no locks
            log.warning("%s: cannot be locked (%s): do not start a second process on it", self._path, error.strerror)
        with contextlib.suppress(OSError):  # on a full disk the lock holds without a name in it
            os.truncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}\n".encode())
        self._file = file

    def drop(self) -> None:
        """Lets others in. The file stays: removing it would let two of them in."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def require_free(self) -> None:
        """UserError when another process has it; takes nothing and makes nothing."""
        if self._path.exists() and os.access(self._path, os.W_OK):
            self.take()
            self.drop()


def require_same_settings(config: StageConfig, before: Path, allow_changes: bool) -> dict[str, dict[str, Any]]:
    """What has changed since `before`, the configuration file of the unfinished run, was written.

    UserError with every difference, unless they are allowed; and where the file cannot be read.
    """
    # a setting that is younger than the run had its default's effect
    then = plain_defaults(type(config)) | with_new_names(former_names(type(config)), read_yaml(before), None)
    now: dict[str, Any] = yaml.safe_load(to_yaml(config))
    safe = fields_with(type(config), SAFE_TO_CHANGE_ON_RESUME)
    changes = {
        key: {"before": then.get(key), "now": now.get(key)}
        for key in dict.fromkeys((*then, *now))
        if key not in safe and then.get(key) != now.get(key)
    }
    if changes and not allow_changes:
        raise UserError(
            f"{before.parent}: an unfinished run of other settings is there:\n{listed(changes)}\n"
            "give the settings that it began with to go on, --allow_changes to go on with the new ones, or "
            "--overwrite to begin again"
        )
    return changes


def require_same_origin(place: Path, then: Mapping[str, Any], now: Mapping[str, Any], allow_changes: bool) -> list[str]:
    """What of base, parents and data is not what the unfinished run at `place` began with.

    `then` and `now` are manifests. Another base or parent is always a UserError, other data unless it is allowed.
    """
    bases = [{key: value for key, value in one["base"].items() if key != COMPUTED_IN} for one in (then, now)]
    ids = [{role: parent["id"] for role, parent in manifest["parents"].items()} for manifest in (then, now)]
    for kind, differs in (("base", bases[0] != bases[1]), ("parents", ids[0] != ids[1])):  # folders may move
        if differs:
            changed = {key: {"before": then[kind].get(key), "now": now[kind].get(key)} for key in now[kind]}
            differing = {key: pair for key, pair in changed.items() if pair["before"] != pair["now"]}
            raise UserError(
                f"{place}: the unfinished run there began with other {kind}:\n{listed(differing)}\n"
                "--overwrite begins again"
            )
    other = [
        name for name, record in now["data"].items() if then["data"].get(name, {}).get("sha256") != record["sha256"]
    ]
    if other and not allow_changes:
        files = ", ".join(f"{name} ({now['data'][name]['path']})" for name in other)
        raise UserError(
            f"{place}: the data has changed since the unfinished run there began: {files}; --allow_changes goes on "
            "with it as it is now, --overwrite begins again"
        )
    return other


def listed(changes: Mapping[str, Mapping[str, Any]]) -> str:
    """Differences, one a line."""
    return "\n".join(f"  {key}: {pair['before']!r} then, {pair['now']!r} now" for key, pair in changes.items())
