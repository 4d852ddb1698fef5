"""The history beside a pointer: every move written down before it is made, and marked as done after it."""

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
PROMOTE, ROLLBACK, FOUND = "promote", "rollback", "found"  # found: what a hand made the pointer lead to
STATE: FieldType = ("moving, done or stopped", lambda value: value in (MOVING, DONE, STOPPED))
ACTION: FieldType = ("promote, rollback or found", lambda value: value in (PROMOTE, ROLLBACK, FOUND))
ENTRY = {"action": ACTION, "to": TEXT, "state": STATE, "time": TEXT}


def target_of(pointer: Path) -> str | None:
    """What the pointer leads to, as the link says it; None where there is none. UserError for what is no link."""
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
        """The history as it is true now: a move that a kill cut short is done if the pointer leads there, else stopped.

        A target that stands in no entry was set by hand, and gets one. Writes nothing. UserError for a file that is no
        history.
        """
        path = pointer.with_name(f"{pointer.name}.history.json")
        history = cls(path, _read(path) if os.path.lexists(path) else [])
        target = target_of(pointer)
        for entry in history.entries:
            if entry["state"] == MOVING:
                entry["state"] = DONE if entry["to"] == target else STOPPED
        if target is not None and history.stack[-1:] != [target]:
            history.add(FOUND, target, DONE)
        return history

    @property
    def stack(self) -> list[str]:
        """Where the pointer leads, last, and what rollbacks would lead to, one after the other, before it."""
        targets: list[str] = []
        for entry in self.entries:
            if entry["state"] != DONE:
                continue
            if entry["action"] == ROLLBACK:
                targets.pop()
            elif targets[-1:] != [entry["to"]]:
                targets.append(entry["to"])
        return targets

    def add(self, action: str, to: str, state: str, **more: Any) -> None:
        """A new entry at the end; not written yet."""
        time = datetime.now(UTC).isoformat(timespec="seconds")
        self.entries.append({"action": action, "to": to, "state": state, "time": time, **more})

    def write(self) -> None:
        """Writes the file, whole or not at all."""
        write_text(self.path, json.dumps({"format": FORMAT, "entries": self.entries}, indent=2) + "\n")


def _read(path: Path) -> list[dict[str, Any]]:
    way_out = "restore that file, or move it away to begin a new history"
    history = read_object(path, way_out)
    try:
        if history.get("format") != FORMAT:
            raise ValueError(f"format is {quote(history.get('format'))}, expected {FORMAT}")
        require(history, {"entries": LIST})
        depth = 0
        for number, entry in enumerate(history["entries"]):
            require({f"{number}": entry}, {f"{number}": OBJECT}, "entries.")
            require(entry, ENTRY, f"entries.{number}.")
            if entry["state"] == MOVING and number < len(history["entries"]) - 1:
                raise ValueError(f"'entries.{number}.state' is moving, which only the last can be")
            depth += 0 if entry["state"] == STOPPED else -1 if entry["action"] == ROLLBACK else 1
            if depth < 1 and entry["state"] != STOPPED:
                raise ValueError(f"'entries.{number}' goes back to what was never promoted")
    except ValueError as error:
        raise UserError(f"{path} cannot be used: {error}; {way_out}") from error
    entries: list[dict[str, Any]] = history["entries"]
    return entries
