"""Devices that cannot be used, each with one message before anything loads."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lora_rlhf.model.base import Base, BaseSpec, load_base
from lora_rlhf.model.devices import is_device_failure, resolve_device
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.kernel_trial import find_missing_code
from tests.support.pretended_cuda import GIB, Played, pretended
from tests.support.stages import Models

BUILT = ["sm_75", "sm_80", "sm_86", "sm_90a", "sm_120", "compute_120"]  # PyTorch 2.13 for CUDA 13 has such a list


@pytest.fixture
def played() -> Iterator[Played]:
    with pretended() as played:
        yield played


def load(folder: Path, quantization: str = "none") -> Base:
    return load_base(BaseSpec(str(folder), quantization), "cuda")


@pytest.mark.parametrize("name", ["foo", "mps", "xpu", "cuda:", "cuda:-1", "gpu", ""])
def test_what_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"device is {name!r}, expected auto, cpu, cuda or cuda:N")):
        resolve_device(name)


@pytest.mark.parametrize(
    ("capability", "has_code"),
    [((7, 0), False), ((6, 1), False), ((7, 5), True), ((8, 0), True), ((8, 9), True), ((9, 0), True), ((10, 0), False),
     ((12, 0), True), ((12, 1), True), ((13, 0), True)],
)  # fmt: skip
def test_code_is_for_one_major_version_and_what_is_compiled_later_for_all_after(
    capability: tuple[int, int], has_code: bool
) -> None:
    assert (find_missing_code("card", capability, BUILT, "13.0") is None) == has_code


def test_a_build_that_does_not_say_is_tried() -> None:
    assert find_missing_code("card", (7, 0), [], None) is None
    assert find_missing_code("Radeon", (11, 0), ["gfx1100", "gfx90a"], None) is None


def test_a_card_that_is_too_old_for_this_pytorch(played: Played, tiny_model: Models) -> None:
    played.name, played.capability = "Tesla V100-SXM2-16GB", (7, 0)
    with pytest.raises(UserError, match=r"cuda:0: Tesla V100-SXM2-16GB has compute capability 7\.0.*for CUDA 12\.6 is"):
        load(tiny_model("llama"))


def test_a_card_that_does_not_answer(played: Played, tiny_model: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(_device: object) -> None:
        raise torch.AcceleratorError("CUDA error: all CUDA-capable devices are busy or unavailable\nmore lines")

    monkeypatch.setattr(torch.cuda, "set_device", busy)
    with pytest.raises(UserError, match=r"cuda:0 does not answer \(CUDA error: all .* unavailable\): nvidia-smi shows"):
        load(tiny_model("llama"))


def test_memory_that_others_hold_is_named(played: Played, tiny_model: Models, caplog: pytest.LogCaptureFixture) -> None:
    load(tiny_model("llama"))
    assert "other programs" not in caplog.text
    played.free = 8 * GIB
    load(tiny_model("llama"))
    assert "other programs hold 15.0 of the 24.0 GiB of cuda:0: nvidia-smi shows which" in caplog.text
    played.free = 2**16
    with pytest.raises(UserError, match=r"llama' does not fit: 0\.0 of 24\.0 GiB of cuda:0 are free: nvidia-smi"):
        load(tiny_model("llama"))


def test_what_ends_a_gpu_and_what_does_not() -> None:
    assert is_device_failure(torch.AcceleratorError("CUDA error: unspecified launch failure"))
    assert not is_device_failure(torch.AcceleratorError("CUDA error: device-side assert triggered"))
    assert not is_device_failure(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_device_failure(RuntimeError("shapes do not match"))
