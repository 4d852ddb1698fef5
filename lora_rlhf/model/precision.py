"""How far two passes over the same text may be apart, by what the base computes in and never by the device.

In float32 only the order of summation differs. In 16 bits another shape of a batch means other kernels and other
padding, and each rounds otherwise. Measured on an RTX 4090 in bfloat16, where the same tokens were scored twice in
batches of other shapes: mean 0.02 to 0.04 nats, but single tokens of 4,000 were off by 0.4 to 1.6; in float16 by 0.06,
in float32 by 1e-4 (github.com/GuoCheng24/batch-logprob-gap). The same rows in the same grouping gave the same bits. So
a maximum over many tokens says nothing, unless both passes had the same rows in the same grouping.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lora_rlhf.model.shared import SharedModel


@dataclass(frozen=True)
class Rounding:
    """Differences of log-probabilities, in nats, that rounding can cause.

    same_rows: the largest, between passes over the same rows in the same grouping. mean: the mean absolute one, between
    passes in other groupings. few_tokens: the largest over a few dozen probable tokens of random texts, in passes of
    other shapes.
    """

    same_rows: float
    mean: float
    few_tokens: float


# few_tokens: rounding made less than 1e-4 in float32, and in 16 bits up to 0.15 in the tiny world's base and 0.35 in 8
# layers of large random weights. Documents or rows that saw each other's tokens made 1 and more. same_rows: float16 has
# three bits more than bfloat16; live dropout in the first iteration of the tiny world made 0.0065 in it.
FLOAT32 = Rounding(same_rows=1e-4, mean=2e-5, few_tokens=1e-3)
FLOAT16 = Rounding(same_rows=2e-3, mean=0.01, few_tokens=0.5)
BFLOAT16 = Rounding(same_rows=1e-2, mean=0.05, few_tokens=0.5)
# A state that sampling advances token by token, and training computes in chunks: 2e-4 to 7e-4 on average in Nemotron-H
# and Zamba2.
STATE_SPACE = Rounding(same_rows=1e-4, mean=3e-4, few_tokens=1e-3)
ROUNDINGS = {torch.float32: FLOAT32, torch.float16: FLOAT16, torch.bfloat16: BFLOAT16}


def expected_rounding(model: SharedModel) -> Rounding:
    """The rounding of the base's dtype; bfloat16's for int8, which rounds inputs to 8 bits in any dtype.

    In float32 state spaces round more than attention; transformers names the decay of their state A_log.
    """
    if model.base.spec.quantization == "int8":
        return BFLOAT16
    has_state_space = any(name.endswith("A_log") for name, _ in model.causal.named_parameters())
    return STATE_SPACE if has_state_space and model.causal.dtype == torch.float32 else ROUNDINGS[model.causal.dtype]


def largest_difference(first: Tensor, second: Tensor) -> float:
    """The largest absolute difference; infinite if one of both is not a number."""
    return float((first - second).abs().nan_to_num(nan=torch.inf).max())
