"""Graphics cards, with the figures that a roofline needs, from their makers' documents."""

import re
from dataclasses import dataclass, replace
from typing import Any

import torch

from lora_rlhf.plan.config import PlanConfig
from lora_rlhf.system.errors import UserError

GIB, MIB = 2**30, 2**20
OWN_CONTEXT = 512 * MIB  # what asking a GPU takes of its free memory, and what a run takes in the same way

TURING = "NVIDIA Turing GPU Architecture, WP-09183"
AMPERE = "NVIDIA Ampere GA102 GPU Architecture, V2"
ADA = "NVIDIA Ada GPU Architecture, V2"
BLACKWELL = "NVIDIA RTX Blackwell GPU Architecture, V1.1"
SHEET = "data sheet"


@dataclass(frozen=True)
class Card:
    """A graphics card: memory in GiB, bandwidth in GB/s, and dense TFLOP/s.

    tflops: of 16-bit products with float32 sums. float32_tflops: of plain float32 products, without TF32.
    capability: CUDA's compute capability. source: the maker's document.
    """

    name: str
    gib: float
    bandwidth: float
    tflops: float
    float32_tflops: float
    capability: float
    source: str

    @property
    def has_hbm(self) -> bool:
        """Whether it is one of a data centre with stacked memory, on which a 4-bit weight is soon dequantized first."""
        return self.capability in (7.0, 8.0, 9.0, 10.0)

    @property
    def workspace_bytes(self) -> int:
        """cuBLAS's workspace of each handle and stream, as PyTorch sets it."""
        return (32 if self.capability in (9.0, 10.0) else 8) * MIB


CARDS = (
    Card("RTX 2060", 6, 336, 26, 6.5, 7.5, TURING),
    Card("RTX 2070", 8, 448, 30, 7.5, 7.5, TURING),
    Card("RTX 2080 Ti", 11, 616, 54, 13.4, 7.5, TURING),
    Card("RTX 3060", 12, 360, 25, 12.7, 8.6, SHEET),
    Card("RTX 3060 Ti", 8, 448, 32, 16.2, 8.6, SHEET),
    Card("RTX 3070", 8, 448, 40.6, 20.3, 8.6, AMPERE),
    Card("RTX 3080", 10, 760, 59.5, 29.8, 8.6, AMPERE),
    Card("RTX 3090", 24, 936, 71, 35.6, 8.6, AMPERE),
    Card("RTX 3090 Ti", 24, 1008, 80, 40, 8.6, SHEET),
    Card("RTX 4060", 8, 272, 30, 15.1, 8.9, SHEET),
    Card("RTX 4060 Ti", 16, 288, 44, 22.1, 8.9, ADA),
    Card("RTX 4070", 12, 504, 58.3, 29.1, 8.9, ADA),
    Card("RTX 4070 Ti", 12, 504, 80.2, 40.1, 8.9, ADA),
    Card("RTX 4080", 16, 717, 97.5, 48.7, 8.9, ADA),
    Card("RTX 4090", 24, 1008, 165, 82.6, 8.9, ADA),
    Card("RTX 5060 Ti", 16, 448, 47.4, 23.7, 12.0, SHEET),
    Card("RTX 5070", 12, 672, 61.7, 30.9, 12.0, BLACKWELL),
    Card("RTX 5070 Ti", 16, 896, 87.9, 43.9, 12.0, BLACKWELL),
    Card("RTX 5080", 16, 960, 112.6, 56.3, 12.0, BLACKWELL),
    Card("RTX 5090", 32, 1792, 209.5, 104.8, 12.0, BLACKWELL),
    Card("T4", 15, 320, 65, 8.1, 7.5, SHEET),
    Card("V100", 16, 900, 125, 15.7, 7.0, SHEET),
    Card("A10", 22, 600, 125, 31.2, 8.6, SHEET),
    Card("A10G", 22, 600, 70, 35, 8.6, SHEET),
    Card("L4", 22, 300, 121, 30.3, 8.9, SHEET),
    Card("L40S", 45, 864, 362, 91.6, 8.9, SHEET),
    Card("RTX A6000", 48, 768, 155, 38.7, 8.6, AMPERE),
    Card("RTX 6000 Ada", 48, 960, 364, 91.1, 8.9, SHEET),
    Card("A100", 40, 1555, 312, 19.5, 8.0, SHEET),
    Card("A100 80 GB", 80, 2039, 312, 19.5, 8.0, SHEET),
    Card("H100", 80, 3350, 989, 67, 9.0, SHEET),
    Card("H100 PCIe", 80, 2000, 756, 51, 9.0, SHEET),
    Card("H200", 140, 4800, 989, 67, 9.0, SHEET),
)
BY_NAME = {card.name: card for card in CARDS}
# one of each size: what a plan with a size alone is for, and the columns of the table of models
COMMON = tuple(BY_NAME[f"RTX {name}"] for name in ("2060", "4060", "3060", "4060 Ti", "3090", "A6000"))
# parts of a driver's name for a card that say nothing of its speed
SILENT_WORDS = re.compile(r"nvidia|geforce|tesla|quadro|rtx|generation|sxm\d?|hbm\d?e?|nvl|\d+\s*gb|gb|[\s_-]")


