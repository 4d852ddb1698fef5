"""A large JSONL file in parts of whole lines, so that several processes can read it; line numbers are the file's."""

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_rlhf.data.containers import container_of
from lora_rlhf.data.io import GZIP, LineStream
from lora_rlhf.data.json_rows import json_lines

CHUNK = 2**22  # bytes in which newlines are counted


@dataclass(frozen=True)
class Part:
    """The bytes from `start` to `end` of a file, whole lines, after the file's first `lines_before` lines."""

    path: Path
    start: int
    end: int
    lines_before: int


def divide(path: Path, number: int) -> list[Part]:
    """The file in about `number` parts of equal size; none if it is not plain JSONL, which alone can be divided."""
    with open(path, "rb") as file:
        if file.read(len(GZIP)) == GZIP or container_of(path) != "jsonl":
            return []
        size = file.seek(0, io.SEEK_END)
        ends = []
        for index in range(1, number):
            file.seek(size * index // number)
            file.readline()
            ends.append(file.tell())
        edges = sorted({0, *ends, size})
        parts, lines_before = [], 0
        for start, end in itertools.pairwise(edges):
            parts.append(Part(path, start, end, lines_before))
            lines_before += _newlines(file, start, end)
    return parts


def part_rows(part: Part) -> Iterator[tuple[str, Any]]:
    """Yields what `file_rows` does for these lines."""
    with open(part.path, "rb") as file:
        file.seek(part.start)
        yield from json_lines(part.path, _Lines(file, part.end - part.start), part.lines_before)


class _Lines:
    """A binary file that ends after a number of bytes."""

    def __init__(self, file: LineStream, size: int) -> None:
        self._file, self._remaining = file, size

    def readline(self, size: int | None = -1, /) -> bytes:
        line = self._file.readline(size) if self._remaining > 0 else b""
        self._remaining -= len(line)
        return line


def _newlines(file: io.BufferedReader, start: int, end: int) -> int:
    file.seek(start)
    count, remaining = 0, end - start
    while remaining > 0 and (data := file.read(min(CHUNK, remaining))):
        count += data.count(b"\n")
        remaining -= len(data)
    return count
