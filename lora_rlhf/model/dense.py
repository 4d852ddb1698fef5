"""The base's linear layers as plain matrices: read out of their 4 bits at each use, or once and kept beside them.

What is kept are the very numbers that bitsandbytes reads out, so that results stay the same bit for bit on a CPU. It is
no parameter and no buffer: the quantized base, its digest, checkpoints and exports know nothing of it.
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

from lora_rlhf.system import memory as host
from lora_rlhf.system.errors import UserError

log = logging.getLogger("lora_rlhf")

Dequantize = Literal["auto", "always", "never"]
GIB = 2**30
SHARE = 0.25  # of free memory that a copy may take unasked: training needs the rest
KEPT = "dense_weight"  # the attribute of a layer that holds its matrix


def has_matrix(layer: nn.Module) -> bool:
    """Whether `matrix` knows this layer: a 4-bit linear layer or a plain one."""
    return type(layer) in (Linear4bit, nn.Linear)


def matrix(layer: nn.Module) -> Tensor:
    """The layer's weight (out, in) in the dtype that it computes in: kept, its own, or read out now."""
    kept = layer.__dict__.get(KEPT)
    if kept is not None:
        found: Tensor = kept
    elif isinstance(layer, Linear4bit):
        found = _read_out(layer)
    else:
        assert isinstance(layer, nn.Linear)
        found = layer.weight
    return found


def free_bytes(device: torch.device) -> int:
    """Memory that could still be had on a device, what PyTorch holds there for reuse included; 0 if unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    found = host.memory()
    return 0 if found is None else found.available


def keep_dense(causal: PreTrainedModel, choice: Dequantize = "auto") -> bool:
    """Keeps, or gives up, the matrices of all 4-bit layers, and returns whether they are kept.

    "auto" keeps them on a CPU where they take at most a quarter of what memory is free: a GPU reads 4 bits out faster
    than it would fetch 16. UserError for "always" where they do not fit at all.
    """
    layers = [layer for layer in causal.modules() if isinstance(layer, Linear4bit)]
    if not layers:
        return False
    kept = [layer for layer in layers if KEPT in layer.__dict__]
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
        if wanted:
            _keep(layer)
        else:
            _give_up(layer)
    return wanted


def _keep(layer: Linear4bit) -> None:
    if KEPT not in layer.__dict__:
        setattr(layer, KEPT, _read_out(layer))
        layer.forward = functools.partial(_forward, layer)


def _give_up(layer: Linear4bit) -> None:
    if KEPT in layer.__dict__:
        delattr(layer, KEPT)
        del layer.forward  # its class's own again


def _forward(layer: Linear4bit, inputs: Tensor) -> Tensor:
    """What `Linear4bit.forward` computes on a CPU, without reading the weight out."""
    weight: Tensor = layer.__dict__[KEPT]
    bias = None if layer.bias is None else layer.bias.to(weight.dtype)
    return functional.linear(inputs.to(weight.dtype), weight, bias).to(inputs.dtype)


@torch.no_grad()
def _read_out(layer: Linear4bit) -> Tensor:
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight.to(layer.compute_dtype or weight.dtype)


def _dense_bytes(layer: Linear4bit) -> int:
    dtype = layer.compute_dtype or torch.float32
    return layer.in_features * layer.out_features * dtype.itemsize
