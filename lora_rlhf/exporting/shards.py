"""The weights of an export: planned tensors laid out over safetensors files, and the bytes that they will take."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from lora_rlhf.model.merging import Planned
from lora_rlhf.model.tensor_files import write_tensors
from lora_rlhf.system.disk import write_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def num_bytes(planned: Sequence[Planned]) -> int:
    """What all tensors take on disk, headers aside."""
    return sum(tensor.entry.num_bytes for tensor in planned)


def lay_out(planned: Sequence[Planned], max_bytes: int) -> list[list[Planned]]:
    """The tensors in order, cut into files of at most `max_bytes`; a tensor larger than that has a file of its own."""
    files: list[list[Planned]] = []
    room = 0
    for tensor in planned:
        if not files or tensor.entry.num_bytes > room:
            files.append([])
            room = max_bytes
        files[-1].append(tensor)
        room -= tensor.entry.num_bytes
    return files


def write_shards(folder: Path, planned: Sequence[Planned], max_bytes: int) -> dict[str, str]:
    """Writes model.safetensors, or shards with their index, and returns {file: its sha256}."""
    files = lay_out(planned, max_bytes)
    names = [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    if len(files) == 1:
        names = [SINGLE]
    hashes, size = {}, num_bytes(planned)
    with tqdm(total=size, desc="merging", unit="B", unit_scale=True, unit_divisor=1024, disable=None) as bar:
        for name, tensors in zip(names, files, strict=True):
            hashes[name] = write_tensors(folder / name, [tensor.entry for tensor in tensors], _pieces(tensors, bar))
    if len(files) > 1:
        file_of = {tensor.entry.name: name for name, tensors in zip(names, files, strict=True) for tensor in tensors}
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": file_of})
    return hashes


def _pieces(tensors: Sequence[Planned], bar: tqdm) -> Iterator[Tensor]:
    for tensor in tensors:
        for piece in tensor.pieces():
            yield piece
            bar.update(piece.numel() * piece.element_size())
