"""safetensors files in pieces: what is written here the safetensors library reads, and the other way about."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_rlhf.model.tensor_files import Entry, read_index, write_tensors
from lora_rlhf.system.errors import UserError

TENSORS = {
    "matrix": torch.arange(24.0).reshape(6, 4),
    "half": torch.randn(5, 2, 3).bfloat16(),
    "number": torch.tensor(7),
    "none": torch.empty(0, 4),
    "yes": torch.tensor([True, False, True]),
}


def test_written_in_pieces_is_read_by_the_library(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    entries = [Entry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()]
    pieces = [part for tensor in TENSORS.values() for part in (tensor.split(2) if tensor.dim() else [tensor])]
    digest = write_tensors(path, entries, pieces)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    tensors = load_file(path)
    assert tensors.keys() == TENSORS.keys()
    assert all(
        torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )


def test_rows_of_a_library_file(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors")
    index = read_index([tmp_path / "a.safetensors"])
    assert index.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(index[name].rows(0, len(tensor) if tensor.dim() else 1), tensor)
    assert torch.equal(index["matrix"].rows(2, 5), TENSORS["matrix"][2:5])
    assert torch.equal(index["half"].rows(4, 5), TENSORS["half"][4:])


def test_too_few_or_too_many_bytes_are_an_error(tmp_path: Path) -> None:
    entry = Entry("x", torch.float32, (2, 2))
    for name, pieces in (("few", [torch.zeros(1, 2)]), ("many", [torch.zeros(3, 2)])):
        with pytest.raises(ValueError, match="expected 16"):
            write_tensors(tmp_path / f"{name}.safetensors", [entry], pieces)


def test_a_piece_that_cannot_be_made_is_no_file_that_passes(tmp_path: Path) -> None:
    def pieces():
        yield torch.zeros(1, 2)
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_tensors(tmp_path / "a.safetensors", [Entry("x", torch.float32, (2, 2))], pieces())
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_index([tmp_path / "a.safetensors"])


def header(entry: object) -> bytes:
    text = json.dumps({"x": entry}).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * 16


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        (2**40).to_bytes(8, "little") + b"{}",
        header({"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 20]}),
        header({"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 16]}),
        header({"dtype": "F32", "shape": [-2, -2], "data_offsets": [-16, 0]}),
        header({"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}),
        header({"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16, 16]}),
        header({"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}) + b"\0",
        (10**6).to_bytes(8, "little") + b"[" * 10**6,
        header({"dtype": "F8_E5M2", "shape": [16], "data_offsets": [0, 16]}),
        header({"shape": [16], "data_offsets": [0, 16]}),
        header("tensor"),
    ],
)
def test_files_that_are_cut_off_or_lie_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.safetensors: not a whole safetensors file"):
        read_index([path])


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"x": torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"'x' is in a\.safetensors too"):
        read_index([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])
