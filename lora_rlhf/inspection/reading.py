"""Reads one file into its figures: in this process, or a large file in parts by several, with the same result."""

import ctypes
import json
import os
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from lora_rlhf.data.formats import RecordKind
from lora_rlhf.data.parts import Part, divide_file, part_rows
from lora_rlhf.data.refusals import BadRow, Damaged, RefusedRows
from lora_rlhf.data.sources import Source
from lora_rlhf.inspection.figures import FileFigures
from lora_rlhf.inspection.text import printable_text
from lora_rlhf.system.errors import UserError

LARGE_FILE_BYTES = 2**25  # bytes of a file that is worth starting processes for
MOST_PROCESSES = 4
PARTS_PER_PROCESS = 4  # several, so that the progress bar moves


class RefusalLog(RefusedRows):
    """Refusals of one file, each also written to `stream` as a JSON line, if there is a stream.

    `damage` holds the places where the file breaks off: these are not refusals of rows.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        super().__init__()
        self.stream = stream
        self.breaks: list[str] = []

    def add(self, origin: str, fault: BadRow) -> None:
        """Counts a refused row, or a broken part of the file, and writes it to the stream if there is one."""
        if isinstance(fault, Damaged):
            self.breaks.append(f"{origin}: {fault}")
        else:
            super().add(origin, fault)
        if self.stream is not None:
            row = {"place": origin, "reason": fault.reason, "detail": fault.detail}
            self.stream.write(json.dumps(row) + "\n")


@dataclass
class Reading:
    """The result of one pass over a file, or over a part of it; counts as of `Source`.

    num_read: rows read, and one more for each place where a file breaks off, which `Source` counts as a row.
    """

    figures: FileFigures
    refused: RefusalLog
    num_read: int
    used: int
    records: int
    formats: Counter[str]
    recognised: set[str]

    @property
    def rows(self) -> dict[str, int]:
        """Rows read, used and refused, and `breaks`: how often a file breaks off, which loses unknown rows."""
        breaks = len(self.refused.breaks)
        return {
            "read": self.num_read - breaks,
            "used": self.used,
            "refused": self.refused.count,
            "breaks": breaks,
        }

    def merge(self, next_reading: "Reading") -> None:
        """Adds the next part of the file."""
        self.figures.merge(next_reading.figures)
        self.refused.extend(next_reading.refused)
        self.refused.breaks += next_reading.refused.breaks
        self.num_read, self.used = self.num_read + next_reading.num_read, self.used + next_reading.used
        self.records += next_reading.records
        self.formats += next_reading.formats
        self.recognised |= next_reading.recognised


@contextmanager
def open_process_pool(names: Iterable[str]) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that read the large ones of these files; None if no file is large, or with one processor only.

    They are started at once: processes that are forked later would hold copies of all that was loaded since.
    """
    count = _count_processes()
    if count < 2 or not any(map(_is_large, names)):
        yield None
        return
    with ProcessPoolExecutor(count, get_context("fork"), initializer=_ignore_interrupts) as pool:
        pool.submit(int).result()
        yield pool
    _return_memory()


def _return_memory() -> None:
    """Returns the memory of the processes' messages to the system: as much as all figures, and glibc would keep it."""
    # a C library other than glibc has no malloc_trim
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def read_file(
    name: str,
    kind: RecordKind | None,
    format: str | None,
    figures: FileFigures,
    stream: IO[str] | None,
    pool: ProcessPoolExecutor | None,
    columns: str | None = None,
    has_flags: bool = True,
) -> Reading:
    """Reads every row once. Raises UserError if a file cannot be opened, or if its rows fit several formats.

    kind, format, columns, has_flags: as of `Source`. figures: without records; stream: where each refusal is written,
    or None; pool: of `open_process_pool`.
    """
    if pool is not None and stream is None and _is_large(name):
        parts = divide_file(Path(name), PARTS_PER_PROCESS * _count_processes())
        part_figures = figures.empty_part(len(parts) or 1)
        source_options = {"kind": kind, "format": format, "columns": columns, "has_flags": has_flags}
        read_part = partial(_read_part, name=name, figures=part_figures, source_options=source_options)
        if (reading := _read_parts(pool, parts, read_part)) is not None:
            return reading
    source = _LoggedSource(name, RefusalLog(stream), kind=kind, format=format, columns=columns, has_flags=has_flags)
    records = tqdm(source, desc=printable_text(name), unit=" rows", delay=1, leave=False, disable=None)
    return _count_records(source, records, figures)


def _is_large(name: str) -> bool:
    return Path(name).is_file() and Path(name).stat().st_size >= LARGE_FILE_BYTES


def _count_processes() -> int:
    if not hasattr(os, "fork"):
        return 1
    return min(MOST_PROCESSES, len(os.sched_getaffinity(0)))


def _read_parts(pool: ProcessPoolExecutor, parts: list[Part], read_part: "partial[Reading | None]") -> Reading | None:
    """Reads all parts and merges them in the file's order.

    None if only one pass over the whole file can decide how rows are read, or if a process died.
    """
    merged: Reading | None = None
    try:
        # closing cancels the parts that have not begun
        with closing(pool.map(read_part, parts)) as readings:  # type: ignore[type-var]  # it is a generator
            for reading in tqdm(readings, "reading", len(parts), unit=" parts", delay=1, leave=False, disable=None):
                if reading is None:
                    return None
                if merged is None:
                    merged = reading
                else:
                    merged.merge(reading)
    except BrokenProcessPool:
        return None
    return merged


def _read_part(part: Part, name: str, figures: FileFigures, source_options: dict[str, Any]) -> Reading | None:
    """Reads one part; None if rows of another part decide how these are read."""
    source = _LoggedSource(name, RefusalLog(), part, **source_options)
    figures.number = part.lines_before  # no two records of the file have one number
    try:
        reading = _count_records(source, source, figures)
    except UserError:
        return None
    return None if source.depends_on_order else reading


def _ignore_interrupts() -> None:
    # Ctrl-C reaches every process; one message is enough
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _count_records(source: "_LoggedSource", records: Any, figures: FileFigures) -> Reading:
    """Adds all records to the figures."""
    for record in records:
        figures.add(record)
    return Reading(figures, source.log, source.read, source.used, source.records, source.formats, source.recognised)


class _LoggedSource(Source[Any]):
    """A source that continues after a break, adds refusals to a `RefusalLog`, and can read one part alone."""

    def __init__(self, name: str, log: RefusalLog, part: Part | None = None, **source_options: Any) -> None:
        self.log, self.part = log, part
        super().__init__(name, tolerant=True, **source_options)

    def _reset(self) -> None:
        super()._reset()
        self.refused = self.log

    def _open_rows(self) -> Iterator[tuple[str, Any]]:
        return super()._open_rows() if self.part is None else part_rows(self.part)
