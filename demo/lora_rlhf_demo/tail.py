"""JSONL files that grow while they are watched: only the new part is read, and every row is there once."""

import contextlib
import json
import threading
from pathlib import Path
from typing import Any

from lora_rlhf.system.errors import UserError
from lora_rlhf.system.plain_files import open_file, require_no_link

MOST_AT_ONCE = 8 * 2**20  # bytes read in one go; the rest comes with the next
SEAM = 256  # bytes before the end of the part that was read, by which a rewritten file is recognised


class Tail:
    """The rows of one file so far. `version` changes whenever they do.

    An incomplete last line is read once it is complete; lines that are not JSON objects are left out. A file that was
    shortened or rewritten, as a resumed stage does, is read again from its start.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.version = 0
        self._position = 0  # bytes that were read
        self._seam = b""
        self._lock = threading.Lock()

    def read(self) -> list[dict[str, Any]]:
        """All rows so far; none while there is no such file. OSError or UserError if it cannot be read."""
        with self._lock:
            try:
                require_no_link(self.path.parent)
                with open_file(self.path) as file:
                    self._read_new_rows(file)
            except FileNotFoundError:
                self._restart()
            return self.rows

    def _read_new_rows(self, file: Any) -> None:
        """Adds the complete rows after the position; from the start if the bytes before the position have changed."""
        file.seek(self._position - len(self._seam))
        if file.read(len(self._seam)) != self._seam:
            self._restart()
            file.seek(0)
        new_bytes = file.read(MOST_AT_ONCE)
        new_bytes = new_bytes[: new_bytes.rfind(b"\n") + 1]
        if not new_bytes:
            return
        rows = []
        for line in new_bytes.decode(errors="replace").split("\n"):
            if not line.startswith("{"):  # what is no object takes no time
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and row:
                rows.append(row)
        self.rows = [*self.rows, *rows]  # a new list: another page may be reading the old one
        self._position += len(new_bytes)
        self._seam = (self._seam + new_bytes)[-SEAM:]
        self.version += 1

    def _restart(self) -> None:
        """Forgets all rows, so that the file is read from its start."""
        if self._position:
            self.rows, self._position, self._seam = [], 0, b""
            self.version += 1


class Tails:
    """The tails of all watched files; two pages that watch one file read it once."""

    def __init__(self) -> None:
        self._tails: dict[Path, Tail] = {}
        self._lock = threading.Lock()

    def read_tail(self, path: Path) -> Tail:
        """The tail of a file, with its new rows."""
        with self._lock:
            tail = self._tails.setdefault(path, Tail(path))
        with contextlib.suppress(OSError, UserError):
            tail.read()
        return tail
