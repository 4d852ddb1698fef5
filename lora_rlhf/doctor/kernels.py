"""The 4-bit kernels: a small layer computes on each device, and its results are compared with plain float32."""

import logging
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_rlhf.doctor.findings import Finding, Status

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


def try_4bit(device: str) -> Trial:
    """Computes with a quantized layer on a device. What bitsandbytes or the driver raises passes through."""
    import torch

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it advises to install what is not needed here
    from bitsandbytes import functional
    from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary, lib
    from bitsandbytes.nn import Linear4bit, Params4bit

    dtype = _dtype(device)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(SIZE, SIZE, generator=generator)
    inputs, gradient = (torch.randn(TOKENS, SIZE, generator=generator) for _ in range(2))
    layer = Linear4bit(SIZE, SIZE, bias=False, compute_dtype=dtype, quant_type="nf4")
    layer.weight = Params4bit(weight.clone(), requires_grad=False, quant_type="nf4")
    layer.to(device)
    layer.support_avx512bf16_for_cpu = False  # as `model/base.py` does when it loads a base
    stored = layer.weight.data.clone()

    restored = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float().cpu()
    blocks = (restored - weight).abs().view(-1, BLOCK).amax(1) / weight.abs().view(-1, BLOCK).amax(1)
    device_inputs = inputs.to(device, dtype).requires_grad_()
    result = layer(device_inputs)
    result.backward(gradient.to(device, dtype))
    assert device_inputs.grad is not None  # backward fills it or raises
    with torch.no_grad():
        single = layer.eval()(inputs[:1].to(device, dtype))
    return Trial(
        str(dtype).removeprefix("torch."),
        blocks.max().item(),
        _error(result, inputs @ restored.T),
        _error(device_inputs.grad, gradient @ restored),
        _error(single, inputs[:1] @ restored.T),
        _milliseconds(layer.train(), device_inputs, device),
        torch.equal(stored, layer.weight.data),
        not isinstance(lib, ErrorHandlerMockBNBNativeLibrary),
        device == "cpu" and bool(functional.has_avx512bf16()),
    )


def judge_4bit(device: str, trial: Trial | None, fault: str = "", needed: bool = True) -> Finding:
    """Whether 4-bit layers work on a device. `fault`: why there is no trial; `needed`: whether a run uses it."""
    check = f"4-bit {device}"
    severity: Status = "problem" if needed else "note"
    if trial is None:
        advice = "`python -m bitsandbytes` says more; --quantization none does without 4-bit layers"
        return Finding(check, severity, f"does not work: {fault}", advice, {"fault": fault})
    errors = (trial.forward, trial.backward, trial.single)
    largest = max(errors)
    agree = f"agree with float32 to {largest:.1e}" if largest else "are equal to those of float32"
    text = (
        f"NF4 layer in {trial.dtype}: forward and backward {agree}; {trial.milliseconds:.1f} ms for {TOKENS} tokens "
        f"through {SIZE} x {SIZE}"
    )
    values = dict(vars(trial))
    correct = trial.rounding <= MAX_ROUNDING and all(error <= TOLERANCE[trial.dtype] for error in errors)
    if not correct:  # also for NaN, which fails every comparison
        errors_text = (
            f"gives wrong results: errors of {trial.rounding:.1e} in the weights, {trial.forward:.1e} forward, "
            f"{trial.backward:.1e} backward, {trial.single:.1e} for a single token"
        )
        advice = "install the tested bitsandbytes and PyTorch (above), or use --quantization none"
        return Finding(check, severity, errors_text, advice, values)
    if not trial.kept:
        advice = "install the tested bitsandbytes; until then use --quantization none"
        return Finding(check, severity, "the frozen weights changed while they were used", advice, values)
    if trial.repacks:
        text += "; bitsandbytes would repack weights for this CPU's AVX512-BF16, which is switched off here"
    if not trial.own_library:
        advice = "bitsandbytes' own library did not load, and PyTorch's slower code is used: `python -m bitsandbytes`"
        return Finding(check, "note", text, advice, values)
    return Finding(check, "ok", text, values=values)


def _dtype(device: str) -> "torch.dtype":
    """The default compute dtype of a base on that device."""
    import torch

    if device == "cpu":
        return torch.float32
    with torch.cuda.device(device):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _error(result: "Tensor", correct: "Tensor") -> float:
    return ((result.detach().float().cpu() - correct).abs().max() / correct.abs().max()).item()


def _milliseconds(layer: "torch.nn.Module", inputs: "Tensor", device: str) -> float:
    """Median time of one forward and backward."""
    import torch

    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        layer(inputs).sum().backward()
        if device != "cpu":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)
