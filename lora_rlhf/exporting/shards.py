"""The weights of an export: divides planned tensors over safetensors files and writes them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from lora_rlhf.model.merging import PlannedTensor
from lora_rlhf.model.tensor_files import write_tensors
from lora_rlhf.system.disk import write_json

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


def total_bytes(planned_tensors: Sequence[PlannedTensor]) -> int:
    """The bytes of all tensors on disk, without headers."""
    return sum(tensor.entry.num_bytes for tensor in planned_tensors)


def divide_into_files(planned_tensors: Sequence[PlannedTensor], max_bytes: int) -> list[list[PlannedTensor]]:
    """The tensors in order, in files of at most `max_bytes`; a tensor larger than that has its own file."""
    files: list[list[PlannedTensor]] = []
    free_bytes = 0
    for tensor in planned_tensors:
        if not files or tensor.entry.num_bytes > free_bytes:
            files.append([])
            free_bytes = max_bytes
        files[-1].append(tensor)
        free_bytes -= tensor.entry.num_bytes
    return files


def write_shards(folder: Path, planned_tensors: Sequence[PlannedTensor], max_bytes: int) -> dict[str, str]:
    """Writes model.safetensors, or several files and their index; returns {file: sha256}."""
    files = divide_into_files(planned_tensors, max_bytes)
    names = [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    if len(files) == 1:
        names = [SINGLE_FILE]
    hashes, num_bytes = {}, total_bytes(planned_tensors)
    with tqdm(total=num_bytes, desc="merging", unit="B", unit_scale=True, unit_divisor=1024, disable=None) as bar:
        for name, tensors in zip(names, files, strict=True):
            hashes[name] = write_tensors(
                folder / name, [tensor.entry for tensor in tensors], _pieces_with_progress(tensors, bar)
            )
    if len(files) > 1:
        file_by_tensor = {
            tensor.entry.name: name for name, tensors in zip(names, files, strict=True) for tensor in tensors
        }
        write_json(folder / INDEX_FILE, {"metadata": {"total_size": num_bytes}, "weight_map": file_by_tensor})
    return hashes


def _pieces_with_progress(tensors: Sequence[PlannedTensor], bar: tqdm) -> Iterator[Tensor]:
    for tensor in tensors:
        for piece in tensor.pieces():
            yield piece
            bar.update(piece.numel() * piece.element_size())
