"""Verdicts kept by content in an append-only file, so that no question is asked or paid for twice."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from lora_rlhf.judges.question import Side
from lora_rlhf.system.disk import json_line
from lora_rlhf.system.errors import UserError

log = logging.getLogger("lora_rlhf")

HEADER = json_line({"judgements": 1})
ROW = re.compile(rb'\{"key": "([0-9a-f]{64})", "verdict": "(A|B|tie)", "judge": "[^\n]*"\}\n')
FILE = "judgements.jsonl"


def key_of(judge: Mapping[str, Any], version: str, prompt: str, first: str, second: str) -> str:
    """sha256 of judge, template and content: the same question to the same judge has the same key."""
    content = json.dumps([judge, version, prompt, first, second], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


class Cache:
    """Verdicts by key. Any number of processes may share the file: each row is written under a lock, in one piece.

    A process that is killed may leave a part of a row; the next one that writes drops it. The file holds neither texts
    nor API keys.
    """

    def __init__(self, path: Path) -> None:
        """Reads the file, or makes it. UserError for a file that holds something else, or cannot be written."""
        self.path = path
        self._known: dict[str, Side] = {}
        self._read(path)

    def get(self, key: str) -> Side | None:
        """The verdict, if there is one."""
        return self._known.get(key)

    def put(self, key: str, verdict: Side, judge: str) -> None:
        """Writes a verdict, which a kill cannot lose from here on. `judge` is for people who read the file."""
        if key in self._known:
            return
        self._known[key] = verdict
        with _locked(self.path) as file:
            _append(file, json_line({"key": key, "verdict": verdict, "judge": judge}))

    def _read(self, path: Path) -> None:
        try:
            with _locked(path) as file:
                file.seek(0)
                lines = file.read().splitlines(keepends=True) or [b""]
                if lines[0] != HEADER:
                    if not HEADER.startswith(lines[0]):  # a kill may leave its beginning
                        raise UserError(f"--judge_cache {path}: holds something else; name another file")
                    file.truncate(0)
                    _append(file, HEADER)
        except OSError as error:
            raise UserError(f"--judge_cache {path}: cannot be written ({error.strerror}); name another file") from error
        for line in lines[1:]:
            if row := ROW.fullmatch(line):  # the first row of a key counts, as it did for the process that asked first
                self._known.setdefault(row[1].decode(), cast(Side, row[2].decode()))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """The file, made if it does not exist, while no other process writes to it."""
    with open(path, "a+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # some network folders have no locks
            log.warning("%s: cannot be locked (%s): let no second process use it", path, error.strerror)
        yield file


def _append(file: IO[bytes], line: bytes) -> None:
    """Adds a line, after dropping an incomplete last one."""
    end = file.seek(0, os.SEEK_END)
    if end:
        start = max(0, end - 4096)
        file.seek(start)
        tail = file.read(end - start)
        if not tail.endswith(b"\n"):
            file.truncate(start + tail.rfind(b"\n") + 1)
    while line:  # a disk that gets full takes a part, and fails only at the next write
        line = line[file.write(line) :]
