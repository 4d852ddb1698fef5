"""Captured steps on pretended GPUs: on the device that the model is on, and what happens where a capture fails."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_rlhf.model import decode_step, devices
from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.devices import resolve_device
from lora_rlhf.model.generate import Engine, generate
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.kernel_trial import Trial
from tests.support.models import randomize
from tests.support.pretended_cuda import Played, pretended
from tests.support.stages import Models

PROMPTS = [[5 + index, 6, 7, 8][: 1 + index % 4] * (1 + index % 3) for index in range(6)]


@pytest.fixture
def played() -> Iterator[Played]:
    with pretended(devices=2) as played:
        decode_step._capture_stream.cache_clear()
        yield played


def load(folder: Path, device: str = "cuda", quantization: str = "nf4", dtype: str = "float32") -> SharedModel:
    model = SharedModel(load_base(BaseSpec(str(folder), quantization, dtype), device))
    model.add_role("policy", LoraSettings(rank=4, alpha=8))
    randomize(model, "policy", seed=0)
    return model


def responses(model: SharedModel, engine: Engine = "static") -> list[list[int]]:
    with model.role("policy"):
        groups = generate(
            model,
            PROMPTS,
            max_new_tokens=12,
            temperature=1.0,
            stop_ids=[0, 1, 2, 9, 10],
            generator=torch.Generator().manual_seed(0),
            batch_size=4,
            engine=engine,
        )
    return [group[0].ids for group in groups]


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_steps_are_captured_on_the_models_device(played: Played, tiny_model: Models, device: str) -> None:
    model = load(tiny_model("llama"), device)
    assert model.device == torch.device("cuda", 1 if device == "cuda:1" else 0)
    assert {tensor.device for tensor in model.causal.parameters()} == {model.device}
    drawn = responses(model)
    assert model.capture_fault is None  # it names the line that waits
    assert drawn == responses(model, "plain")
    assert played.graphs == 1 and played.replays > 8
    assert played.streams[0].device.index == 0 and played.streams[1].device.index == 1
    assert played.current == model.device.index


def test_an_empty_graph_ends_with_an_error(played: Played, tiny_model: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a capture on the stream of another device leaves it: its replay does nothing."""
    model = load(tiny_model("llama"), "cuda:1")
    stream = torch.cuda.Stream(0)
    monkeypatch.setattr(decode_step, "_capture_stream", lambda _index: stream)
    with pytest.raises(RuntimeError, match="a captured CUDA graph is empty"):
        responses(model)
    assert played.replays < 100


def test_a_gpu_whose_4_bit_layers_are_wrong_is_refused_before_anything_loads(
    played: Played, tiny_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trial(device: str) -> Trial:
        return Trial("bfloat16", 0.15, 0.3, 1e-3, 1e-3, 1.0, kept=True, own_library=True, repacks=False)

    for name, wrong, message in (
        ("cuda:0", trial, "give wrong results on cuda:0 (an error of 0.3 of the largest value in bfloat16)"),
        ("cuda:1", None, "do not work on cuda:1 (no kernel image is available)"),
    ):

        def failing(device: str) -> Trial:
            raise RuntimeError("no kernel image is available\nmore lines")

        devices._require_working_kernels.cache_clear()
        monkeypatch.setattr(devices, "try_4bit", wrong or failing)
        with pytest.raises(UserError, match=re.escape(message)):
            load(tiny_model("llama"), name)
    devices._require_working_kernels.cache_clear()


def test_a_gpu_that_is_not_there(played: Played) -> None:
    with pytest.raises(UserError, match="device is 'cuda:9', but PyTorch sees only cuda:0, cuda:1 here"):
        resolve_device("cuda:9")


def test_a_failed_capture_leaves_nothing_behind(
    played: Played, tiny_model: Models, caplog: pytest.LogCaptureFixture
) -> None:
    model = load(tiny_model("llama"))
    stream, expected = torch.cuda.current_stream(), responses(model, "plain")
    played.capture_failure = RuntimeError("CUDA error: out of tricks\nmore lines")
    with caplog.at_level(logging.WARNING, logger="lora_rlhf"):
        assert responses(model) == expected
        assert responses(model) == expected
    assert played.captures_begun == played.pools_released == 1, "it is not tried again"
    assert torch.cuda.current_stream() is stream
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "LlamaForCausalLM: its decoding step cannot be captured as a CUDA graph, so it runs step by step (CUDA error: "
        "out of tricks)"
    ]


def test_the_first_cause_is_named(
    played: Played, tiny_model: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of a capture that failed says only that something failed before."""
    model = load(tiny_model("llama"))
    expected, compute = responses(model, "plain"), decode_step.lm_logits

    def waits_in_a_capture(causal: Any, hidden: torch.Tensor) -> torch.Tensor:
        if played.capture is not None:
            hidden.sum().item()
        return compute(causal, hidden)

    monkeypatch.setattr(decode_step, "lm_logits", waits_in_a_capture)
    assert responses(model) == expected
    assert "stream is capturing (_local_scalar_dense at lora_rlhf/model/decode_step.py" in caplog.text
    assert torch.cuda.current_stream() is not decode_step._capture_stream(0)


def test_a_step_that_waits_is_not_captured(
    played: Played, tiny_model: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = load(tiny_model("llama"))
    expected, compute = responses(model, "plain"), decode_step.lm_logits

    def waits(causal: Any, hidden: torch.Tensor) -> torch.Tensor:
        assert hidden.sum().item() != 0
        return compute(causal, hidden)

    monkeypatch.setattr(decode_step, "lm_logits", waits)
    assert responses(model) == expected
    assert played.captures_begun == 0
    assert "called a synchronizing CUDA operation (_local_scalar_dense at lora_rlhf/" in caplog.text
    assert played.sync_mode == 0


def test_a_step_in_8_bits_is_not_captured(played: Played, tiny_model: Models, caplog: pytest.LogCaptureFixture) -> None:
    model = load(tiny_model("llama"), quantization="int8")
    assert len(responses(model)) == len(PROMPTS)
    assert played.captures_begun == 0
    assert "8-bit layers look for outliers" in caplog.text


def test_too_little_memory_in_a_capture_is_the_callers(played: Played, tiny_model: Models) -> None:
    model = load(tiny_model("llama"))
    stream = torch.cuda.current_stream()
    played.capture_failure = torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(torch.OutOfMemoryError):
        responses(model)
    assert torch.cuda.current_stream() is stream
    played.capture_failure = None
    assert responses(model) == responses(model, "plain")
    assert played.graphs == 1
