"""Common graphics cards, with the figures that a roofline needs, from the makers' data sheets."""

from dataclasses import dataclass, replace

import torch

from lora_rlhf.plan.config import PlanConfig
from lora_rlhf.system.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A graphics card: memory in GiB, bandwidth in GB/s, dense 16-bit TFLOP/s with float32 sums."""

    name: str
    gib: float
    bandwidth: float
    tflops: float


CARDS = (
    Card("RTX 2060", 6, 336, 26),
    Card("RTX 4060", 8, 272, 30),
    Card("RTX 3060", 12, 360, 25),
    Card("RTX 4060 Ti 16 GB", 16, 288, 44),
    Card("RTX 3090", 24, 936, 71),
    Card("RTX A6000", 48, 768, 155),
)
LARGEST = CARDS[-1]


def find_card(config: PlanConfig) -> Card:
    """A card with the given memory, or with that of this machine's GPU. Raises UserError if there is neither."""
    gib = config.gpu_gib
    if gib is None and torch.cuda.is_available():
        gib = torch.cuda.get_device_properties(0).total_memory / GIB
    if gib is None:
        raise UserError("there is no GPU here to plan for: give a card's memory with --gpu_gib, for example 16")
    nearest = min(CARDS, key=lambda card: abs(card.gib - gib))
    return replace(
        nearest,
        gib=gib,
        bandwidth=config.bandwidth or nearest.bandwidth,
        tflops=config.tflops or nearest.tflops,
    )
