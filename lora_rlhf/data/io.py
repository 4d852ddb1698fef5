"""Files: opened for reading whether gzipped or not, and JSONL written atomically."""

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from lora_rlhf.data.refusals import Damaged
from lora_rlhf.system.disk import json_line, new_file

GZIP = b"\x1f\x8b"
BUFFER = 2**18
UNREADABLE = (OSError, EOFError, zlib.error)  # what reading a file that breaks off or is damaged raises


class LineStream(Protocol):
    """A binary file of which only lines are read."""

    def readline(self, size: int | None = -1, /) -> bytes: ...


class ByteStream(LineStream, Protocol):
    """A binary file as this room reads it."""

    def read(self, size: int = -1, /) -> bytes: ...
    def read1(self, size: int = -1, /) -> bytes: ...
    def close(self) -> None: ...


@contextmanager
def open_bytes(path: Path) -> Iterator[ByteStream]:
    """Opens a file for reading, unpacked if its first bytes are those of gzip, whatever its name. Raises OSError."""
    with io.BufferedReader(io.FileIO(path), BUFFER) as file:
        is_gzipped = file.read(len(GZIP)) == GZIP
        file.seek(0)
        yield gzip.GzipFile(fileobj=file, mode="rb") if is_gzipped else file


def damaged_row(error: BaseException) -> Damaged:
    """The Damaged row that stands for the rest of a file that cannot be read."""
    if isinstance(error, EOFError):
        return Damaged("the gzip data break off", "copy the file again")
    if isinstance(error, zlib.error | gzip.BadGzipFile):
        return Damaged("the gzip data are damaged", str(error))
    return Damaged("the file cannot be read further", str(error))


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes one JSON object a line (gzipped if the name ends in `.gz`) and returns their number.

    The file appears complete or not at all: temporary name, fsync, rename. ValueError for NaN and infinity (not JSON).
    """
    path, count = Path(path), 0
    with new_file(path) as raw:
        # mtime 0: the same rows give the same bytes, so a data hash in a manifest means something
        output = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if path.suffix == ".gz" else raw
        for row in rows:
            output.write(json_line(row))
            count += 1
        if output is not raw:
            output.close()
    return count
