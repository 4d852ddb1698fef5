"""The forward pass of a frozen linear layer with an adapter: W x + scale B A x, in the mode that the model is in.

There are three modes. `LinearMode` is the plain one: each layer computes with its active adapter. `MergedWeights`
(decode_weights.py) and `Mixture` (mixed.py) are for inference alone. One `AdaptedLinears` holds the mode of all layers
of a model, and `SharedModel` sets it together with the role.

PEFT's own forward makes four more copies of the layer's output, and in 16 bits keeps a float32 copy of each input for
the backward pass. Here an adapter's parameters and their gradients are float32. With a base in 16 bits, a GPU
multiplies by 16-bit copies of A and scale B, which every pass of the backbone writes anew: all products sum in float32,
and no activation is copied to float32. The adapter's product is written first, and the base's adds to it: the large
product takes longer than reading what it adds to. On a CPU, whose 16-bit products are slow, the adapter's products are
in float32.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from lora_rlhf.model.dense import has_weight_matrix, weight_dtype, weight_matrix
from lora_rlhf.model.devices import computes_as_gpu


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
        rounded = layer.__dict__.get(ROUNDED, {}).get(adapter)
        scale, source = layer.scaling[adapter], inputs.__dict__.get(SOURCE)
        product: Tensor = LoraProduct.apply(inputs, down, up, layer.base_layer, scale, rounded, source)
        return product


PLAIN_MODE = LinearMode()
ROUNDED = "rounded_adapter"  # the attribute of a layer that holds {its active adapter: (A, scale B) in 16 bits}
SOURCE = "source"  # the attribute of an input that is computed again for the backward pass: the function that does it
# Rows up to which bitsandbytes multiplies by 4 bits on a GPU, without writing the weight in 16 bits first. Its limits
# go by shape and card (backends/cuda/ops.py): up to 320, for few of them more.
FUSED_ROWS = 256


class _RoundedAdapter(NamedTuple):
    """The adapter that has 16-bit copies, its parameters, the copies, and what each copy is multiplied by."""

    adapter: str | None
    parameters: list[Tensor]
    copies: list[Tensor]
    scales: list[float]


class AdaptedLinears:
    """All adapted linear layers of a model, and the mode in which they compute."""

    def __init__(self) -> None:
        self.mode: LinearMode = PLAIN_MODE
        self._layers: list[LoraLayer] = []
        self._rounded = _RoundedAdapter(None, [], [], [])

    def install(self, peft: PeftModel) -> None:
        """Replaces the forward pass of these layers. Call it again after adapters were added or removed."""
        self._layers = adapted_layers(peft)
        self._rounded = _RoundedAdapter(None, [], [], [])
        for layer in self._layers:
            layer.forward = functools.partial(self._forward, layer)
            layer.__dict__.pop(ROUNDED, None)

    @torch.no_grad()
    def round_adapter(self, adapter: str, dtype: torch.dtype) -> None:
        """Writes copies of the adapter's A and scale B in this dtype, in few launches; other adapters' are dropped."""
        if self._rounded.adapter != adapter:
            self._rounded = rounded = _RoundedAdapter(adapter, [], [], [])
            for layer in self._layers:
                layer.__dict__[ROUNDED] = {}
                if adapter in layer.lora_A:
                    pair = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
                    halves = tuple(torch.empty_like(part, dtype=dtype) for part in pair)
                    layer.__dict__[ROUNDED] = {adapter: halves}
                    rounded.parameters.extend(pair)
                    rounded.copies.extend(halves)
                    rounded.scales.extend((1.0, layer.scaling[adapter]))
        torch._foreach_copy_(self._rounded.copies, self._rounded.parameters)
        torch._foreach_mul_(self._rounded.copies, self._rounded.scales)

    @property
    def rounded_copies(self) -> list[Tensor]:
        """The copies that `round_adapter` wrote last."""
        return self._rounded.copies

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

    `rounded`: copies of down and scale up in 16 bits to multiply by. `source`: computes the inputs again for the
    backward pass. Saved for it are else the inputs, which are shared by layers with the same inputs, and A x (N, rank).
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        down: Tensor,
        up: Tensor,
        base: nn.Linear,
        scale: float,
        rounded: tuple[Tensor, Tensor] | None = None,
        source: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        (left, right), factor = rounded or (down, up), 1.0 if rounded else scale
        rows = inputs.reshape(-1, inputs.shape[-1])
        low_rank = rows.to(left.dtype) @ left.T
        has_one_dtype = inputs.dtype == low_rank.dtype == weight_dtype(base)
        if has_one_dtype and not (computes_as_gpu(inputs) and len(rows) <= FUSED_ROWS):
            bias = base.bias
            if bias is None:
                result = (low_rank if factor == 1 else low_rank * factor) @ right.T
            else:
                result = torch.addmm(bias.to(right.dtype), low_rank, right.T, alpha=factor)
            result.addmm_(rows, weight_matrix(base).T)
            # as `torch.matmul` does it: no view to autograd, which forbids a model to change one in place
            result = torch.ops.aten._unsafe_view(result, (*inputs.shape[:-1], result.shape[-1]))
        else:
            result = base(inputs)
            add_product(result, low_rank, right, factor)
        # the copies are written again before each forward pass, with the same numbers until the adapter changes
        ctx.save_for_backward(low_rank, *(() if source else (inputs,)), *(() if rounded else (down, up)))
        ctx.base, ctx.scale, ctx.rounded, ctx.source = base, scale, rounded, source
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        low_rank, *saved = ctx.saved_tensors
        inputs = ctx.source() if ctx.source else saved.pop(0)
        left, right = ctx.rounded or saved
        rows = gradient.reshape(-1, gradient.shape[-1])
        rows_cast = rows.to(right.dtype)
        low_rank_gradient = rows_cast @ right  # (N, rank), of A x
        if not ctx.rounded:
            low_rank_gradient.mul_(ctx.scale)
        inputs_gradient = down_gradient = up_gradient = None
        if ctx.needs_input_grad[0]:
            weight = weight_matrix(ctx.base)
            flat_gradient = low_rank_gradient @ left
            if flat_gradient.dtype == weight.dtype:
                flat_gradient.addmm_(rows.to(weight.dtype), weight)
            else:
                flat_gradient.add_(rows.to(weight.dtype) @ weight)
            inputs_gradient = flat_gradient.view(inputs.shape).to(inputs.dtype)
        if ctx.needs_input_grad[1]:
            down_gradient = wide_product(low_rank_gradient.T, inputs.reshape(-1, inputs.shape[-1]).to(left.dtype))
        if ctx.needs_input_grad[2]:
            up_gradient = wide_product(rows_cast.T, low_rank).mul_(ctx.scale)
        return inputs_gradient, down_gradient, up_gradient, None, None, None, None


def wide_product(left: Tensor, right: Tensor) -> Tensor:
    """left (n, k) times right (k, m), in at least float32: (n, m). Only a GPU has such a product of 16-bit numbers."""
    if left.dtype not in (torch.bfloat16, torch.float16):
        return left @ right
    if computes_as_gpu(left):
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def add_product(result: Tensor, low_rank: Tensor, up: Tensor, scale: float) -> None:
    """result (..., out) += scale low_rank up^T, in place; low_rank (N, rank), up (out, rank)."""
    flat_result = result.view(-1, result.shape[-1])
    if flat_result.dtype == low_rank.dtype:
        flat_result.addmm_(low_rank, up.T, alpha=scale)
    else:
        flat_result.add_(low_rank @ up.T, alpha=scale)
