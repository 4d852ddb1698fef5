"""The settings of `lora-rlhf chat`."""

import math
from dataclasses import dataclass
from typing import Literal

from lora_rlhf.configs.catalogue import ChatRole
from lora_rlhf.configs.values import at_least, device_faults

MOST_SEED = 10**12


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """Talk to a model in the terminal. /help lists the commands there. Ctrl-C stops an answer."""

    folder: str
    """A run, or a merged export of one."""
    role: ChatRole = "auto"
    """Which model of a run answers. auto: the one of its newest stage. An export has one model only."""
    system: str | None = None
    """A system message."""
    temperature: float = 0.7
    """1 samples as training does, lower is more certain, 0 takes the most probable token each time."""
    seed: int = 0
    """The same seed and the same questions give the same answers."""
    max_response_tokens: int = 512
    """Longest answer; at most half of the model's context."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dequantize: Literal["auto", "always", "never"] = "auto"
    """Keep a run's 4-bit base dequantised as well: more memory, less time. auto: on a CPU with memory to spare."""
    trust_remote_code: bool = False
    """Run the model's own code. Only for authors that you trust."""

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        is_valid = math.isfinite(self.temperature) and self.temperature >= 0
        return [
            *([] if is_valid else [f"temperature is {self.temperature}, must be at least 0"]),
            *at_least(self, 1, "max_response_tokens"),
            *device_faults(self),
            *([] if 0 <= self.seed < MOST_SEED else [f"seed is {self.seed}, must be from 0 to {MOST_SEED - 1}"]),
        ]