def find_card(config: PlanConfig) -> Card:
    """The named card, this machine's GPU with its free memory, or a common card of the given memory.

    UserError for a name that is not in the table, and where neither name nor memory is given and there is no GPU.
    """
    if config.card is not None:
        card = find_by_name(config.card)
        if card is None:
            known = ", ".join(BY_NAME)
            raise UserError(
                f"card {config.card!r} is not known here; known are {known}; others by --gpu_gib, --bandwidth and "
                "--tflops"
            )
        gib = config.gpu_gib or card.gib
    elif config.gpu_gib is not None:
        gib = config.gpu_gib
        card = _nearest(gib)
    elif torch.cuda.is_available():
        card, gib = _card_here()
    else:
        raise UserError("there is no GPU here to plan for: name a card, --card 4090, or its memory, --gpu_gib 16")
    return replace(
        card,
        gib=gib,
        bandwidth=config.bandwidth or card.bandwidth,
        tflops=config.tflops or card.tflops,
        float32_tflops=card.float32_tflops * (config.tflops or card.tflops) / card.tflops,
    )


def find_by_name(name: str) -> Card | None:
    """The card of that name, as a person or a driver writes it; None for one that is not in the table.

    A laptop's card is another one: it has less bandwidth and fewer units.
    """
    if re.search(r"a100.*80\s*gb", name.lower()):
        return BY_NAME["A100 80 GB"]
    by_key = {_key(card.name): card for card in CARDS if card.name != "A100 80 GB"}
    return by_key.get(_key(name)) or by_key.get(_key(name).removesuffix("pcie"))


def _key(name: str) -> str:
    """What tells a card's name from another's: "NVIDIA GeForce RTX 4060 Ti" is 4060ti."""
    return SILENT_WORDS.sub("", name.lower())


def _nearest(gib: float) -> Card:
    return min(COMMON, key=lambda card: abs(card.gib - gib))


def _card_here() -> tuple[Card, float]:
    """This machine's GPU, and the GiB of it that a run can have: what others hold of it is left out."""
    properties, (free, total) = torch.cuda.get_device_properties(0), torch.cuda.mem_get_info(0)
    card = find_by_name(properties.name) or _card_of_clocks(properties)
    return card, min(free + OWN_CONTEXT, total) / GIB


def _card_of_clocks(properties: Any) -> Card:
    """A card that the table does not have, by its clocks, bus and units: two transfers a clock, two FLOP a unit."""
    capability = float(f"{properties.major}.{properties.minor}")
    units = properties.multi_processor_count * (128 if capability >= 8.6 and capability != 10.0 else 64)
    float32_tflops = 2 * units * properties.clock_rate * 1e3 / 1e12
    bandwidth = 2 * properties.memory_clock_rate * 1e3 * properties.memory_bus_width / 8 / 1e9
    gib = properties.total_memory / GIB
    return Card(properties.name, gib, bandwidth, 2 * float32_tflops, float32_tflops, capability, "its clocks")
