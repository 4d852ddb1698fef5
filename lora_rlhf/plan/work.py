"""What the operations of a pass do on a GPU (products, bytes read and written, kernels), and their seconds on a card.

Each operation that PyTorch dispatches takes the longest of three times: of its products, of its memory traffic, and of
starting a kernel. The shares below are usual for such kernels and were not fitted to a GPU.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lora_rlhf.plan.cards import Card

PRODUCTS, TRAFFIC = 0.7, 0.85  # shares of a card's FLOP/s and bandwidth that kernels usually reach
KERNEL = 2e-6  # seconds that any kernel takes
LAUNCH = 7e-6  # seconds to start a kernel from Python, where no CUDA graph is replayed
# Rows up to which bitsandbytes multiplies by a 4-bit weight as it is; it dequantizes the weight first for more. Its own
# limits go by the shape, too (backends/cuda/ops.py, _gemm_4bit_use_custom_cuda): 8 to 320, and less with fast memory.
FUSED_ROWS, FUSED_ROWS_HBM = 64, 16
PACKED, DENSE = 0.5, 2.0  # bytes of a weight in 4 bits with its scales, and in 16 bits

# Operations that start no kernel, and those that move less than what they are given.
WITHOUT_KERNEL = {"detach", "alias", "_unsafe_view", "empty", "empty_like", "new_empty", "empty_strided", "lift_fresh"}
WITHOUT_KERNEL |= {"new_empty_strided", "set_"}
OF_RESULT = {"embedding", "index", "index_select", "gather", "cat", "slice_backward", "zeros", "ones", "full", "fill_"}
OF_RESULT |= {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "arange", "zero_", "searchsorted"}
OF_VALUES = {"index_put", "index_put_", "scatter_", "scatter_add_", "index_copy_", "masked_scatter"}
PRODUCTS_OF_TWO = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1}  # and where the first factor is


class Operation(NamedTuple):
    """One kernel: its FLOP on tensor cores and in float32, the bytes that it moves, and its name.

    weights, rows: of a product with a 4-bit weight, whose bytes are not in `moved`.
    """

    tensor_flops: float
    float32_flops: float
    moved: float
    weights: float
    rows: float
    name: str


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors among arguments or results, in their order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for one in value for tensor in tensors_in(one)]


def operation_of(function: Any, args: Any, inputs: list[Tensor], results: list[Tensor]) -> Operation | None:
    """What an operation does; None if it starts no kernel. inputs: the tensors among all its arguments."""
    space, name = function._schema.name.split("::")
    if space == "prim" or getattr(function, "is_view", False) or name in WITHOUT_KERNEL:
        return None
    if name == "gemm_4bit":
        states, shape = args[0], args[2]
        rows = states.numel() / states.shape[-1]
        weights = math.prod(shape)
        return Operation(2 * rows * weights, 0, _bytes([states, *results]), weights, rows, name)
    if name == "dequantize_4bit":
        return Operation(0, 0, PACKED * results[0].numel() + _bytes(results), 0, 0, name)
    flops = _flops(name, args)
    is_float32 = flops > 0 and inputs[0].dtype == torch.float32
    moved = _moved_bytes(name, args, inputs, results)
    return Operation(0 if is_float32 else flops, flops if is_float32 else 0, moved, 0, 0, name)


def _flops(name: str, args: Any) -> float:
    if name in PRODUCTS_OF_TWO:
        first, second = args[PRODUCTS_OF_TWO[name] : PRODUCTS_OF_TWO[name] + 2]
        return 2.0 * first.numel() * second.shape[-1]
    if name.startswith("_scaled_dot_product"):
        is_backward = name.endswith("_backward")
        query, key = args[1:3] if is_backward else args[:2]
        pairs = query.shape[-2] * key.shape[-2] * (0.5 if query.shape[-2] == key.shape[-2] else 1)
        flops = 4.0 * math.prod(query.shape[:-2]) * pairs * query.shape[-1]
        return 2.5 * flops if is_backward else flops
    return 0.0


def _moved_bytes(name: str, args: Any, inputs: list[Tensor], results: list[Tensor]) -> float:
    if name in OF_RESULT:
        return _bytes(results) * (2 if inputs and name not in ("fill_", "zero_") else 1)
    if name in OF_VALUES:
        return 2 * min(map(_size, [tensor for tensor in inputs if tensor.is_floating_point()] or inputs))
    if name == "copy_":
        return _size(args[0]) + _size(args[1])
    read = _bytes(inputs)
    if name == "_foreach_copy_":  # of both lists
        return read
    if name == "_foreach_mul_":
        return 2 * read
    written = _size(args[0]) if name.endswith("_") and inputs else _bytes(results)
    return read + written


def _bytes(tensors: Sequence[Tensor]) -> float:
    return sum(map(_size, tensors))


def _size(tensor: Tensor) -> float:
    """Bytes of a tensor; of an expanded one those that are there."""
    numbers = math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or size < 2)
    return numbers * tensor.element_size()


@dataclass(frozen=True, eq=False)
class Work:
    """The operations of a pass, each in a line with rows: (n, 5, 2), a start and a slope of `Operation`'s numbers."""

    lines: Tensor

    @classmethod
    def from_operations(cls, rows: int, fewer: list[Operation], more: list[Operation]) -> "Work":
        """From a pass of `rows` rows and the same pass of one row more. ValueError if they are not the same."""
        if [one.name for one in fewer] != [one.name for one in more]:
            raise ValueError(f"a pass of {rows + 1} rows takes other operations than one of {rows} rows")
        low, high = (torch.tensor([one[:5] for one in operations], dtype=torch.float64) for operations in (fewer, more))
        slope = high - low
        return cls(torch.stack([low - rows * slope, slope], dim=-1))

    # of few passes, which live as long as the plan, and whose costs many settings share
    @functools.lru_cache(maxsize=4096)  # noqa: B019
    def cost(self, rows: int, card: Card) -> "Cost":
        """The sums over all kernels, one after the other."""
        tensor_flops, float32_flops, moved, weights, factor_rows = (self.lines[..., 0] + rows * self.lines[..., 1]).T
        is_apart = (weights > 0) & (factor_rows > (FUSED_ROWS_HBM if card.has_hbm else FUSED_ROWS))
        moved = moved + weights * torch.where(is_apart, DENSE, PACKED)
        unpacked = torch.where(is_apart, weights * (PACKED + DENSE), 0.0)
        per_byte = 1 / (card.bandwidth * 1e9 * TRAFFIC)
        products = (tensor_flops / card.tflops + float32_flops / card.float32_tflops) / (1e12 * PRODUCTS)
        seconds = torch.maximum(products, moved * per_byte).clamp(min=KERNEL)
        seconds += torch.where(is_apart, (unpacked * per_byte).clamp(min=KERNEL), 0.0)
        return Cost(
            float(seconds.sum()),
            float(len(weights) + is_apart.sum()),
            float((moved + unpacked).sum()),
            float((tensor_flops + float32_flops).sum()),
        )


@dataclass(frozen=True)
class Cost:
    """What a pass costs on a card: seconds of its kernels, their number, bytes that they move, and FLOP."""

    seconds: float
    kernels: float
    moved: float
    flops: float

    def __add__(self, other: "Cost") -> "Cost":
        kernels, moved = self.kernels + other.kernels, self.moved + other.moved
        return Cost(self.seconds + other.seconds, kernels, moved, self.flops + other.flops)

    def __mul__(self, factor: float) -> "Cost":
        return Cost(self.seconds * factor, self.kernels * factor, self.moved * factor, self.flops * factor)

    @property
    def eager_seconds(self) -> float:
        """Seconds where each kernel is started from Python: no less than that takes."""
        return max(self.seconds, self.kernels * LAUNCH)
