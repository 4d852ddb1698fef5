"""The adapted layers' own forward and backward pass: PEFT's arithmetic, with less kept."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_rlhf.model.adapted_linear import LoraProduct
from lora_rlhf.model.forward import response_logprobs
from lora_rlhf.model.shared import SharedModel
from tests.support.batches import random_batch
from tests.support.models import compute_as_peft

Make = Callable[..., SharedModel]


def outcome(model: SharedModel) -> dict[str, Tensor]:
    with model.role("policy", training=True):
        logprobs, _ = response_logprobs(model, random_batch())
        logprobs.sum().backward()
    tensors = {"logprobs": logprobs.detach()}
    for name, parameter in model.named_parameters_of("policy"):
        assert parameter.grad is not None
        tensors[name], parameter.grad = parameter.grad, None
    return tensors


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_equals_peft_s_own_forward_and_gradients(shared_model: Make, architecture: str, quantization: str) -> None:
    model = shared_model(architecture, quantization)
    ours = outcome(model)
    compute_as_peft(model)
    expected = outcome(model)
    assert ours.keys() == expected.keys()
    for name, value in ours.items():
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
    torch.testing.assert_close(LoraProduct.apply(inputs, down, up, base, 0.3), expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *three: LoraProduct.apply(*three, base, 0.3), (inputs, down, up))


def test_in_16_bits_the_inputs_are_kept_in_16_bits_and_results_are_peft_s_to_rounding() -> None:
    torch.manual_seed(0)
    base = nn.Linear(32, 48, dtype=torch.bfloat16).requires_grad_(False)
    inputs = torch.randn(6, 10, 32, dtype=torch.bfloat16, requires_grad=True)
    down, up = torch.randn(4, 32, requires_grad=True), torch.randn(48, 4, requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        product = LoraProduct.apply(inputs, down, up, base, 0.1)
    assert product.dtype == torch.bfloat16
    assert {tuple(tensor.shape): tensor.dtype for tensor in saved}[(6, 10, 32)] == torch.bfloat16
    assert max(tensor.numel() for tensor in saved if tensor.dtype == torch.float32) < inputs.numel()

    wide = [tensor.detach().float().requires_grad_() for tensor in (inputs, down, up)]
    expected = (
        nn.functional.linear(wide[0], base.weight.float(), base.bias.float()) + 0.1 * wide[0] @ wide[1].T @ wide[2].T
    )
    tolerance: dict[str, Any] = {"rtol": 2**-7, "atol": 2**-7}  # a last place of bfloat16
    torch.testing.assert_close(product.float(), expected, **tolerance)
    upstream = torch.randn(6, 10, 48)
    expected_gradients = torch.autograd.grad(expected, wide, upstream.bfloat16().float())
    gradients = torch.autograd.grad(product, (inputs, down, up), upstream.bfloat16())
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        scale = reference.abs().max()
        torch.testing.assert_close(gradient.float() / scale, reference / scale, **tolerance)


def test_dropout_is_left_to_peft(shared_model: Make) -> None:
    model = shared_model(dropout=0.5)
    torch.manual_seed(3)
    ours = outcome(model)
    compute_as_peft(model)
    torch.manual_seed(3)
    expected = outcome(model)
    for name, value in ours.items():
        assert torch.equal(value, expected[name]), name
