"""The gated MLP of a frozen base on a GPU: two tensors kept for the backward pass in place of four.

Autograd keeps gate, up, silu(gate) and their product, the widest tensors of a layer. Here gate and up are kept. The
backward pass computes the others again, which takes two launches, and keeps nothing on the way. A CPU, where that
takes longer and memory is larger, computes as transformers does.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP

from lora_rlhf.model.adapted_linear import SOURCE
from lora_rlhf.model.devices import computes_as_gpu
from lora_rlhf.model.norms import modules_like


def replace_gates(causal: PreTrainedModel) -> None:
    """Replaces the forward pass of all MLPs that compute as Llama's."""
    for mlp in modules_like(causal, LlamaMLP):
        if isinstance(mlp.act_fn, nn.SiLU | SiLUActivation):
            mlp.forward = functools.partial(_forward, mlp, mlp.forward)


def _forward(mlp: Any, plain_forward: Any, inputs: Tensor) -> Tensor:
    """inputs (..., H) -> (..., H)."""
    if not (torch.is_grad_enabled() and computes_as_gpu(inputs)):
        result: Tensor = plain_forward(inputs)
        return result
    product: Tensor = GatedProduct.apply(mlp.gate_proj(inputs), mlp.up_proj(inputs))
    if product.grad_fn is not None:
        setattr(product, SOURCE, functools.partial(_compute_again, product.grad_fn))
    down: Tensor = mlp.down_proj(product)
    return down


class GatedProduct(torch.autograd.Function):
    """silu(gate) * up, (..., F) each (arXiv 2002.05202, eq. 5)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        if "computed" not in ctx.__dict__:
            _compute_again(ctx)
        gate, up, activated = ctx.__dict__.pop("computed")
        return torch.ops.aten.silu_backward(gradient * up, gate), activated.mul_(gradient)


def _compute_again(node: Any) -> Tensor:
    """The product of a pass, from what its node in autograd's graph keeps; what it read and computed stays there.

    With gradient checkpointing a node's tensors can be read once only.
    """
    gate, up = node.saved_tensors
    activated = functional.silu(gate)
    node.computed = gate, up, activated
    return activated * up
