"""Merged weights for decoding: base and adapter are added once per rollout, so that each layer is one product a token.

They stand beside the base, which is only read. Responses are then drawn from a distribution that differs from the
training forward's by rounding. What a rollout learns from are log-probabilities that the training forward computes
again.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from lora_rlhf.model.adapted_linear import LinearMode, active_adapter, layers_with_weight_matrix
from lora_rlhf.model.decode_step import Kept
from lora_rlhf.model.dense import FREE_SHARE, GIB, apply_linear, free_bytes, weight_matrix
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError

log = logging.getLogger("lora_rlhf")

DecodeChoice = Literal["auto", "merged", "adapter"]
GPU_SHARE = 0.5  # of the memory that was free at the largest step


class MergedWeights(LinearMode):
    """The mode in which each layer multiplies by a copy of W + scale B A of its active adapter."""

    def __init__(self, peft: PeftModel | None) -> None:
        layers = [] if peft is None else layers_with_weight_matrix(peft)
        self._weights = {layer: _merge_weight(layer) for layer in layers}

    def write_again(self) -> None:
        """Merges the active adapters as they are now, in place: a captured CUDA graph goes on reading them."""
        for layer, weight in self._weights.items():
            if active_adapter(layer) is not None:  # else it is the base's own
                weight.copy_(_merge_weight(layer))

    def before_pass(self, inputs: tuple[Any, ...], keyword_inputs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            raise RuntimeError("merged weights are for decoding alone: gradients need the adapter apart from the base")

    def forward(self, layer: LoraLayer, inputs: Tensor) -> Tensor:
        weight = self._weights.get(layer)
        if weight is None:
            return super().forward(layer, inputs)
        return apply_linear(inputs, weight, layer.base_layer.bias)


@contextmanager
def use_merged_weights(model: SharedModel, kept: Kept | None = None) -> Iterator[None]:
    """Inside, forward passes of the active role multiply by W + scale B A. Enter it inside the `role` block.

    An inner block of another role or mixture computes as always. The end frees the copy, with captured CUDA graphs that
    read it, unless it is kept: then the next block of the same role writes it again. RuntimeError for a forward pass
    with gradients.
    """
    if model.active_role is None:
        raise RuntimeError("merged weights are those of one role: enter its block first")
    weights = kept.weights if kept is not None else None
    if isinstance(weights, MergedWeights):
        weights.write_again()
    else:
        weights = MergedWeights(model.peft)
        if kept is not None:
            kept.weights = weights
    with model.in_mode(weights):
        yield


@contextmanager
def run_role(model: SharedModel, role: str, has_merged_weights: bool, kept: Kept | None = None) -> Iterator[None]:
    """A block of this role without gradients, with its weights merged or with its adapter apart."""
    weights = use_merged_weights(model, kept) if has_merged_weights else nullcontext()
    with model.role(role), weights, torch.no_grad():
        yield


def fits_beside_largest_step(device: torch.device, size: float) -> bool:
    """Whether so many bytes of a GPU fit into half of what was free at the largest step so far."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.max_memory_allocated(device)
    return size <= GPU_SHARE * (torch.cuda.mem_get_info(device)[0] + unused)


def choose_merged_weights(model: SharedModel, choice: DecodeChoice = "auto") -> bool:
    """Whether to decode with merged weights. On a GPU, call it after a trial of the largest steps.

    "auto" is True if the copy fits: into a quarter of free memory on a CPU, on a GPU into half of the memory that was
    free at the largest step so far. UserError for "merged" with layers that cannot be merged (8 bits, Conv1D).
    """
    layers = [] if model.peft is None else layers_with_weight_matrix(model.peft)
    can_merge = model.peft is not None and len(layers) == sum(isinstance(m, LoraLayer) for m in model.peft.modules())
    if choice == "merged" and not can_merge:
        raise UserError(
            f"decode_weights is merged, but the layers of {model.base.spec.name!r} in {model.base.spec.quantization} "
            "cannot be added up with an adapter; take --decode_weights adapter, or --quantization nf4"
        )
    if choice != "auto" or not can_merge:
        return choice == "merged"
    copy_bytes = sum(layer.in_features * layer.out_features for layer in layers) * model.causal.dtype.itemsize
    if model.device.type == "cuda":
        has_memory = fits_beside_largest_step(model.device, copy_bytes)
    else:
        has_memory = copy_bytes <= FREE_SHARE * free_bytes(model.device)
    weights = "merged weights" if has_memory else "the adapter"
    log.debug("decoding with %s: a copy takes %.2f GiB (decode_weights)", weights, copy_bytes / GIB)
    return has_memory


@torch.no_grad()
def _merge_weight(layer: LoraLayer) -> Tensor:
    """W + scale B A of the active adapter, added in float32, in W's dtype."""
    weight, adapter = weight_matrix(layer.base_layer), active_adapter(layer)
    if adapter is None:
        return weight
    down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    return torch.addmm(weight.to(up.dtype), up, down, alpha=layer.scaling[adapter]).to(weight.dtype)
