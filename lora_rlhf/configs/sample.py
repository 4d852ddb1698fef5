"""What a person can choose when responses are sampled to be ranked."""

from dataclasses import dataclass, field
from typing import Literal

from lora_rlhf.configs.catalogue import SFT, WriterRole
from lora_rlhf.configs.common import StageConfig
from lora_rlhf.configs.marks import ENGINE, input_file
from lora_rlhf.configs.values import at_least, positive


@dataclass(frozen=True, kw_only=True)
class SampleConfig(StageConfig):
    """K responses per prompt from a stage, ready to be ranked."""

    prompts: str = field(metadata=input_file())
    """File or hub dataset of prompts."""
    to: str
    """JSONL file to write: one row per prompt, with its distinct responses."""
    deduplicate: Literal["exact", "prefix", "none"] = "exact"
    """Which repeated prompts to leave out; prefix: also those with a long beginning in common (InstructGPT, 3.2)."""
    role: WriterRole = SFT.role
    """Which model writes the responses."""
    min_responses: int = 4
    """Fewest distinct responses; prompts that yield fewer are left out and counted."""
    max_responses: int = 9
    """Most responses; each prompt's K is drawn evenly between the two (InstructGPT: 4 to 9)."""
    temperature: float = 1.0
    """Sampling temperature."""
    engine: Literal["auto", "plain", "static"] = field(default="auto", metadata=ENGINE)
    """How responses are generated: in batches (plain), in slots that are refilled (static), or the faster (auto)."""

    def faults(self) -> list[str]:
        wrong = self.max_responses < self.min_responses
        return [
            *super().faults(),
            *at_least(self, 2, "min_responses"),
            *positive(self, "temperature"),
            *([f"max_responses {self.max_responses} is below min_responses {self.min_responses}"] if wrong else []),
        ]
