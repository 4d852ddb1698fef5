"""A large JSONL file in parts of whole lines, so that several processes can read it; places stay those of the file."""

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
    """The bytes from `start` to `end` of a file, whole lines, with `before` lines before them."""

    path: Path
    start: int
    end: int
    before: int


def divide(path: Path, number: int) -> list[Part]:
    """The file in about `number` parts of equal size; none if it is not plain JSONL, which alone can be divided."""
    with open(path, "rb") as file:
        if file.read(len(GZIP)) == GZIP or container_of(path) != "jsonl":
            return []
        size = file.seek(0, io.SEEK_END)
        ends = []
        for place in range(1, number):
            file.seek(size * place // number)
            file.readline()
            ends.append(file.tell())
        edges = sorted({0, *ends, size})
        parts, before = [], 0
        for start, end in itertools.pairwise(edges):
            parts.append(Part(path, start, end, before))
            before += _newlines(file, start, end)
    return parts


def part_rows(part: Part) -> Iterator[tuple[str, Any]]:
    """Yields what `file_rows` does for these lines."""
    with open(part.path, "rb") as file:
        file.seek(part.start)
        yield from json_lines(part.path, _Lines(file, part.end - part.start), part.before)


class _Lines:
    """A binary file that ends after a number of bytes."""

    def __init__(self, file: LineStream, size: int) -> None:
        self._file, self._left = file, size

    def readline(self, size: int | None = -1, /) -> bytes:
        line = self._file.readline(size) if self._left > 0 else b""
        self._left -= len(line)
        return line


def _newlines(file: io.BufferedReader, start: int, end: int) -> int:
    file.seek(start)
    count, left = 0, end - start
    while left > 0 and (data := file.read(min(CHUNK, left))):
        count += data.count(b"\n")
        left -= len(data)
    return count
