"""The norms' own backward pass: transformers' results, with less kept."""

import pytest
import torch
from torch import Tensor
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from lora_rlhf.model.norms import RmsNorm, modules_like
from lora_rlhf.model.shared import SharedModel
from tests.support.stages import Models, open_model


def norm_and_inputs(dtype: torch.dtype) -> tuple[LlamaRMSNorm, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    norm = LlamaRMSNorm(48).to(dtype).requires_grad_(False)
    norm.weight.copy_(1 + 0.3 * torch.randn(48, generator=generator))
    inputs, upstream = (3 * torch.randn(4, 6, 48, generator=generator)).to(dtype), torch.randn(4, 6, 48)
    return norm, inputs.requires_grad_(), upstream.to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
def test_equals_transformers_s_norm(dtype: torch.dtype, tolerance: float) -> None:
    norm, inputs, upstream = norm_and_inputs(dtype)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        normed = RmsNorm.apply(inputs, norm.weight, norm.variance_epsilon)
    assert torch.equal(normed, norm(inputs))
    assert [tensor.dtype for tensor in kept if tensor.shape == inputs.shape] == [dtype]
    wide_norm, wide = LlamaRMSNorm(48).double().requires_grad_(False), inputs.detach().double().requires_grad_()
    wide_norm.weight.copy_(norm.weight)
    (expected,) = torch.autograd.grad(wide_norm(wide), wide, upstream.double())
    (gradient,) = torch.autograd.grad(normed, inputs, upstream)
    assert gradient.dtype == dtype
    torch.testing.assert_close(
        gradient.double(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())
    )


def test_only_norms_with_llamas_code_are_replaced(tiny_model: Models) -> None:
    norms = torch.nn.ModuleList([Qwen3RMSNorm(8), GemmaRMSNorm(8)])  # Gemma's multiplies by 1 + weight
    assert modules_like(norms, LlamaRMSNorm) == [norms[0]]
    for name, count in (("llama", 5), ("qwen3", 9), ("gemma", 0)):
        model: SharedModel = open_model(tiny_model(name))
        replaced = [
            path for path, module in model.causal.named_modules() if "forward" in vars(module) and "norm" in path
        ]
        assert len(replaced) == count
