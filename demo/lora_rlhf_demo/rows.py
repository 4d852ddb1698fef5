"""A JSONL file that several people add rows to: never half a row, never one lost, even when a process dies."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lora_rlhf.system.disk import json_line, new_file

Row = dict[str, Any]


class RowFile:
    """Rows of JSON that are added under a lock, and on disk when `add` returns.

    A row that a killed process left half written at the end is taken off before the next one is added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, row: Row) -> None:
        """Adds one row. OSError where it cannot be written; then the file is as it was."""
        line = json_line(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(), open(self.path, "ab", buffering=0) as file:
            end = self._whole()
            os.truncate(self.path, end)
            try:
                while line:
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self.path, end)
                raise

    def rows(self) -> list[Row]:
        """Every whole row; none where there is no such file."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return []
        found = []
        for line in content.split(b"\n")[:-1]:
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict):
                    found.append(row)
        return found

    def take_back(self, mine: Callable[[Row], bool]) -> Row | None:
        """Removes the last row that fits, and returns it; None where there is none."""
        if not self.path.exists():
            return None
        with self._locked():
            lines = self.path.read_bytes()[: self._whole()].splitlines(keepends=True)
            for place in reversed(range(len(lines))):
                with contextlib.suppress(ValueError):
                    row = json.loads(lines[place])
                    if isinstance(row, dict) and mine(row):
                        with new_file(self.path) as file:
                            file.write(b"".join(lines[:place] + lines[place + 1 :]))
                        return row
        return None

    def _whole(self) -> int:
        """How many bytes of the file are whole rows."""
        if not self.path.exists():
            return 0
        return self.path.read_bytes().rfind(b"\n") + 1

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.path.with_name(f".{self.path.name}.lock"), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
