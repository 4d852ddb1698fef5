"""How far one model's next-token distributions are from another's, over the same positions."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 32  # positions that are in float64 at a time


@dataclass(frozen=True)
class Closeness:
    """Sums over positions, which add up over batches.

    kl: sum of KL(trained || other) in nats. squared, values: squared differences of logits, and how many there were.
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
def closeness(trained: Tensor, other: Tensor) -> Closeness:
    """Logits (N, V) of the trained model and of another at the same positions. Summed in float64."""
    if trained.shape != other.shape:
        raise ValueError(f"logits are {tuple(trained.shape)} and {tuple(other.shape)}")
    total = Closeness()
    for first in range(0, len(trained), ROWS):
        p_logits, q_logits = (logits[first : first + ROWS].double() for logits in (trained, other))
        difference = p_logits - q_logits
        log_p, log_q = p_logits.log_softmax(dim=-1), q_logits.log_softmax(dim=-1)
        total += Closeness(
            tokens=len(p_logits),
            # the sum is never below 0, but for rounding where both are all but equal
            kl=(log_p.exp() * (log_p - log_q)).sum(dim=-1).clamp(min=0).sum().item(),
            squared=difference.square().sum().item(),
            values=difference.numel(),
            largest=difference.abs().max().item(),
            same_top=int((p_logits.argmax(dim=-1) == q_logits.argmax(dim=-1)).sum().item()),
        )
    return total


def same_beginning(response: list[int], other: list[int]) -> int:
    """How many tokens two responses have in common before the first that differs."""
    pairs = enumerate(zip(response, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(response), len(other)))
