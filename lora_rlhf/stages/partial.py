"""The file beside an output that is not finished: what a command made so far, so that a later attempt goes on there."""

import json
from collections.abc import Iterable, Mapping, Sized
from pathlib import Path
from typing import Any

from lora_rlhf.data.io import write_jsonl
from lora_rlhf.stages.trainer import GO_ON
from lora_rlhf.system.disk import append_row
from lora_rlhf.system.plain_files import open_file, read_file


class PartialOutput:
    """A header line with all that the output depends on, then a line for each piece of work that is done, in order."""

    def __init__(self, to: str, made_from: Mapping[str, Any]) -> None:
        self._to = Path(to)
        self.path = self._to.with_name(f".{self._to.name}.partial")
        self._header = dict(made_from)

    def begin(self) -> list[dict[str, Any]]:
        """The lines of an unfinished attempt with the same header. Else no lines, and the file is new."""
        lines = read_file(self.path).splitlines(keepends=True) if self.path.exists() else []
        whole = [json.loads(line) for line in lines if line.endswith(b"\n")]
        if not whole or whole[0] != json.loads(json.dumps(self._header)):
            self.path.unlink(missing_ok=True)
            append_row(self.path, self._header)
            return []
        with open_file(self.path, "r+b") as file:
            file.truncate(sum(len(line) for line in lines if line.endswith(b"\n")))
        return whole[1:]

    def add(self, line: Mapping[str, Any]) -> None:
        append_row(self.path, line)

    def finish(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes the output, and removes this file."""
        write_jsonl(self._to, rows)
        self.path.unlink()


def progress(rows: Sized, prompts: Sized) -> str:
    """What a command says that stopped after the rows of so many of its prompts."""
    return f"Stopped after {len(rows)} of {len(prompts)} prompts; they are kept. {GO_ON}"
