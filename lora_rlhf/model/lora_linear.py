"""W x + scale B A x of a frozen layer with an adapter, or one of several in each row, in few passes over memory.

PEFT's own forward makes four more copies of the layer's output, and in 16 bits keeps a float32 copy of each input for
the backward pass. The arithmetic is the same: the adapter in float32, its share added in the layer's dtype.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as Lora
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.bnb import Linear4bit as QuantizedLora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lora_rlhf.model.dense import has_matrix, matrix

WRAPPED = (Lora, QuantizedLora)  # PEFT's layers around one of the base's; both look like the first


def wrapped_layers(peft: nn.Module) -> list[Lora]:
    """The adapted layers whose weight is a known matrix; not those in 8 bits, nor Conv1D."""
    layers = (module for module in peft.modules() if isinstance(module, WRAPPED))
    return [layer for layer in layers if has_matrix(layer.base_layer)]


def install(peft: PeftModel) -> None:
    """Lets these layers compute so. To be called again when adapters have been added."""
    for layer in wrapped_layers(peft):
        take_over(layer)


def take_over(layer: Lora) -> None:
    """Lets one layer compute so."""
    layer.forward = functools.partial(_forward, layer)


def _forward(layer: Lora, inputs: Tensor, *args: Any, **named: Any) -> Tensor:
    adapter = layer.active_adapters[0]
    if layer.disable_adapters or adapter not in layer.lora_A:
        result: Tensor = layer.base_layer(inputs, *args, **named)
        return result
    if not _is_plain(layer, adapter):
        return type(layer).forward(layer, inputs, *args, **named)
    down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    added: Tensor = _LoraLinear.apply(inputs, down, up, layer.base_layer, layer.scaling[adapter])
    return added


def _is_plain(layer: Lora, adapter: str) -> bool:
    """Whether all there is to compute is W x + scale B A x."""
    drops = layer.training and getattr(layer.lora_dropout[adapter], "p", 0.0) > 0  # nn.Identity has none
    return not (drops or layer.merged or layer.lora_variant or len(layer.active_adapters) > 1)


class _LoraLinear(torch.autograd.Function):
    """inputs (..., in), down (rank, in), up (out, rank) -> (..., out), with gradients for these three.

    Kept for the backward pass: the inputs as they are, which layers that read the same share, and A x (..., rank).
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, down: Tensor, up: Tensor, base: nn.Module, scale: float) -> Tensor:
        result: Tensor = base(inputs)
        rows = inputs.reshape(-1, inputs.shape[-1]).to(down.dtype)
        low = rows @ down.T
        _add(result, low, up, scale)
        ctx.save_for_backward(inputs, down, up, low)
        ctx.base, ctx.scale = base, scale
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        inputs, down, up, low = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        wide = rows.to(up.dtype)
        through_up = (wide @ up).mul_(ctx.scale)  # (N, rank): by now the gradient of A x
        of_inputs = of_down = of_up = None
        if ctx.needs_input_grad[0]:
            weight = matrix(ctx.base)
            flat = rows.to(weight.dtype) @ weight
            if flat.dtype == down.dtype:
                flat.addmm_(through_up, down)
            else:
                flat.add_(through_up @ down)
            of_inputs = flat.view(inputs.shape).to(inputs.dtype)
        if ctx.needs_input_grad[1]:
            of_down = through_up.T @ inputs.reshape(-1, inputs.shape[-1]).to(down.dtype)
        if ctx.needs_input_grad[2]:
            of_up = (wide.T @ low).mul_(ctx.scale)
        return of_inputs, of_down, of_up, None, None


def _add(result: Tensor, low: Tensor, up: Tensor, scale: float) -> None:
    """result (..., out) += scale low up^T, in place, of low (N, rank) and up (out, rank)."""
    flat = result.view(-1, result.shape[-1])
    if flat.dtype == low.dtype:
        flat.addmm_(low, up.T, alpha=scale)
    else:
        flat.add_(low @ up.T, alpha=scale)  # rounded once, after the sum


@dataclass(frozen=True)
class Stack:
    """The adapters of one layer side by side: A (rank, in) and scale B (out, rank), of all their ranks together.

    ranks: each adapter's own, 0 where it leaves the layer alone.
    """

    ranks: tuple[int, ...]
    down: Tensor
    up: Tensor


def stacked(layer: LoraLayer, adapters: Sequence[str]) -> Stack | None:
    """A copy of these adapters of a layer; None if they all leave it alone."""
    there = [adapter for adapter in adapters if adapter in layer.lora_A]
    if not there:
        return None
    return Stack(
        tuple(layer.r[adapter] if adapter in there else 0 for adapter in adapters),
        torch.cat([layer.lora_A[adapter].weight.detach() for adapter in there]),
        torch.cat([layer.lora_B[adapter].weight.detach() * layer.scaling[adapter] for adapter in there], dim=1),
    )


def add_stack(result: Tensor, inputs: Tensor, stack: Stack, others: Tensor) -> Tensor:
    """result (..., out) += what each row's own adapter makes of its inputs (..., in), in place.

    others (B, rank): True on the ranks that are not the row's own. The inputs are B rows of as many tokens each. One
    product for all adapters wastes a little arithmetic, and needs no rows in any order, no gathers and no waiting.
    """
    low = inputs.reshape(-1, inputs.shape[-1]).to(stack.down.dtype) @ stack.down.T
    low.view(len(others), -1, low.shape[-1]).masked_fill_(others[:, None], 0)
    _add(result, low, stack.up, 1.0)
    return result
