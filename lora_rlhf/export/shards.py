"""The weights of an export: planned tensors laid out over safetensors files, and the bytes that they will take."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from lora_rlhf.model.merging import Planned
from lora_rlhf.model.tensor_files import write_tensors
from lora_rlhf.system.disk import write_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def num_bytes(planned: Sequence[Planned]) -> int:
    """What all tensors take on disk, headers aside."""
    return sum(one.entry.num_bytes for one in planned)


def lay_out(planned: Sequence[Planned], max_bytes: int) -> list[list[Planned]]:
    """The tensors in order, cut into files of at most `max_bytes`; a tensor larger than that has a file of its own."""
    files: list[list[Planned]] = []
    room = 0
    for one in planned:
        if not files or one.entry.num_bytes > room:
            files.append([])
            room = max_bytes
        files[-1].append(one)
        room -= one.entry.num_bytes
    return files


def write_shards(
    folder: Path, planned: Sequence[Planned], max_bytes: int, done: Callable[[int], object] = lambda _bytes: None
) -> dict[str, str]:
    """Writes model.safetensors, or shards with their index, and returns {file: its sha256}. `done` is told of bytes."""
    files = lay_out(planned, max_bytes)
    names = [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    if len(files) == 1:
        names = [SINGLE]
    hashes = {}
    for name, tensors in zip(names, files, strict=True):
        hashes[name] = write_tensors(folder / name, [one.entry for one in tensors], _pieces(tensors, done))
    if len(files) > 1:
        places = {one.entry.name: name for name, tensors in zip(names, files, strict=True) for one in tensors}
        write_json(folder / INDEX, {"metadata": {"total_size": num_bytes(planned)}, "weight_map": places})
    return hashes


def _pieces(tensors: Sequence[Planned], done: Callable[[int], object]) -> Iterator[Tensor]:
    for one in tensors:
        for piece in one.pieces():
            yield piece
            done(piece.numel() * piece.element_size())
