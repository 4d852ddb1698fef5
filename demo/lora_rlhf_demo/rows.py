"""A JSONL file to which several people add rows. No row is lost or left half written, even when a process dies."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lora_rlhf.system.disk import json_line, new_file
from lora_rlhf.system.plain_files import open_file, read_rows

Row = dict[str, Any]
MOST_BYTES = 2**28


class RowFile:
    """Rows of JSON, added under a lock. A row is on disk when `add` returns.

    If a killed process left half a row at the end, the next `add` removes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: tuple[Any, list[Row]] = (None, [])  # (what the file was, its rows)

    def add(self, row: Row, unless: Callable[[Row], bool] | None = None) -> bool:
        """Adds one row. If it cannot be written, the file stays as it was, and this raises OSError.

        unless: the row is not added, and this returns False, if the file has a row like this.
        """
        line = json_line(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._hold_lock(), open_file(self.path, "a+b") as file:
            if unless is not None and any(map(unless, self.rows())):
                return False
            num_complete_bytes = self._num_complete_bytes()
            file.truncate(num_complete_bytes)
            try:
                while line:
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(num_complete_bytes)
                raise
        return True

    def rows(self) -> list[Row]:
        """All complete rows, which nobody may change; none if there is no such file."""
        try:
            status = self.path.lstat()  # a link to nothing is no missing file: reading it says what it is
            version = (status.st_size, status.st_mtime_ns, status.st_ino)
            if self._read[0] == version:
                return self._read[1]
            content = read_rows(self.path, MOST_BYTES)
        except FileNotFoundError:
            return []
        rows: list[Row] = []
        for line in content.split(b"\n")[:-1]:
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict):
                    rows.append(row)
        if len(content) == status.st_size:  # else somebody has added a row since
            self._read = version, rows
        return rows

    def remove_last(self, matches: Callable[[Row], bool]) -> Row | None:
        """Removes the last row that matches, and returns it; None if no row matches."""
        removed = self.remove(matches, most=1)
        return removed[0] if removed else None

    def remove(self, matches: Callable[[Row], bool], most: int | None = None) -> list[Row]:
        """Removes the rows that match, at most so many and the last ones first; returns them, the last one first."""
        if not self.path.exists():
            return []
        removed: list[Row] = []
        with self._hold_lock():
            lines = read_rows(self.path, MOST_BYTES)[: self._num_complete_bytes()].splitlines(keepends=True)
            for index in reversed(range(len(lines))):
                with contextlib.suppress(ValueError):
                    row = json.loads(lines[index])
                    if len(removed) != most and isinstance(row, dict) and matches(row):
                        removed.append(row)
                        del lines[index]
            if removed:
                with new_file(self.path) as file:
                    file.write(b"".join(lines))
        return removed

    def _num_complete_bytes(self) -> int:
        """Number of bytes up to the end of the last complete row."""
        if not self.path.exists():
            return 0
        return read_rows(self.path, MOST_BYTES).rfind(b"\n") + 1

    @contextlib.contextmanager
    def _hold_lock(self) -> Iterator[None]:
        with open_file(self.path.with_name(f".{self.path.name}.lock"), "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
