"""The base's linear layers as plain matrices: read out of their 4 bits at each use, or once and kept beside them.

What is kept are the very numbers that bitsandbytes reads out, so that results stay the same bit for bit on a CPU. The
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
SHARE = 0.25  # of free memory that a copy may take unasked: training needs the rest
DENSE = "dense_weight"  # the attribute of a 4-bit layer that holds its dense copy


def has_matrix(layer: nn.Module) -> bool:
    """Whether `matrix` knows this layer: a 4-bit linear layer or a plain one."""
    return type(layer) in (Linear4bit, nn.Linear)


def matrix(layer: nn.Module) -> Tensor:
    """The layer's weight (out, in) in the dtype that it computes in: its dense copy, its own, or read out now."""
    weight = dense_copy(layer)
    if weight is None:
        assert isinstance(layer, nn.Linear)
        weight = _read_out(layer) if isinstance(layer, Linear4bit) else layer.weight
    return weight


def dense_copy(layer: nn.Module) -> Tensor | None:
    """The dequantised weight (out, in) that `keep_dense` keeps beside a 4-bit layer, if it does."""
    return layer.__dict__.get(DENSE)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """inputs (..., in), weight (out, in), bias (out,) -> (..., out) as inputs' dtype, computed in the weight's."""
    bias = None if bias is None else bias.to(weight.dtype)
    return functional.linear(inputs.to(weight.dtype), weight, bias).to(inputs.dtype)


def free_bytes(device: torch.device) -> int:
    """Memory that could still be had on a device, what PyTorch holds there for reuse included; 0 if unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    memory = host_memory.memory()
    return 0 if memory is None else memory.available


def keep_dense(causal: PreTrainedModel, choice: Dequantize = "auto") -> bool:
    """Make or drop the dense copies of all 4-bit layers, and return whether they are there.

    "auto" makes them on a CPU where they take at most a quarter of free memory: a GPU reads 4 bits out faster than it
    would fetch 16. UserError for "always" where they do not fit at all.
    """
    layers = [layer for layer in causal.modules() if isinstance(layer, Linear4bit)]
    if not layers:
        return False
    kept = [layer for layer in layers if dense_copy(layer) is not None]
    needed = sum(_dense_bytes(layer) for layer in layers)
    free = free_bytes(causal.device) + sum(_dense_bytes(layer) for layer in kept)
    if choice == "always" and needed > free:
        raise UserError(
            f"dequantize is always, but a copy of the base takes {needed / GIB:.1f} GiB and {free / GIB:.1f} GiB are "
            "free; take --dequantize auto, or a smaller base"
        )
    wanted = choice == "always" or (choice == "auto" and causal.device.type == "cpu" and needed <= SHARE * free)
    if wanted and len(kept) < len(layers):
        log.info("the base is also kept dequantised: %.2f of %.1f GiB free (dequantize)", needed / GIB, free / GIB)
    for layer in layers:
        _set_dense(layer, wanted)
    return wanted


def _set_dense(layer: Linear4bit, wanted: bool) -> None:
    """Make a layer's copy and compute with it, or drop it and let the layer compute from its 4 bits."""
    if wanted and dense_copy(layer) is None:
        setattr(layer, DENSE, _read_out(layer))
        layer.forward = functools.partial(_forward, layer)
    elif not wanted and dense_copy(layer) is not None:
        delattr(layer, DENSE)
        del layer.forward  # its class's own again


def _forward(layer: Linear4bit, inputs: Tensor) -> Tensor:
    """What `Linear4bit.forward` computes on a CPU, without reading the weight out."""
    return linear(inputs, matrix(layer), layer.bias)


@torch.no_grad()
def _read_out(layer: Linear4bit) -> Tensor:
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight.to(layer.compute_dtype or weight.dtype)


def _dense_bytes(layer: Linear4bit) -> int:
    dtype = layer.compute_dtype or torch.float32
    return layer.in_features * layer.out_features * dtype.itemsize
