"""The adapted layers' own forward and backward pass: PEFT's arithmetic, with less kept."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lora_rlhf.model import lora_linear
from lora_rlhf.model.forward import response_logprobs
from lora_rlhf.model.lora_linear import _LoraLinear
from lora_rlhf.model.shared import SharedModel
from tests.support.batches import random_batch

Make = Callable[..., SharedModel]


def outcome(model: SharedModel) -> dict[str, Tensor]:
    with model.role("policy", training=True):
        logprobs, _ = response_logprobs(model, random_batch())
        logprobs.sum().backward()
    found = {"logprobs": logprobs.detach()}
    for name, parameter in model.named_parameters_of("policy"):
        assert parameter.grad is not None
        found[name], parameter.grad = parameter.grad, None
    return found


def as_peft_computes(model: SharedModel) -> None:
    for layer in lora_linear.wrapped_layers(model.peft):
        del layer.forward


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_equals_peft_s_own_forward_and_gradients(shared_model: Make, architecture: str, quantization: str) -> None:
    model = shared_model(architecture, quantization)
    found = outcome(model)
    as_peft_computes(model)
    expected = outcome(model)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5 * max(1.0, scale))


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_the_numerical_ones(bias: bool) -> None:
    torch.manual_seed(0)
    base = nn.Linear(5, 7, bias=bias, dtype=torch.float64).requires_grad_(False)
    inputs, down, up = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 5), (4, 5), (7, 4))
    )
    expected = base(inputs) + 0.3 * (inputs @ down.T) @ up.T
    torch.testing.assert_close(_LoraLinear.apply(inputs, down, up, base, 0.3), expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *three: _LoraLinear.apply(*three, base, 0.3), (inputs, down, up))


def test_in_16_bits_the_inputs_are_kept_in_16_bits_and_results_are_peft_s_to_rounding() -> None:
    torch.manual_seed(0)
    base = nn.Linear(32, 48, dtype=torch.bfloat16).requires_grad_(False)
    inputs = torch.randn(6, 10, 32, dtype=torch.bfloat16, requires_grad=True)
    down, up = torch.randn(4, 32, requires_grad=True), torch.randn(48, 4, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        found = _LoraLinear.apply(inputs, down, up, base, 0.1)
    assert found.dtype == torch.bfloat16
    assert {tuple(one.shape): one.dtype for one in kept}[(6, 10, 32)] == torch.bfloat16
    assert max(one.numel() for one in kept if one.dtype == torch.float32) < inputs.numel()

    wide = [one.detach().float().requires_grad_() for one in (inputs, down, up)]
    expected = (
        nn.functional.linear(wide[0], base.weight.float(), base.bias.float()) + 0.1 * wide[0] @ wide[1].T @ wide[2].T
    )
    near = {"rtol": 2**-7, "atol": 2**-7}  # a last place of bfloat16
    torch.testing.assert_close(found.float(), expected, **near)
    upstream = torch.randn(6, 10, 48)
    theirs = torch.autograd.grad(expected, wide, upstream.bfloat16().float())
    for one, other in zip(torch.autograd.grad(found, (inputs, down, up), upstream.bfloat16()), theirs, strict=True):
        torch.testing.assert_close(one.float() / other.abs().max(), other / other.abs().max(), **near)


def test_dropout_is_left_to_peft(shared_model: Make) -> None:
    model = shared_model(dropout=0.5)
    torch.manual_seed(3)
    found = outcome(model)
    as_peft_computes(model)
    torch.manual_seed(3)
    expected = outcome(model)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
