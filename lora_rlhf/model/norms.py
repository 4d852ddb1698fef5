"""RMSNorm of a frozen base with its own backward pass: two tensors kept and four operations, the same results forward.

The forward pass of transformers' RMSNorm is six operations, and autograd keeps four results of the input's size, with
16 bits some in float32. On a CPU its backward pass takes ten times as long as the one here. A GPU runs PyTorch's own
fused kernel, one launch in each direction.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lora_rlhf.model.devices import computes_as_gpu


def fused_norm(inputs: Tensor, weight: Tensor, eps: float) -> Tensor:
    """PyTorch's own kernel: inputs (..., H), weight (H,) -> (..., H)."""
    return functional.rms_norm(inputs, weight.shape, weight, eps)


Norm = Callable[[Tensor, Tensor, float], Tensor]  # inputs (..., H), weight (H,), eps -> (..., H)


def replace_norms(causal: PreTrainedModel, on_gpu: Norm = fused_norm) -> None:
    """Replaces the forward pass of all norms that compute as Llama's; their weights must stay frozen."""
    for norm in modules_like(causal, LlamaRMSNorm):
        norm.forward = functools.partial(_forward, norm, on_gpu)


def modules_like(causal: nn.Module, original: type[nn.Module]) -> list[nn.Module]:
    """The modules whose forward pass has the code of this class of Llama's; many families name it as their own."""
    ending = original.__name__.removeprefix("Llama")

    def computes_alike(kind: type[nn.Module]) -> bool:
        if not kind.__name__.endswith(ending):
            return False
        try:
            return inspect.getsource(kind.forward) == inspect.getsource(original.forward)
        except (OSError, TypeError):  # a class without a file
            return False

    alike = {kind for kind in {type(module) for module in causal.modules()} if computes_alike(kind)}
    return [module for module in causal.modules() if type(module) in alike]


def _forward(norm: nn.Module, on_gpu: Norm, inputs: Tensor) -> Tensor:
    """inputs (..., H) -> (..., H)."""
    weight, eps = norm.weight, norm.variance_epsilon
    assert isinstance(weight, Tensor) and isinstance(eps, float)
    normed: Tensor = on_gpu(inputs, weight, eps) if computes_as_gpu(inputs) else RmsNorm.apply(inputs, weight, eps)
    return normed


class RmsNorm(torch.autograd.Function):
    """weight * x / sqrt(mean(x^2) + eps) over the last axis, in float32 before the weight (arXiv 1910.07467, eq. 4)."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = inputs.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(inputs, weight, scale)
        return weight * (wide * scale).to(inputs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        inputs, weight, scale = ctx.saved_tensors
        wide, weighted = inputs.float(), (gradient * weight).float()
        dot = torch.linalg.vecdot(weighted, wide).unsqueeze(-1)
        along = dot.mul_(scale.pow(3)).div_(-inputs.shape[-1])  # the norm removes what only scales x
        return weighted.mul_(scale).addcmul_(wide, along).to(inputs.dtype), None, None
