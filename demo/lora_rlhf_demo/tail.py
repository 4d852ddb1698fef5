"""JSONL files that grow while they are watched: of each, only what is new is read, and every row is there once."""

import contextlib
import json
import threading
from pathlib import Path
from typing import Any

MOST_AT_ONCE = 64 * 2**20  # bytes read in one go; the rest comes with the next
SEAM = 256  # bytes before the place that was read to, by which a file that was rewritten is told


class Tail:
    """The rows of one file so far. `version` changes whenever they do.

    A last line that is not whole yet waits until it is; lines that are no JSON objects are passed over. A file that was
    cut back or rewritten (a stage that resumes does so) is read again from its start.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.version = 0
        self._read_to = 0
        self._seam = b""
        self._lock = threading.Lock()

    def read(self) -> list[dict[str, Any]]:
        """All rows so far; none while there is no such file. OSError where it cannot be read."""
        with self._lock:
            try:
                with open(self.path, "rb") as file:
                    self._go_on(file)
            except FileNotFoundError:
                self._restart()
            return self.rows

    def _go_on(self, file: Any) -> None:
        file.seek(self._read_to - len(self._seam))
        if file.read(len(self._seam)) != self._seam:
            self._restart()
            file.seek(0)
        new = file.read(MOST_AT_ONCE)
        new = new[: new.rfind(b"\n") + 1]
        if not new:
            return
        found = []
        for line in new.splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict):
                    found.append(row)
        self.rows = [*self.rows, *found]  # a new list: another page may be reading the old one
        self._read_to += len(new)
        self._seam = (self._seam + new)[-SEAM:]
        self.version += 1

    def _restart(self) -> None:
        if self._read_to:
            self.rows, self._read_to, self._seam = [], 0, b""
            self.version += 1


class Tails:
    """The tails of all files that anybody watches: two pages that watch one file read it once."""

    def __init__(self) -> None:
        self._tails: dict[Path, Tail] = {}
        self._lock = threading.Lock()

    def of(self, path: Path) -> Tail:
        """The tail of a file, read up to now."""
        with self._lock:
            tail = self._tails.setdefault(path, Tail(path))
        with contextlib.suppress(OSError):
            tail.read()
        return tail
