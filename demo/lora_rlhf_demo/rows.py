"""A JSONL file to which several people add rows. No row is lost or left half written, even when a process dies."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lora_rlhf.system.disk import json_line, new_file
from lora_rlhf.system.plain_files import open_file, read_file

Row = dict[str, Any]


class RowFile:
    """Rows of JSON, added under a lock. A row is on disk when `add` returns.

    If a killed process left half a row at the end, the next `add` removes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, row: Row) -> None:
        """Adds one row. If it cannot be written, the file stays as it was, and this raises OSError."""
        line = json_line(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._hold_lock(), open_file(self.path, "a+b") as file:
            num_complete_bytes = self._num_complete_bytes()
            file.truncate(num_complete_bytes)
            try:
                while line:
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(num_complete_bytes)
                raise

    def rows(self) -> list[Row]:
        """All complete rows; none if there is no such file."""
        try:
            content = read_file(self.path)
        except FileNotFoundError:
            return []
        rows = []
        for line in content.split(b"\n")[:-1]:
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict):
                    rows.append(row)
        return rows

    def remove_last(self, matches: Callable[[Row], bool]) -> Row | None:
        """Removes the last row that matches, and returns it; None if no row matches."""
        if not self.path.exists():
            return None
        with self._hold_lock():
            lines = read_file(self.path)[: self._num_complete_bytes()].splitlines(keepends=True)
            for index in reversed(range(len(lines))):
                with contextlib.suppress(ValueError):
                    row = json.loads(lines[index])
                    if isinstance(row, dict) and matches(row):
                        with new_file(self.path) as file:
                            file.write(b"".join(lines[:index] + lines[index + 1 :]))
                        return row
        return None

    def _num_complete_bytes(self) -> int:
        """Number of bytes up to the end of the last complete row."""
        if not self.path.exists():
            return 0
        return read_file(self.path).rfind(b"\n") + 1

    @contextlib.contextmanager
    def _hold_lock(self) -> Iterator[None]:
        with open_file(self.path.with_name(f".{self.path.name}.lock"), "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
