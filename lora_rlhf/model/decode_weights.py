"""Weights for decoding alone: base and adapter added up once per rollout, so that each layer is one product a token.

Beside the base, which is only read. Responses are then drawn from a distribution that differs from the training
forward's by rounding; what a rollout learns from are log-probabilities that the training forward computes again.
"""

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from peft.tuners.lora import Linear as Lora
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from lora_rlhf.model import lora_linear
from lora_rlhf.model.dense import GIB, SHARE, free_bytes, matrix
from lora_rlhf.model.lora_linear import wrapped_layers
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError

log = logging.getLogger("lora_rlhf")

DecodeChoice = Literal["auto", "merged", "adapter"]
GPU_SHARE = 0.5  # of what was left free at the largest step


@contextmanager
def merged(model: SharedModel) -> Iterator[None]:
    """Inside, forward passes of the active role multiply by W + scale B A. To be entered inside its `role` block.

    Their memory is given back at its end, for the update; a CUDA graph that was recorded inside is void then.
    RuntimeError for a forward pass of another role, or with gradients.
    """
    if model.active_role is None:
        raise RuntimeError("merged weights are those of one role: enter its block first")
    layers = _layers(model)
    try:
        for layer in layers:
            layer.forward = functools.partial(_forward, model, model.active_role, layer.base_layer, _summed(layer))
        yield
    finally:
        for layer in layers:
            lora_linear.take_over(layer)


def choose_merged(model: SharedModel, choice: DecodeChoice = "auto") -> bool:
    """Whether to decode with merged weights. On a GPU to be asked after the largest steps have been rehearsed.

    "auto" takes them where the copy fits: into a quarter of free memory on a CPU, on a GPU into half of what was left
    free at the largest step so far. UserError for "merged" with layers that cannot be added up (8 bits, Conv1D).
    """
    layers = _layers(model)
    possible = model.peft is not None and len(layers) == sum(isinstance(m, LoraLayer) for m in model.peft.modules())
    if choice == "merged" and not possible:
        raise UserError(
            f"decode_weights is merged, but the layers of {model.base.spec.name!r} in {model.base.spec.quantization} "
            "cannot be added up with an adapter; take --decode_weights adapter, or --quantization nf4"
        )
    if choice != "auto" or not possible:
        return choice == "merged"
    needed = sum(layer.in_features * layer.out_features for layer in layers) * model.causal.dtype.itemsize
    if model.device.type == "cuda":
        held = torch.cuda.memory_reserved(model.device) - torch.cuda.max_memory_allocated(model.device)
        free, share = torch.cuda.mem_get_info(model.device)[0] + held, GPU_SHARE
    else:
        free, share = free_bytes(model.device), SHARE
    fits = needed <= share * free
    how = "merged weights" if fits else "the adapter"
    log.info("decoding with %s: a copy takes %.2f GiB of %.1f free (decode_weights)", how, needed / GIB, free / GIB)
    return fits


def _layers(model: SharedModel) -> list[Lora]:
    return [] if model.peft is None else wrapped_layers(model.peft)


@torch.no_grad()
def _summed(layer: Lora) -> Tensor:
    """W + scale B A of the active adapter, added in float32, in W's dtype."""
    weight = matrix(layer.base_layer)
    adapter = layer.active_adapters[0]
    if layer.disable_adapters or adapter not in layer.lora_A:
        return weight
    down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    return torch.addmm(weight.to(up.dtype), up, down, alpha=layer.scaling[adapter]).to(weight.dtype)


def _forward(model: SharedModel, role: str | None, base: nn.Module, weight: Tensor, inputs: Tensor) -> Tensor:
    if model.active_role != role or torch.is_grad_enabled():
        raise RuntimeError(f"merged weights of role {role!r} are for decoding alone, not for {model.active_role!r}")
    assert isinstance(base, nn.Linear)  # a 4-bit one too
    bias = None if base.bias is None else base.bias.to(weight.dtype)
    return functional.linear(inputs.to(weight.dtype), weight, bias).to(inputs.dtype)
