"""The history of a pointer: each move is written before it is made, and marked as done after it."""

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lora_rlhf.runs.manifest import LIST, OBJECT, TEXT
from lora_rlhf.system.disk import write_text
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import FieldType, quote, read_object, require

FORMAT = 1
MOVING, DONE, STOPPED = "moving", "done", "stopped"
PROMOTE, ROLLBACK, FOUND = "promote", "rollback", "found"  # found: a target that was set by hand
STATE: FieldType = ("moving, done or stopped", lambda value: value in (MOVING, DONE, STOPPED))
ACTION: FieldType = ("promote, rollback or found", lambda value: value in (PROMOTE, ROLLBACK, FOUND))
ENTRY = {"action": ACTION, "to": TEXT, "state": STATE, "time": TEXT}


def read_pointer(pointer: Path) -> str | None:
    """The target of the pointer, as the link holds it; None without a link. Raises UserError if it is no link."""
    if pointer.is_symlink():
        return os.readlink(pointer)
    if os.path.lexists(pointer):
        raise UserError(f"{pointer}: is not a symbolic link, so it is no pointer; name another, or move it away")
    return None


@dataclass
class History:
    """The moves of a pointer, oldest first."""

    path: Path
    entries: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, pointer: Path) -> "History":
        """Reads the history of a pointer. An unfinished move is done if the pointer leads to its target, else stopped.

        A target without an entry was set by hand, and gets an entry. Writes nothing. Raises UserError if the file is no
        history.
        """
        path = pointer.with_name(f"{pointer.name}.history.json")
        history = cls(path, _read_entries(path) if os.path.lexists(path) else [])
        target = read_pointer(pointer)
        for entry in history.entries:
            if entry["state"] == MOVING:
                entry["state"] = DONE if entry["to"] == target else STOPPED
        if target is not None and history.targets_in_use[-1:] != [target]:
            history.add(FOUND, target, DONE)
        return history

    @property
    def targets_in_use(self) -> list[str]:
        """The targets in order: the last one is in use, a rollback goes to the one before it, and so on."""
        targets: list[str] = []
        for entry in self.entries:
            if entry["state"] != DONE:
                continue
            if entry["action"] == ROLLBACK:
                targets.pop()
            elif targets[-1:] != [entry["to"]]:
                targets.append(entry["to"])
        return targets

    def add(self, action: str, target: str, state: str, **fields: Any) -> None:
        """Adds an entry at the end; does not write it."""
        time = datetime.now(UTC).isoformat(timespec="seconds")
        self.entries.append({"action": action, "to": target, "state": state, "time": time, **fields})

    def write(self) -> None:
        """Writes the file, whole or not at all."""
        write_text(self.path, json.dumps({"format": FORMAT, "entries": self.entries}, indent=2) + "\n")


def _read_entries(path: Path) -> list[dict[str, Any]]:
    """The entries of a history file. Raises UserError if they cannot be a history."""
    way_out = "restore that file, or move it away to begin a new history"
    history = read_object(path, way_out)
    try:
        if history.get("format") != FORMAT:
            raise ValueError(f"format is {quote(history.get('format'))}, expected {FORMAT}")
        require(history, {"entries": LIST})
        num_targets = 0
        for number, entry in enumerate(history["entries"]):
            require({f"{number}": entry}, {f"{number}": OBJECT}, "entries.")
            require(entry, ENTRY, f"entries.{number}.")
            if entry["state"] == MOVING and number < len(history["entries"]) - 1:
                raise ValueError(f"'entries.{number}.state' is moving, which only the last can be")
            num_targets += 0 if entry["state"] == STOPPED else -1 if entry["action"] == ROLLBACK else 1
            if num_targets < 1 and entry["state"] != STOPPED:
                raise ValueError(f"'entries.{number}' goes back to what was never promoted")
    except ValueError as error:
        raise UserError(f"{path} cannot be used: {error}; {way_out}") from error
    entries: list[dict[str, Any]] = history["entries"]
    return entries
