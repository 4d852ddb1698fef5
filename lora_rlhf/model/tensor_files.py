"""safetensors files, read and written a few rows at a time: a mapped file would count as memory in use."""

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
from lora_rlhf.system.tensor_header import read_header
from lora_rlhf.system.untrusted import quote

# Names of the format (https://github.com/huggingface/safetensors), for the dtypes that models are stored in.
DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    "BOOL": torch.bool,
}
NAME_BY_DTYPE = {dtype: name for name, dtype in DTYPES.items()}
ALIGNMENT = 8
MAX_WAITING = 2  # pieces that may wait to be written while the next one is computed


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, and the byte of the file at which it begins."""

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def num_bytes(self) -> int:
        """The size of the tensor in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, first: int, end: int) -> Tensor:
        """Reads the tensor[first:end] into memory; a tensor without dimensions completely."""
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
            for stored in _stored_tensors(path):
                if stored.name in index:
                    raise ValueError(f"{quote(stored.name)} is in {index[stored.name].path.name} too")
                index[stored.name] = stored
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a whole safetensors file ({error}); fetch that file again") from error
    return index


def _stored_tensors(path: Path) -> Iterator[Stored]:
    """Yields the tensors that a file's header lists. ValueError for a header that does not fit the file."""
    header, first = read_header(path)
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{quote(name)} is {quote(entry['dtype'])}, which is not known here")
        begin, end = entry["data_offsets"]
        stored = Stored(path, name, DTYPES[entry["dtype"]], tuple(entry["shape"]), first + begin)
        if end - begin != stored.num_bytes:
            raise ValueError(f"{quote(name)} would take bytes {begin:,} to {end:,}")
        yield stored


@dataclass(frozen=True)
class Entry:
    """A tensor that will be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """The size of the tensor in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(path: Path, entries: Sequence[Entry], pieces: Iterable[Tensor]) -> str:
    """Writes a safetensors file, waits until it is on disk, and returns its sha256.

    `pieces` are the tensors' values from the first to the last, each tensor in one or more pieces. While one piece is
    written, the next is computed. ValueError if their number of bytes is not that of the entries.
    """
    header = _make_header(entries)
    digest = hashlib.sha256()
    expected_bytes = sum(entry.num_bytes for entry in entries)
    with path.open("xb") as file, ThreadPoolExecutor(max_workers=1) as writer:
        futures: list[Future[int]] = []
        num_written = 0

        def write(data: memoryview | bytes) -> int:
            digest.update(data)
            return file.write(data)

        futures.append(writer.submit(write, header))
        for piece in pieces:
            data = _tensor_bytes(piece)
            num_written += data.nbytes
            futures.append(writer.submit(write, data))
            if len(futures) > MAX_WAITING:
                futures.pop(0).result()
        for future in futures:
            future.result()
        if num_written != expected_bytes:
            raise ValueError(f"{path.name}: {num_written} bytes of tensors, expected {expected_bytes}")
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _make_header(entries: Sequence[Entry]) -> bytes:
    """The header of a file with these tensors, with its length, padded to ALIGNMENT."""
    header: dict[str, Mapping[str, object]] = {"__metadata__": {"format": "pt"}}
    start = 0
    for entry in entries:
        end = start + entry.num_bytes
        header[entry.name] = {
            "dtype": NAME_BY_DTYPE[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _tensor_bytes(piece: Tensor) -> memoryview:
    """The tensor's bytes in memory."""
    return piece.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
