"""The base's linear layers as plain matrices: dequantized at each use, or once, with a dense copy beside the layer.

The copy has the numbers that bitsandbytes dequantizes, so results stay the same bit for bit on a CPU. The
copy is neither a parameter nor a buffer: the quantized base, its digest, checkpoints and exports do not contain it.
"""

import functools
import logging
from typing import Literal

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lora_rlhf.system import memory as host_memory
from lora_rlhf.system.errors import UserError

log = logging.getLogger("lora_rlhf")

Dequantize = Literal["auto", "always", "never"]
GIB = 2**30
FREE_SHARE = 0.25  # of free memory that "auto" may use for copies: training needs the rest
DENSE = "dense_weight"  # the attribute of a 4-bit layer that holds its dense copy


def has_weight_matrix(layer: nn.Module) -> bool:
    """Whether `weight_matrix` can read this layer: a 4-bit linear layer or a plain one."""
    return type(layer) in (Linear4bit, nn.Linear)


def weight_matrix(layer: nn.Module) -> Tensor:
    """The layer's weight (out, in) in its compute dtype: its dense copy, its own weight, or dequantized now."""
    weight = dense_copy(layer)
    if weight is None:
        assert isinstance(layer, nn.Linear)
        weight = _dequantize(layer) if isinstance(layer, Linear4bit) else layer.weight
    return weight


def weight_dtype(layer: nn.Module) -> torch.dtype:
    """The dtype of the layer's `weight_matrix`."""
    assert isinstance(layer, nn.Linear)
    return (layer.compute_dtype or torch.float32) if isinstance(layer, Linear4bit) else layer.weight.dtype


def dense_copy(layer: nn.Module) -> Tensor | None:
    """The dequantized weight (out, in) beside a 4-bit layer; None if `keep_dense_copies` made none."""
    return layer.__dict__.get(DENSE)


def apply_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """inputs (..., in), weight (out, in), bias (out,) -> (..., out) in inputs' dtype; computes in weight's dtype."""
    bias = None if bias is None else bias.to(weight.dtype)
    return functional.linear(inputs.to(weight.dtype), weight, bias).to(inputs.dtype)


def free_bytes(device: torch.device) -> int:
    """Memory that can still be allocated on a device, including what PyTorch holds there for reuse; 0 if unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    memory = host_memory.memory()
    return 0 if memory is None else memory.available


def keep_dense_copies(causal: PreTrainedModel, choice: Dequantize = "auto") -> bool:
    """Makes or drops the dense copies of all 4-bit layers; returns whether they exist now.

    "auto" makes them on a CPU if they take at most a quarter of free memory: a GPU dequantizes 4 bits faster than it
    reads 16. UserError for "always" if they do not fit at all.
    """
    layers = [layer for layer in causal.modules() if isinstance(layer, Linear4bit)]
    if not layers:
        return False
    layers_with_copy = [layer for layer in layers if dense_copy(layer) is not None]
    copy_bytes = sum(_dense_bytes(layer) for layer in layers)
    free_memory = free_bytes(causal.device) + sum(_dense_bytes(layer) for layer in layers_with_copy)
    if choice == "always" and copy_bytes > free_memory:
        raise UserError(
            f"dequantize is always, but a copy of the base takes {copy_bytes / GIB:.1f} GiB and "
            f"{free_memory / GIB:.1f} GiB are free; take --dequantize auto, or a smaller base"
        )
    must_keep = choice == "always" or (
        choice == "auto" and causal.device.type == "cpu" and copy_bytes <= FREE_SHARE * free_memory
    )
    if must_keep and len(layers_with_copy) < len(layers):
        log.debug(
            "the base is also kept dequantised: %.2f of %.1f GiB free (dequantize)", copy_bytes / GIB, free_memory / GIB
        )
    for layer in layers:
        _set_dense_copy(layer, must_keep)
    return must_keep


def _set_dense_copy(layer: Linear4bit, must_keep: bool) -> None:
    """Makes a layer's copy and computes with it, or drops it and lets the layer compute from its 4 bits."""
    if must_keep and dense_copy(layer) is None:
        setattr(layer, DENSE, _dequantize(layer))
        layer.forward = functools.partial(_forward_dense, layer)
    elif not must_keep and dense_copy(layer) is not None:
        delattr(layer, DENSE)
        del layer.forward  # back to the method of its class


def _forward_dense(layer: Linear4bit, inputs: Tensor) -> Tensor:
    """The result of `Linear4bit.forward` on a CPU, without dequantizing the weight."""
    return apply_linear(inputs, weight_matrix(layer), layer.bias)


@torch.no_grad()
def _dequantize(layer: Linear4bit) -> Tensor:
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight.to(layer.compute_dtype or weight.dtype)


def _dense_bytes(layer: Linear4bit) -> int:
    return layer.in_features * layer.out_features * weight_dtype(layer).itemsize
