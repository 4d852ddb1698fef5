"""The forward pass of a frozen linear layer with an adapter: W x + scale B A x, in the mode that the model is in.

There are three modes. `LinearMode` is the plain one: each layer computes with its active adapter. `MergedWeights`
(decode_weights.py) and `Mixture` (mixed.py) are for inference alone. One `AdaptedLinears` holds the mode of all layers
of a model, and `SharedModel` sets it together with the role.

PEFT's own forward makes four more copies of the layer's output, and in 16 bits keeps a float32 copy of each input for
the backward pass. The arithmetic here is the same: the adapter in float32, its share added in the layer's dtype.
"""

import functools
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from lora_rlhf.model.dense import has_matrix, matrix


class LinearMode:
    """How the adapted layers of a model compute. This is the plain mode; the two others are its subclasses."""

    def before_pass(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Called before each forward pass of the backbone, with its arguments. RuntimeError for a forbidden pass."""

    def after_pass(self) -> None:
        """Called after each forward pass of the backbone."""

    def leave(self) -> None:
        """Called when another mode takes over."""

    def forward(self, layer: LoraLayer, inputs: Tensor) -> Tensor:
        """inputs (..., in) -> (..., out), with the layer's active adapter."""
        adapter = active_adapter(layer)
        if adapter is None:
            result: Tensor = layer.base_layer(inputs)
            return result
        if not (has_matrix(layer.base_layer) and _is_lora_alone(layer, adapter)):
            return peft_forward(layer, inputs)
        down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        product: Tensor = LoraProduct.apply(inputs, down, up, layer.base_layer, layer.scaling[adapter])
        return product


PLAIN = LinearMode()


class AdaptedLinears:
    """All adapted linear layers of a model, and the mode in which they compute."""

    def __init__(self) -> None:
        self.mode: LinearMode = PLAIN

    def install(self, peft: PeftModel) -> None:
        """Take over the forward pass of these layers. Call it again after adapters have been added."""
        for layer in adapted_layers(peft):
            layer.forward = functools.partial(self._forward, layer)

    def _forward(self, layer: LoraLayer, inputs: Tensor) -> Tensor:
        return self.mode.forward(layer, inputs)


def adapted_layers(peft: PeftModel) -> list[LoraLayer]:
    """Every linear layer that PEFT has wrapped, in 4, 8 or more bits. Not the experts that are plain parameters."""
    layers = (module for module in peft.modules() if isinstance(module, LoraLayer))
    return [layer for layer in layers if isinstance(layer.get_base_layer(), nn.Linear | Conv1D)]


def layers_with_matrix(peft: PeftModel) -> list[LoraLayer]:
    """The adapted layers whose weight can be read as a matrix: not those in 8 bits, nor Conv1D."""
    return [layer for layer in adapted_layers(peft) if has_matrix(layer.base_layer)]


def active_adapter(layer: LoraLayer) -> str | None:
    """The adapter that a layer applies now. None where adapters are off, or this one leaves the layer alone."""
    if layer.disable_adapters:
        return None
    adapter: str = layer.active_adapters[0]
    return adapter if adapter in layer.lora_A else None


def peft_forward(layer: LoraLayer, inputs: Tensor) -> Tensor:
    """What PEFT computes itself."""
    result: Tensor = type(layer).forward(layer, inputs)
    return result


def _is_lora_alone(layer: LoraLayer, adapter: str) -> bool:
    """Whether all there is to compute is W x + scale B A x."""
    drops = layer.training and getattr(layer.lora_dropout[adapter], "p", 0.0) > 0  # nn.Identity has no p
    return not (drops or layer.merged or layer.lora_variant or len(layer.active_adapters) > 1)


class LoraProduct(torch.autograd.Function):
    """inputs (..., in), down (rank, in), up (out, rank) -> (..., out), with gradients for these three.

    Kept for the backward pass: the inputs as they are, which layers that read the same inputs share, and A x
    (..., rank).
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, down: Tensor, up: Tensor, base: nn.Module, scale: float) -> Tensor:
        result: Tensor = base(inputs)
        rows = inputs.reshape(-1, inputs.shape[-1]).to(down.dtype)
        low = rows @ down.T
        add_product(result, low, up, scale)
        ctx.save_for_backward(inputs, down, up, low)
        ctx.base, ctx.scale = base, scale
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        inputs, down, up, low = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        rows_float = rows.to(up.dtype)
        low_gradient = (rows_float @ up).mul_(ctx.scale)  # (N, rank), of A x
        inputs_gradient = down_gradient = up_gradient = None
        if ctx.needs_input_grad[0]:
            weight = matrix(ctx.base)
            flat = rows.to(weight.dtype) @ weight
            if flat.dtype == down.dtype:
                flat.addmm_(low_gradient, down)
            else:
                flat.add_(low_gradient @ down)
            inputs_gradient = flat.view(inputs.shape).to(inputs.dtype)
        if ctx.needs_input_grad[1]:
            down_gradient = low_gradient.T @ inputs.reshape(-1, inputs.shape[-1]).to(down.dtype)
        if ctx.needs_input_grad[2]:
            up_gradient = (rows_float.T @ low).mul_(ctx.scale)
        return inputs_gradient, down_gradient, up_gradient, None, None


def add_product(result: Tensor, low: Tensor, up: Tensor, scale: float) -> None:
    """result (..., out) += scale low up^T, in place, of low (N, rank) and up (out, rank)."""
    flat = result.view(-1, result.shape[-1])
    if flat.dtype == low.dtype:
        flat.addmm_(low, up.T, alpha=scale)
    else:
        flat.add_(low @ up.T, alpha=scale)  # rounded once, after the sum
