"""How far one model's next-token distributions are from another model's, at the same positions."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS_AT_A_TIME = 32  # positions, in float64


@dataclass(frozen=True)
class Closeness:
    """Sums over positions; the sums of batches are added.

    kl: sum of KL(trained || other) in nats. squared, values: sum of squared differences of logits, and their number.
    largest: the largest difference of logits. same_top: positions where both have the same most probable token.
    """

    tokens: int = 0
    kl: float = 0.0
    squared: float = 0.0
    values: int = 0
    largest: float = 0.0
    same_top: int = 0

    def __add__(self, other: "Closeness") -> "Closeness":
        return Closeness(
            self.tokens + other.tokens,
            self.kl + other.kl,
            self.squared + other.squared,
            self.values + other.values,
            max(self.largest, other.largest),
            self.same_top + other.same_top,
        )

    def figures(self) -> dict[str, float]:
        """Per token: KL in nats, share with the same most probable token; over logits: root mean square, largest."""
        return {
            "kl_per_token": self.kl / self.tokens,
            "top1_agreement": self.same_top / self.tokens,
            "rms_logit_error": math.sqrt(self.squared / self.values),
            "max_logit_error": self.largest,
        }


@torch.no_grad()
def measure_closeness(trained_logits: Tensor, other_logits: Tensor) -> Closeness:
    """The closeness of two models, from their logits (N, V) at the same positions. Computed in float64."""
    if trained_logits.shape != other_logits.shape:
        raise ValueError(f"logits are {tuple(trained_logits.shape)} and {tuple(other_logits.shape)}")
    total = Closeness()
    for first in range(0, len(trained_logits), ROWS_AT_A_TIME):
        p_logits, q_logits = (
            logits[first : first + ROWS_AT_A_TIME].double() for logits in (trained_logits, other_logits)
        )
        difference = p_logits - q_logits
        log_p, log_q = p_logits.log_softmax(dim=-1), q_logits.log_softmax(dim=-1)
        total += Closeness(
            tokens=len(p_logits),
            # a KL is never below 0; rounding could make it so if both are almost equal
            kl=(log_p.exp() * (log_p - log_q)).sum(dim=-1).clamp(min=0).sum().item(),
            squared=difference.square().sum().item(),
            values=difference.numel(),
            largest=difference.abs().max().item(),
            same_top=int((p_logits.argmax(dim=-1) == q_logits.argmax(dim=-1)).sum().item()),
        )
    return total


def common_prefix_length(response: list[int], other_response: list[int]) -> int:
    """How many tokens at the beginning of two responses are equal."""
    pairs = enumerate(zip(response, other_response, strict=False))
    return next(
        (i for i, (token, other_token) in pairs if token != other_token), min(len(response), len(other_response))
    )
