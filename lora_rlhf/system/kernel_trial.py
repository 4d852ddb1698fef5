"""A small 4-bit layer computes on a device, and its results are compared with plain float32."""

import logging
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SIZE = 1024  # rows and columns of the weight
TOKENS = 32
REPEATS = 5
BLOCK = 64  # weights that share a scale
# The largest gap between neighbouring values of NF4 is 0.304, so no weight moves by more than 0.152 times the largest
# of its block. The scales are quantized too, in 8 bits, which adds a little.
MAX_ROUNDING = 0.2
# Largest error of a product, as a share of the largest product; bfloat16 keeps 8 bits of each factor, float16 11.
TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 1e-2}


@dataclass(frozen=True)
class Trial:
    """Errors of the 4-bit layer, as shares of the largest correct value; `rounding` is that of the weights.

    `forward`, `backward`: 32 tokens in training; `single`: one token in evaluation, which takes another kernel.
    """

    dtype: str
    rounding: float
    forward: float
    backward: float
    single: float
    milliseconds: float
    kept: bool  # the bytes of the weights are the same before and after
    own_library: bool  # bitsandbytes computes with its own compiled code
    repacks: bool  # bitsandbytes would rewrite the weights on this CPU

    @property
    def largest_error(self) -> float:
        return max(self.forward, self.backward, self.single)

    @property
    def is_correct(self) -> bool:
        """Whether all errors are those of rounding. NaN, which fails every comparison, is not correct."""
        errors = (self.forward, self.backward, self.single)
        return self.rounding <= MAX_ROUNDING and all(error <= TOLERANCE[self.dtype] for error in errors)


def find_missing_code(
    name: str, capability: tuple[int, int], architectures: Sequence[str], toolkit: str | None
) -> str | None:
    """Why the installed PyTorch has no code for a GPU, and what to install; None if it has, or does not say.

    architectures: what it was built for, such as sm_75 (code for 7.5 to 7.9) and compute_120 (for 12.0 and later).
    """
    built = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", architecture) for architecture in architectures]
    if not built or None in built:  # AMD's have other names
        return None
    major, minor = capability
    for kind, built_major, built_minor in (match.groups() for match in built if match):
        version = (int(built_major), int(built_minor))
        if version <= capability and (kind == "compute" or version[0] == major):
            return None
    return (
        f"{name} has compute capability {major}.{minor}, for which this PyTorch (CUDA {toolkit}) has no code "
        f"({' '.join(architectures)}); PyTorch for CUDA 12.6 is built for 5.0 and later: "
        "https://pytorch.org/get-started/locally"
    )


def try_4bit(device: str) -> Trial:
    """Computes with a quantized layer on a device. Errors of bitsandbytes and of the driver are not caught."""
    import torch

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it advises to install what is not needed here
    from bitsandbytes import functional
    from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary, lib
    from bitsandbytes.nn import Linear4bit, Params4bit

    dtype = _compute_dtype(device)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(SIZE, SIZE, generator=generator)
    inputs, gradient = (torch.randn(TOKENS, SIZE, generator=generator) for _ in range(2))
    layer = Linear4bit(SIZE, SIZE, bias=False, compute_dtype=dtype, quant_type="nf4")
    layer.weight = Params4bit(weight.clone(), requires_grad=False, quant_type="nf4")
    layer.to(device)
    layer.support_avx512bf16_for_cpu = False  # as `model/base.py` does when it loads a base
    stored_bytes = layer.weight.data.clone()

    restored_weight = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float().cpu()
    block_errors = (restored_weight - weight).abs().view(-1, BLOCK).amax(1) / weight.abs().view(-1, BLOCK).amax(1)
    device_inputs = inputs.to(device, dtype).requires_grad_()
    result = layer(device_inputs)
    result.backward(gradient.to(device, dtype))
    assert device_inputs.grad is not None  # backward fills it or raises
    with torch.no_grad():
        single_result = layer.eval()(inputs[:1].to(device, dtype))
    return Trial(
        str(dtype).removeprefix("torch."),
        block_errors.max().item(),
        _largest_relative_error(result, inputs @ restored_weight.T),
        _largest_relative_error(device_inputs.grad, gradient @ restored_weight),
        _largest_relative_error(single_result, inputs[:1] @ restored_weight.T),
        _step_milliseconds(layer.train(), device_inputs, device),
        torch.equal(stored_bytes, layer.weight.data),
        not isinstance(lib, ErrorHandlerMockBNBNativeLibrary),
        device == "cpu" and bool(functional.has_avx512bf16()),
    )


def _compute_dtype(device: str) -> "torch.dtype":
    """The default compute dtype of a base on that device."""
    import torch

    if device == "cpu":
        return torch.float32
    with torch.cuda.device(device):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _largest_relative_error(result: "Tensor", correct: "Tensor") -> float:
    """The largest error, as a share of the largest correct value."""
    return ((result.detach().float().cpu() - correct).abs().max() / correct.abs().max()).item()


def _step_milliseconds(layer: "torch.nn.Module", inputs: "Tensor", device: str) -> float:
    """Median time of one forward and backward pass, in milliseconds."""
    import torch

    times = []
    for _ in range(REPEATS):
        start_time = time.perf_counter()
        layer(inputs).sum().backward()
        if device != "cpu":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start_time)
    return 1000 * statistics.median(times)
