"""The adapted layers' own forward and backward pass: PEFT's arithmetic, with less kept."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lora_rlhf.model.adapted_linear import LoraProduct
from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.forward import response_logprobs
from lora_rlhf.model.shared import SharedModel
from tests.support.batches import random_batch
from tests.support.models import compute_as_peft, randomize
from tests.support.pretended_cuda import pretended
from tests.support.stages import Models

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
    # some models, as Llama 4, change the result in place
    assert torch.autograd.gradcheck(lambda *three: LoraProduct.apply(*three, base, 0.3).mul_(2.0), (inputs, down, up))


@pytest.mark.parametrize("is_rounded", [False, True])
def test_in_16_bits_the_inputs_are_kept_in_16_bits_and_results_are_peft_s_to_rounding(is_rounded: bool) -> None:
    torch.manual_seed(0)
    base = nn.Linear(32, 48, dtype=torch.bfloat16).requires_grad_(False)
    inputs = torch.randn(6, 10, 32, dtype=torch.bfloat16, requires_grad=True)
    down, up = (torch.randn(*shape).bfloat16().float().requires_grad_() for shape in ((4, 32), (48, 4)))
    rounded = (down.detach().bfloat16(), (0.1 * up.detach()).bfloat16()) if is_rounded else None
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        product = LoraProduct.apply(inputs, down, up, base, 0.1, rounded)
    assert product.dtype == torch.bfloat16
    assert {tuple(tensor.shape): tensor.dtype for tensor in saved}[(6, 10, 32)] == torch.bfloat16
    wide = [tensor.numel() for tensor in saved if tensor.dtype == torch.float32]
    assert max(wide, default=0) < inputs.numel()

    masters = [tensor.detach().float().requires_grad_() for tensor in (inputs, down, up)]
    expected = (
        nn.functional.linear(masters[0], base.weight.float(), base.bias.float())
        + 0.1 * masters[0] @ masters[1].T @ masters[2].T
    )
    # a last place of bfloat16; one more for A x, which is rounded too
    tolerance: dict[str, Any] = {"rtol": 2**-7, "atol": 2**-6 if is_rounded else 2**-7}
    torch.testing.assert_close(product.float(), expected, **tolerance)
    upstream = torch.randn(6, 10, 48)
    expected_gradients = torch.autograd.grad(expected, masters, upstream.bfloat16().float())
    gradients = torch.autograd.grad(product, (inputs, down, up), upstream.bfloat16())
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.float32, torch.float32]
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        scale = reference.abs().max()
        torch.testing.assert_close(gradient.float() / scale, reference / scale, **tolerance)


class Kernels(TorchDispatchMode):
    """Counts operations, and keeps the shape and dtype of each result."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[tuple[str, torch.Size, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and not func.is_view:
                self.results.append((func.name(), tensor.shape, tensor.dtype))
        return result


def test_a_gpu_in_16_bits_multiplies_by_copies_that_follow_the_adapter(tiny_model: Models) -> None:
    """Of the policy that is trained, and then of another one; no activation of a layer becomes float32."""
    batch = random_batch()
    tokens = int(batch.prompt_mask.shape[1] + batch.response_mask.shape[1]) * len(batch)
    with pretended():
        model = SharedModel(load_base(BaseSpec(str(tiny_model("llama")), "none", "bfloat16"), "cuda"))
        for role in ("policy", "value"):
            model.add_role(role, LoraSettings(rank=4, alpha=8))
            randomize(model, role, seed=3)
        layer = model.backbone.layers[0].mlp.down_proj
        for role in ("value", "policy", "policy"):
            layer.lora_A[role].weight.data.mul_(1.5)
            with model.role(role, training=True):
                logprobs = response_logprobs(model, batch.to("cuda"))[0]
                logprobs.sum().backward()
            pair, scales = (layer.lora_A[role].weight, layer.lora_B[role].weight), (1, layer.scaling[role])
            for master, scale, copy in zip(pair, scales, layer.rounded_adapter[role], strict=True):
                assert copy.dtype == torch.bfloat16 and torch.equal(copy.cpu(), scale * master.cpu().bfloat16())
                assert master.grad.dtype == torch.float32 and bool(master.grad.cpu().abs().sum() > 0)
        with Kernels() as kernels, model.role("policy"), torch.no_grad():
            inputs = torch.randn(tokens, layer.in_features, dtype=torch.bfloat16).to("cuda")
            kernels.results.clear()
            layer(inputs)
    assert [name for name, _, _ in kernels.results] == ["aten::mm", "aten::mm", "aten::addmm_"]
    assert {dtype for _, _, dtype in kernels.results} == {torch.bfloat16}


def test_dropout_is_left_to_peft(shared_model: Make) -> None:
    model = shared_model(dropout=0.5)
    torch.manual_seed(3)
    ours = outcome(model)
    compute_as_peft(model)
    torch.manual_seed(3)
    expected = outcome(model)
    for name, value in ours.items():
        assert torch.equal(value, expected[name]), name
