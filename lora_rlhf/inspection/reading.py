"""One file, read into its figures: in this process, or a large one in parts by several, with the same result."""

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
from lora_rlhf.data.parts import Part, divide, part_rows
from lora_rlhf.data.refusals import BadRow, Damaged, RefusedRows
from lora_rlhf.data.sources import Source
from lora_rlhf.inspection.figures import FileFigures
from lora_rlhf.inspection.text import printable
from lora_rlhf.system.errors import UserError

LARGE = 2**25  # bytes of a file that is worth starting processes for
MOST_PROCESSES = 4
PARTS = 4  # of each process, so that there is progress to show


class Log(RefusedRows):
    """Refusals of one file; each is also written to a stream, as JSON lines, where there is one.

    Where the file breaks off is no refusal of a row: that is kept apart, in `damage`.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        super().__init__()
        self.stream = stream
        self.damage: list[str] = []

    def add(self, origin: str, fault: BadRow) -> None:
        if isinstance(fault, Damaged):
            self.damage.append(f"{origin}: {fault}")
        else:
            super().add(origin, fault)
        if self.stream is not None:
            row = {"place": origin, "reason": fault.reason, "detail": fault.detail}
            self.stream.write(json.dumps(row) + "\n")


@dataclass
class Reading:
    """What one pass over a file, or over a part of it, found; rows and formats as `Source` counts them."""

    figures: FileFigures
    refused: Log
    read: int
    used: int
    records: int
    formats: Counter[str]
    recognised: set[str]

    @property
    def rows(self) -> dict[str, int]:
        """Rows read, used and refused, and `breaks`: how often a file broke off, with an unknown number of rows."""
        breaks = len(self.refused.damage)
        return {
            "read": self.read - breaks,  # the place of a break was counted as a row
            "used": self.used,
            "refused": self.refused.count,
            "breaks": breaks,
        }

    def merge(self, other: "Reading") -> None:
        """Adds what the next part holds."""
        self.figures.merge(other.figures)
        self.refused.extend(other.refused)
        self.refused.damage += other.refused.damage
        self.read, self.used = self.read + other.read, self.used + other.used
        self.records += other.records
        self.formats += other.formats
        self.recognised |= other.recognised


@contextmanager
def processes_for(names: Iterable[str]) -> Iterator[ProcessPoolExecutor | None]:
    """Processes to read the large ones of these files with; None where there is none, or one processor only.

    They are started at once: one that is forked later would hold copies of all that was loaded since.
    """
    count = _processes()
    if count < 2 or not any(map(_is_large, names)):
        yield None
        return
    with ProcessPoolExecutor(count, get_context("fork"), initializer=_ignore_interrupts) as pool:
        pool.submit(int).result()
        yield pool
    _give_back_memory()


def _give_back_memory() -> None:
    """Returns what the processes' messages took to the system: the allocator would keep it, as much as all figures."""
    # another C library than glibc has no such function, and other habits
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
    """Reads every row once. UserError where a file cannot be opened, or its rows fit several formats.

    kind, format, columns, has_flags: as of `Source`. figures: empty ones; stream: where each refusal is written, or
    None; pool: of `processes_for`.
    """
    if pool is not None and stream is None and _is_large(name):
        parts = divide(Path(name), PARTS * _processes())
        share = figures.share(len(parts) or 1)
        wanted = {"kind": kind, "format": format, "columns": columns, "has_flags": has_flags}
        examine = partial(_read_part, name=name, figures=share, wanted=wanted)
        if (reading := _read_parts(pool, parts, examine)) is not None:
            return reading
    source = _Logged(name, Log(stream), kind=kind, format=format, columns=columns, has_flags=has_flags)
    watched = tqdm(source, desc=printable(name), unit=" rows", delay=1, leave=False, disable=None)
    return _counted(source, watched, figures)


def _is_large(name: str) -> bool:
    return Path(name).is_file() and Path(name).stat().st_size >= LARGE


def _processes() -> int:
    if not hasattr(os, "fork"):
        return 1
    return min(MOST_PROCESSES, len(os.sched_getaffinity(0)))


def _read_parts(pool: ProcessPoolExecutor, parts: list[Part], examine: "partial[Reading | None]") -> Reading | None:
    """All parts together, in the file's order; None where only one pass over the whole can tell, or a process died."""
    whole: Reading | None = None
    try:
        # closing cancels the parts that have not begun
        with closing(pool.map(examine, parts)) as readings:  # type: ignore[type-var]  # it is a generator
            for reading in tqdm(readings, "reading", len(parts), unit=" parts", delay=1, leave=False, disable=None):
                if reading is None:
                    return None
                if whole is None:
                    whole = reading
                else:
                    whole.merge(reading)
    except BrokenProcessPool:
        return None
    return whole


def _read_part(part: Part, name: str, figures: FileFigures, wanted: dict[str, Any]) -> Reading | None:
    """None where another part's rows decide how these are read."""
    source = _Logged(name, Log(), part, **wanted)
    figures.number = part.lines_before  # every record of the file has one of its own
    try:
        reading = _counted(source, source, figures)
    except UserError:
        return None
    return None if source.depends_on_order else reading


def _ignore_interrupts() -> None:
    # Ctrl-C reaches every process; one message is enough
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _counted(source: "_Logged", records: Any, figures: FileFigures) -> Reading:
    for record in records:
        figures.add(record)
    return Reading(figures, source.log, source.read, source.used, source.records, source.formats, source.recognised)


class _Logged(Source[Any]):
    """A source that goes on where a file breaks off, refuses into a log of ours, and may read one part alone."""

    def __init__(self, name: str, log: Log, part: Part | None = None, **wanted: Any) -> None:
        self.log, self.part = log, part
        super().__init__(name, tolerant=True, **wanted)

    def _reset(self) -> None:
        super()._reset()
        self.refused = self.log

    def _rows(self) -> Iterator[tuple[str, Any]]:
        return super()._rows() if self.part is None else part_rows(self.part)
