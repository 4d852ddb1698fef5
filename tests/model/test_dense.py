"""A dequantised copy of the base changes no bit of any result, and nothing of the base."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor

from lora_rlhf.model import dense
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.dense import dense_copy, keep_dense_copies, weight_matrix
from lora_rlhf.model.forward import response_logprobs
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError
from tests.support.batches import random_batch

Make = Callable[..., SharedModel]
MIB = 2**20


def layers_of(model: SharedModel) -> list[Linear4bit]:
    return [layer for layer in model.causal.modules() if isinstance(layer, Linear4bit)]


def outcome(model: SharedModel) -> dict[str, Tensor]:
    """Log-probabilities with and without gradients, as policy and as the bare base, and the policy's gradients."""
    batch = random_batch()
    with model.role("base"), torch.no_grad():
        tensors = {"base": response_logprobs(model, batch)[0]}
    with model.role("policy"), torch.no_grad():
        tensors["scored"] = response_logprobs(model, batch)[0]
    with model.role("policy", training=True):
        tensors["trained"] = response_logprobs(model, batch)[0]
        tensors["trained"].sum().backward()
    for name, parameter in model.named_parameters_of("policy"):
        assert parameter.grad is not None
        tensors[name], parameter.grad = parameter.grad, None
    return tensors


def test_results_are_the_same_bit_for_bit(shared_model: Make, architecture: str) -> None:
    model = shared_model(architecture)
    expected = outcome(model)
    assert keep_dense_copies(model.causal, "always")
    assert all(dense_copy(layer) is not None for layer in layers_of(model)) and layers_of(model)
    with_copy = outcome(model)
    assert with_copy.keys() == expected.keys()
    for name, value in with_copy.items():
        assert torch.equal(value, expected[name]), name


def test_a_layer_computes_what_bitsandbytes_does_and_reads_nothing_out(
    shared_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shared_model("phi")  # with biases
    layer = layers_of(model)[0]
    layer.bias.data = torch.randn(layer.out_features, generator=torch.Generator().manual_seed(2))  # 0 as they come
    keep_dense_copies(model.causal, "always")
    inputs = torch.randn(3, 5, layer.in_features, generator=torch.Generator().manual_seed(0), requires_grad=True)
    upstream = torch.randn(3, 5, layer.out_features, generator=torch.Generator().manual_seed(1))
    theirs = Linear4bit.forward(layer, inputs)
    (expected,) = torch.autograd.grad(theirs, inputs, upstream)
    monkeypatch.setattr("bitsandbytes.functional.dequantize_4bit", None)
    monkeypatch.setattr("bitsandbytes.matmul_4bit", None)
    ours = layer(inputs)
    assert torch.equal(ours, theirs) and torch.equal(torch.autograd.grad(ours, inputs, upstream)[0], expected)


def test_base_digest_and_files_know_nothing_of_it(shared_model: Make, tmp_path: Path) -> None:
    model = shared_model()
    digest, names = model.base_digest(), list(model.causal.state_dict())
    kinds = {name: type(value) for name, value in model.causal.named_parameters()}
    model.save_role("policy", tmp_path / "before")
    keep_dense_copies(model.causal, "always")
    outcome(model)
    model.save_role("policy", tmp_path / "after")
    assert model.base_digest() == digest and list(model.causal.state_dict()) == names
    assert {name: type(value) for name, value in model.causal.named_parameters()} == kinds
    for path in (tmp_path / "before").iterdir():
        assert (tmp_path / "after" / path.name).read_bytes() == path.read_bytes()


def test_a_dropped_copy_is_used_no_more(shared_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared_model()
    keep_dense_copies(model.causal, "always")
    assert not keep_dense_copies(model.causal, "never")
    layers = layers_of(model)
    assert all(dense_copy(layer) is None for layer in layers)
    assert all(weight_matrix(layer).shape == (layer.out_features, layer.in_features) for layer in layers)
    computed: list[Linear4bit] = []
    forward = Linear4bit.forward
    monkeypatch.setattr(Linear4bit, "forward", lambda layer, inputs: computed.append(layer) or forward(layer, inputs))
    outcome(model)
    assert set(computed) == set(layers), "bitsandbytes computes all of them again"


@pytest.mark.parametrize(("free", "kept"), [(4.01, True), (3.99, False), (0.0, False)])
def test_auto_takes_a_quarter_of_free_memory_at_most(
    shared_model: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free: float, kept: bool
) -> None:
    model = shared_model()
    size = sum(weight_matrix(layer).numel() * 4 for layer in layers_of(model))
    monkeypatch.setattr(dense, "free_bytes", lambda _device: int(free * size))
    with caplog.at_level(logging.DEBUG, "lora_rlhf"):
        assert keep_dense_copies(model.causal) is kept
    assert sum("kept dequantised" in record.getMessage() for record in caplog.records) == kept
    monkeypatch.setattr(dense, "free_bytes", lambda _device: int((free - kept) * size))  # the copy takes its share
    assert keep_dense_copies(model.causal) is kept  # asked again by the next stage
    assert sum("kept dequantised" in record.getMessage() for record in caplog.records) == kept


def test_always_says_when_memory_does_not_suffice(shared_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared_model()
    monkeypatch.setattr(dense, "free_bytes", lambda _device: 1000)
    with pytest.raises(UserError, match=r"dequantize is always, but .* take --dequantize auto"):
        keep_dense_copies(model.causal, "always")


def test_a_base_that_is_not_quantized_needs_none(tiny_model: Callable[[str], Path]) -> None:
    model = SharedModel(load_base(BaseSpec(str(tiny_model("llama")), "none"), "cpu"))
    assert not keep_dense_copies(model.causal, "always")


def test_free_memory_of_a_cpu_is_the_machine_s(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dense.free_bytes(torch.device("cpu")) > 16 * MIB
    monkeypatch.setattr("lora_rlhf.system.memory.memory", lambda: None)
    assert dense.free_bytes(torch.device("cpu")) == 0
