"""A file of verdicts by the content of the question, so that no question is asked or paid for twice."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from lora_rlhf.data.labels import FLAGS, PROMPT_FLAGS
from lora_rlhf.system.disk import json_line
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.plain_files import open_file

log = logging.getLogger("lora_rlhf")

HEADER = json_line({"judgements": 1})
FLAG = "|".join((*FLAGS, *PROMPT_FLAGS))
VERDICT = rf"A|B|tie|[1-7]|[0-9]+(?:[>=][0-9]+)+|yes|no|none|(?:{FLAG})(?:,(?:{FLAG}))*"
ROW = re.compile(rf'\{{"key": "([0-9a-f]{{64}})", "verdict": ("(?:{VERDICT})"), "judge": "[^\n]*"\}}\n'.encode())
REPLY_ROW = re.compile(rb'\{"key": "([0-9a-f]{64})", "verdict": ("(?:[^"\\\n]|\\[^\n])*"), "judge": "[^\n]*"\}\n')
CACHE_FILE, REPLIES_FILE = "judgements.jsonl", "replies.jsonl"


def hash_question(judge: Mapping[str, Any], version: str, prompt: str, first: str, second: str) -> str:
    """The cache's key of a question: sha256 of judge, template version, prompt and both answers."""
    content = json.dumps([judge, version, prompt, first, second], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


class Cache:
    """Verdicts by key. Any number of processes may share the file: each row is written under a lock, in one piece.

    A killed process may leave a part of a row; the next process that writes removes it. The file contains no texts and
    no API keys.
    """

    def __init__(self, path: Path, keeps_replies: bool = False) -> None:
        """Reads or creates the file. Raises UserError for a file of another kind, and if it cannot be written.

        keeps_replies: whole replies stand in place of verdicts, so that the file does contain texts.
        """
        self.path = path
        self._row = REPLY_ROW if keeps_replies else ROW
        self._verdict_by_key: dict[str, str] = {}
        self._read_file(path)

    def get(self, key: str) -> str | None:
        """The verdict of a question; None if it is not in the file."""
        return self._verdict_by_key.get(key)

    def put(self, key: str, verdict: str, judge: str) -> None:
        """Writes a verdict to the file. `judge` is a name for people who read the file."""
        if key in self._verdict_by_key:
            return
        self._verdict_by_key[key] = verdict
        with _open_locked(self.path) as file:
            _append_line(file, json_line({"key": key, "verdict": verdict, "judge": judge}))

    def _read_file(self, path: Path) -> None:
        """Reads all complete rows; an empty or incomplete file gets the header."""
        try:
            with _open_locked(path) as file:
                file.seek(0)
                lines = file.read().splitlines(keepends=True) or [b""]
                if lines[0] != HEADER:
                    if not HEADER.startswith(lines[0]):  # a killed process may leave its beginning
                        raise UserError(f"--judge_cache {path}: holds something else; name another file")
                    file.truncate(0)
                    _append_line(file, HEADER)
        except OSError as error:
            raise UserError(f"--judge_cache {path}: cannot be written ({error.strerror}); name another file") from error
        for line in lines[1:]:
            if row := self._row.fullmatch(line):  # of two rows with one key, the first counts
                self._verdict_by_key.setdefault(row[1].decode(), json.loads(row[2]))


@contextlib.contextmanager
def _open_locked(path: Path) -> Iterator[IO[bytes]]:
    """Opens the file, or creates it, and holds its lock during the block."""
    with open_file(path, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # some network folders have no locks
            log.warning("%s: cannot be locked (%s): let no second process use it", path, error.strerror)
        yield file


def _append_line(file: IO[bytes], line: bytes) -> None:
    """Adds a line, after removing an incomplete last one."""
    end = file.seek(0, os.SEEK_END)
    if end:
        start = max(0, end - 4096)
        file.seek(start)
        tail = file.read(end - start)
        if not tail.endswith(b"\n"):
            file.truncate(start + tail.rfind(b"\n") + 1)
    while line:  # a nearly full disk writes only a part, and raises only at the next write
        line = line[file.write(line) :]
