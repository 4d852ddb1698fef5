"""The settings of `lora-rlhf plan`."""

from dataclasses import dataclass
from typing import Literal

from lora_rlhf.configs.catalogue import StageName
from lora_rlhf.configs.values import at_least, multiple, positive


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Memory and time of each stage from a model's config alone, and the flags to use on a card."""

    model: str | None = None
    """A folder with a config.json, a hub name, a name of the table, or tinyworld. No weights are read."""
    card: str | None = None
    """A card by its name: 4090, "RTX 3060", T4; this machine's GPU unless given."""
    gpu_gib: float | None = None
    """The card's memory in GiB; the named card's, or what is free on this machine's GPU, unless given."""
    stage: StageName | None = None
    """Plan this stage alone; all stages of a run unless given."""
    table: bool = False
    """Popular models on cards of 6 to 48 GiB instead of one model."""
    json: bool = False
    """Print the plan as JSON."""
    device: Literal["cuda", "cpu"] = "cuda"
    """cpu: the memory of a run on the CPU, in float32."""
    quantization: Literal["nf4", "none"] = "nf4"
    """How the frozen base is held."""
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16, and float32 on a CPU."""
    lora_rank: int = 16
    """Rank of every adapter."""
    lora_targets: tuple[str, ...] = ("all-linear",)
    """Layers with an adapter, as for sft."""
    max_prompt_tokens: int = 256
    """Longest prompt."""
    max_response_tokens: int = 256
    """Longest response."""
    batch_size: int = 64
    """Responses sampled per PPO iteration."""
    minibatch_size: int = 32
    """Responses in one optimizer step."""
    num_epochs: int = 2
    """Passes over an iteration's responses."""
    micro_batch_size: int | None = None
    """Responses in one forward pass; the fastest number that fits unless given."""
    generation_batch_size: int | None = None
    """Responses generated at a time; the fastest number that fits unless given."""
    gradient_checkpointing: bool | None = None
    """Compute activations again in the backward pass; only if it is needed unless given."""
    advantage: Literal["gae", "rloo", "grpo", "dr_grpo", "reinforce"] | None = None
    """Unless given: gae, which needs a value role, if it fits, else rloo."""
    bandwidth: float | None = None
    """The card's memory bandwidth in GB/s; that of the named card, or of a common one of its size, unless given."""
    tflops: float | None = None
    """The card's dense 16-bit TFLOP/s; those of the named card, or of a common one of its size, unless given."""
    trust_remote_code: bool = False
    """Run the model's own code. Only for authors that you trust."""

    def faults(self) -> list[str]:
        """The errors in these values, as texts."""
        return [
            *([] if self.model or self.table else ["give --model, or --table for popular ones"]),
            *(["give --model or --table, not both"] if self.model and self.table else []),
            *(["--table is of ppo: leave --stage out"] if self.stage and self.table else []),
            *(["--table has cards of its own: leave --card out"] if self.card and self.table else []),
            *positive(self, "gpu_gib", "bandwidth", "tflops"),
            *at_least(self, 1, "lora_rank", "max_prompt_tokens", "batch_size", "minibatch_size", "num_epochs"),
            *at_least(self, 2, "max_response_tokens"),
            *at_least(self, 1, *(name for name in OPTIONAL if getattr(self, name) is not None)),
            *multiple(self, "batch_size", "minibatch_size"),
        ]


OPTIONAL = ("micro_batch_size", "generation_batch_size")
