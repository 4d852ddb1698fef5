"""safetensors files, read and written a few rows at a time: the usual mapping would count as memory in use."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import quote

# Names of the format (https://github.com/huggingface/safetensors), for the dtypes that models are stored in.
DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MOST_HEADER_BYTES = 100 * 2**20  # the format's own limit
ALIGNMENT = 8
MOST_WAITING = 2  # pieces that may wait to be written while the next one is computed


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, and the byte of the file that it begins at."""

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, first: int, end: int) -> Tensor:
        """The tensor[first:end], copied into memory; all of a tensor without dimensions."""
        if not self.shape:
            first, end = 0, 1
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        buffer = bytearray((end - first) * row_bytes)
        with self.path.open("rb") as file:
            file.seek(self.start + first * row_bytes)
            if file.readinto(buffer) != len(buffer):
                raise UserError(f"{self.path}: ends in the middle of {quote(self.name)}; fetch that file again")
        shape = (end - first, *self.shape[1:]) if self.shape else ()
        if not buffer:
            return torch.empty(shape, dtype=self.dtype)
        return torch.frombuffer(buffer, dtype=self.dtype).view(shape)


def read_index(paths: Iterable[Path]) -> dict[str, Stored]:
    """Every tensor of the files by its name. UserError for a file that is cut off or not in safetensors."""
    index: dict[str, Stored] = {}
    for path in paths:
        try:
            for stored in _read_header(path):
                if stored.name in index:
                    raise ValueError(f"{quote(stored.name)} is in {index[stored.name].path.name} too")
                index[stored.name] = stored
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a whole safetensors file ({error}); fetch that file again") from error
    return index


def _read_header(path: Path) -> Iterator[Stored]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MOST_HEADER_BYTES):
            raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
        header = json.loads(file.read(length))
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{quote(name)} is {entry['dtype']}, which is not known here")
        begin, end = entry["data_offsets"]
        stored = Stored(path, name, DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + begin)
        if not 0 <= begin <= end <= size - 8 - length or end - begin != stored.num_bytes:
            raise ValueError(f"{quote(name)} would take bytes {begin:,} to {end:,}")
        yield stored


@dataclass(frozen=True)
class Entry:
    """A tensor to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(path: Path, entries: Sequence[Entry], pieces: Iterable[Tensor]) -> str:
    """Write a safetensors file, wait until it is on disk, and return its sha256.

    `pieces` are the tensors' values from the first to the last, each tensor in one or more pieces. While one piece is
    written, the next is computed. ValueError where they have not as many bytes as the entries say.
    """
    header = _header(entries)
    digest = hashlib.sha256()
    expected = sum(entry.num_bytes for entry in entries)
    with path.open("wb") as file, ThreadPoolExecutor(max_workers=1) as writer:
        waiting: list[Future[int]] = []
        written = 0

        def write(data: memoryview | bytes) -> int:
            digest.update(data)
            return file.write(data)

        waiting.append(writer.submit(write, header))
        for piece in pieces:
            data = _bytes(piece)
            written += data.nbytes
            waiting.append(writer.submit(write, data))
            if len(waiting) > MOST_WAITING:
                waiting.pop(0).result()
        for future in waiting:
            future.result()
        if written != expected:
            raise ValueError(f"{path.name}: {written} bytes of tensors, expected {expected}")
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _header(entries: Sequence[Entry]) -> bytes:
    header: dict[str, Mapping[str, object]] = {"__metadata__": {"format": "pt"}}
    start = 0
    for entry in entries:
        end = start + entry.num_bytes
        header[entry.name] = {"dtype": NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes(piece: Tensor) -> memoryview:
    return piece.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
