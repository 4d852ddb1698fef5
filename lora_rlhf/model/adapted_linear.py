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

from lora_rlhf.model.dense import has_weight_matrix, weight_matrix


class LinearMode:
    """The way in which the adapted layers of a model compute. This is the plain mode; its subclasses are the others."""

    def before_pass(self, inputs: tuple[Any, ...], keyword_inputs: dict[str, Any]) -> None:
        """Is called before each forward pass of the backbone, with its arguments. RuntimeError for a forbidden pass."""

    def after_pass(self) -> None:
        """Is called after each forward pass of the backbone."""

    def on_mode_end(self) -> None:
        """Is called when another mode begins."""

    def forward(self, layer: LoraLayer, inputs: Tensor) -> Tensor:
        """inputs (..., in) -> (..., out), with the layer's active adapter."""
        adapter = active_adapter(layer)
        if adapter is None:
            result: Tensor = layer.base_layer(inputs)
            return result
        if not (has_weight_matrix(layer.base_layer) and _is_plain_lora(layer, adapter)):
            return run_peft_forward(layer, inputs)
        down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        product: Tensor = LoraProduct.apply(inputs, down, up, layer.base_layer, layer.scaling[adapter])
        return product


PLAIN_MODE = LinearMode()


class AdaptedLinears:
    """All adapted linear layers of a model, and the mode in which they compute."""

    def __init__(self) -> None:
        self.mode: LinearMode = PLAIN_MODE

    def install(self, peft: PeftModel) -> None:
        """Replaces the forward pass of these layers. Call it again after adapters were added."""
        for layer in adapted_layers(peft):
            layer.forward = functools.partial(self._forward, layer)

    def _forward(self, layer: LoraLayer, inputs: Tensor) -> Tensor:
        return self.mode.forward(layer, inputs)


def adapted_layers(peft: PeftModel) -> list[LoraLayer]:
    """Every linear layer that PEFT has wrapped, in 4, 8 or more bits; without experts that are plain parameters."""
    layers = (module for module in peft.modules() if isinstance(module, LoraLayer))
    return [layer for layer in layers if isinstance(layer.get_base_layer(), nn.Linear | Conv1D)]


def layers_with_weight_matrix(peft: PeftModel) -> list[LoraLayer]:
    """The adapted layers whose weight can be read as a matrix: not those in 8 bits, and not Conv1D."""
    return [layer for layer in adapted_layers(peft) if has_weight_matrix(layer.base_layer)]


def active_adapter(layer: LoraLayer) -> str | None:
    """The adapter that a layer applies now. None if adapters are off, or if this one does not change the layer."""
    if layer.disable_adapters:
        return None
    adapter: str = layer.active_adapters[0]
    return adapter if adapter in layer.lora_A else None


def run_peft_forward(layer: LoraLayer, inputs: Tensor) -> Tensor:
    """PEFT's own forward pass of a layer."""
    result: Tensor = type(layer).forward(layer, inputs)
    return result


def _is_plain_lora(layer: LoraLayer, adapter: str) -> bool:
    """Whether the layer computes W x + scale B A x and nothing else."""
    has_dropout = layer.training and getattr(layer.lora_dropout[adapter], "p", 0.0) > 0  # nn.Identity has no p
    return not (has_dropout or layer.merged or layer.lora_variant or len(layer.active_adapters) > 1)


class LoraProduct(torch.autograd.Function):
    """inputs (..., in), down (rank, in), up (out, rank) -> (..., out), with gradients for these three.

    Saved for the backward pass: the inputs, which are shared by layers with the same inputs, and A x (..., rank).
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, down: Tensor, up: Tensor, base: nn.Module, scale: float) -> Tensor:
        result: Tensor = base(inputs)
        rows = inputs.reshape(-1, inputs.shape[-1]).to(down.dtype)
        low_rank = rows @ down.T
        add_product(result, low_rank, up, scale)
        ctx.save_for_backward(inputs, down, up, low_rank)
        ctx.base, ctx.scale = base, scale
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        inputs, down, up, low_rank = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        rows_float = rows.to(up.dtype)
        low_rank_gradient = (rows_float @ up).mul_(ctx.scale)  # (N, rank), of A x
        inputs_gradient = down_gradient = up_gradient = None
        if ctx.needs_input_grad[0]:
            weight = weight_matrix(ctx.base)
            flat_gradient = rows.to(weight.dtype) @ weight
            if flat_gradient.dtype == down.dtype:
                flat_gradient.addmm_(low_rank_gradient, down)
            else:
                flat_gradient.add_(low_rank_gradient @ down)
            inputs_gradient = flat_gradient.view(inputs.shape).to(inputs.dtype)
        if ctx.needs_input_grad[1]:
            down_gradient = low_rank_gradient.T @ inputs.reshape(-1, inputs.shape[-1]).to(down.dtype)
        if ctx.needs_input_grad[2]:
            up_gradient = (rows_float.T @ low_rank).mul_(ctx.scale)
        return inputs_gradient, down_gradient, up_gradient, None, None


def add_product(result: Tensor, low_rank: Tensor, up: Tensor, scale: float) -> None:
    """result (..., out) += scale low_rank up^T, in place; low_rank (N, rank), up (out, rank)."""
    flat_result = result.view(-1, result.shape[-1])
    if flat_result.dtype == low_rank.dtype:
        flat_result.addmm_(low_rank, up.T, alpha=scale)
    else:
        flat_result.add_(low_rank @ up.T, alpha=scale)  # rounded once, after the sum
