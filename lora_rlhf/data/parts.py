"""A large JSONL file in parts of whole lines, so that several processes can read it; line numbers are the file's."""

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_rlhf.data.containers import detect_container
from lora_rlhf.data.io import GZIP, LineStream
from lora_rlhf.data.json_rows import json_lines

CHUNK_BYTES = 2**22  # bytes in which newlines are counted


@dataclass(frozen=True)
class Part:
    """The bytes from `start` to `end` of a file, whole lines, after the file's first `lines_before` lines."""

    path: Path
    start: int
    end: int
    lines_before: int


def divide_file(path: Path, num_parts: int) -> list[Part]:
    """Divides a plain JSONL file into about `num_parts` parts of equal size; empty for any other file, also gzipped."""
    with open(path, "rb") as file:
        if file.read(len(GZIP)) == GZIP or detect_container(path) != "jsonl":
            return []
        num_bytes = file.seek(0, io.SEEK_END)
        part_ends = []
        for index in range(1, num_parts):
            file.seek(num_bytes * index // num_parts)
            file.readline()
            part_ends.append(file.tell())
        edges = sorted({0, *part_ends, num_bytes})
        parts, lines_before = [], 0
        for start, end in itertools.pairwise(edges):
            parts.append(Part(path, start, end, lines_before))
            lines_before += _count_newlines(file, start, end)
    return parts


def part_rows(part: Part) -> Iterator[tuple[str, Any]]:
    """Yields what `file_rows` yields for these lines."""
    with open(part.path, "rb") as file:
        file.seek(part.start)
        yield from json_lines(part.path, _LimitedFile(file, part.end - part.start), part.lines_before)


class _LimitedFile:
    """The next `size` bytes of a binary file."""

    def __init__(self, file: LineStream, size: int) -> None:
        self._file, self._remaining = file, size

    def readline(self, size: int | None = -1, /) -> bytes:
        line = self._file.readline(size) if self._remaining > 0 else b""
        self._remaining -= len(line)
        return line


def _count_newlines(file: io.BufferedReader, start: int, end: int) -> int:
    """The number of newlines between two positions of a file."""
    file.seek(start)
    num_newlines, remaining = 0, end - start
    while remaining > 0 and (chunk := file.read(min(CHUNK_BYTES, remaining))):
        num_newlines += chunk.count(b"\n")
        remaining -= len(chunk)
    return num_newlines
