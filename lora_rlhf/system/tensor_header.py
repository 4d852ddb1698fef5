"""The header of a safetensors file that anybody may have written: compared with the file before more of it is read."""

import os
from pathlib import Path
from typing import Any

from lora_rlhf.system.plain_files import open_file
from lora_rlhf.system.untrusted import object_of, quote

MOST_HEADER_BYTES = 100 * 2**20  # the format's own limit
MOST_VALUES = 2_000_000  # a tensor has about eight
ADAPTER_BYTES, ADAPTER_HEADER_BYTES = 8 * 2**30, 16 * 2**20  # the most of an adapter: 130 bytes of header per tensor


def read_header(path: Path, most_bytes: int = MOST_HEADER_BYTES) -> tuple[dict[str, dict[str, Any]], int]:
    """({tensor: its dtype, shape and data_offsets}, the byte of the file from which the offsets count).

    The tensors follow each other without gaps to the end of the file, as the format demands
    (https://github.com/huggingface/safetensors). Links are followed. UserError as `open_file`, OSError, and ValueError
    for a file that is not so, or has a header of more than `most_bytes`.
    """
    with open_file(path, follow_links=True) as file:
        file_bytes = os.fstat(file.fileno()).st_size
        header_bytes = int.from_bytes(file.read(8), "little")
        if file_bytes < 8 or header_bytes > file_bytes - 8:
            raise ValueError(
                f"a header of {header_bytes:,} bytes in a file of {file_bytes:,}: cut off, or not safetensors"
            )
        if header_bytes > most_bytes:
            raise ValueError(f"its header has {header_bytes:,} bytes; the most is {most_bytes:,}")
        try:
            header = object_of(file.read(header_bytes), MOST_VALUES)
        except ValueError as error:
            raise ValueError(f"its header is not that of safetensors: {error}") from error
    header.pop("__metadata__", None)
    num_bytes, start = 0, 8 + header_bytes
    for begin, end, name in sorted((*_offsets(name, entry), name) for name, entry in header.items()):
        if begin != num_bytes or end < begin:
            raise ValueError(f"{quote(name)} would take bytes {begin:,} to {end:,}, after {num_bytes:,} of others")
        num_bytes = end
    if num_bytes != file_bytes - start:
        raise ValueError(f"its tensors take {num_bytes:,} bytes, and it has {file_bytes - start:,} for them")
    return header, start


def require_adapter(path: Path) -> None:
    """ValueError, OSError or UserError as `read_header`, and for a file or header larger than any adapter's."""
    if (num_bytes := path.stat().st_size) > ADAPTER_BYTES:
        raise ValueError(f"its file has {num_bytes:,} bytes; the most is {ADAPTER_BYTES:,}")
    read_header(path, ADAPTER_HEADER_BYTES)


def _offsets(name: str, entry: Any) -> tuple[int, int]:
    """The first byte of a tensor and the one after its last. ValueError for an entry that is none of a tensor."""
    shape, offsets = (entry.get("shape"), entry.get("data_offsets")) if isinstance(entry, dict) else (None, None)
    if not (isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2) or any(
        type(size) is not int or size < 0 for size in (*shape, *offsets)
    ):
        raise ValueError(f"{quote(name)} is {quote(entry)}, expected a dtype, a shape and data_offsets")
    return offsets[0], offsets[1]
