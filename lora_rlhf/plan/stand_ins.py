"""What stands in for the backbone where a head is measured, and for a head where the backbone is."""

from typing import Any

import torch
from torch import Tensor

from lora_rlhf.model.skeleton import Counts, Skeleton


def make_hidden_states(skeleton: Skeleton, counts: Counts, rows: int, length: int) -> Tensor:
    """Hidden states (B, T, H) like those of the backbone, without running it."""
    # An input that requires a gradient makes autograd run the backward pass.
    start = torch.zeros((), requires_grad=True)
    states: Tensor = _BackboneStandIn.apply(start, (rows, length, counts.hidden_size), skeleton.causal.dtype)
    return states


class _BackboneStandIn(torch.autograd.Function):
    """Replaces the backbone when a head is measured: creates hidden states, and discards their gradient."""

    @staticmethod
    def forward(_ctx: Any, _begin: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    @staticmethod
    def backward(_ctx: Any, *_gradients: Tensor) -> tuple[None, None, None]:
        return None, None, None


class HeadStandIn(torch.autograd.Function):
    """Replaces a head when the backbone is measured: discards hidden states, and creates their gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        ctx.shape, ctx.dtype, ctx.device = hidden.shape, hidden.dtype, hidden.device
        return hidden.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_gradients: Tensor) -> Tensor:
        return torch.empty(ctx.shape, dtype=ctx.dtype, device=ctx.device)
