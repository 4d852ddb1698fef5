"""What all stages share in their configurations."""

import re
from dataclasses import dataclass, field
from typing import Literal

from lora_rlhf.configs.marks import COMMON, MOST_USED, NEEDS_TRUST, SAFE_TO_CHANGE_ON_RESUME, not_in_recipe, subject
from lora_rlhf.configs.values import at_least, device_faults, positive, seed_faults
from lora_rlhf.system.tracking import faults as tracking_faults

TO_REPEAT = "to repeat the stage, delete {run}/{name}"


@dataclass(frozen=True, kw_only=True)
class TemplateConfig:
    """Which chat template is used, and how. A run keeps what its SFT stage was given."""

    chat_template: str | None = field(default=None, metadata=COMMON | subject("chat template"))
    """Chat template: a file, or the name of one of the tokenizer's templates; the tokenizer's own unless given."""
    template_args: tuple[str, ...] = field(default=(), metadata=COMMON)
    """Arguments of the chat template, NAME=VALUE each: enable_thinking=false reasoning_effort=low."""
    system: Literal["template", "fold"] = field(default="template", metadata=COMMON)
    """System messages: as the template writes them, or folded into the first question (where it takes none)."""

    @property
    def has_template_choice(self) -> bool:
        """Whether the template is another than the tokenizer's own by itself."""
        return self.chat_template is not None or bool(self.template_args) or self.system == "fold"

    def template_faults(self) -> list[str]:
        """The fault of each argument of another form than NAME=VALUE."""
        return [
            f"template_args has {argument!r}, expected NAME=VALUE, for example enable_thinking=false"
            for argument in self.template_args
            if not re.fullmatch(r"[A-Za-z]\w*=.*", argument, re.ASCII | re.DOTALL)
        ]


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """What every stage needs to know."""

    run: str = field(metadata=COMMON | SAFE_TO_CHANGE_ON_RESUME | subject("data, memory and limits"))
    """Run folder; the stage writes to a folder of its own inside."""
    seed: int = field(default=0, metadata=COMMON)
    """Seed of everything random in this stage."""
    device: str = field(default="auto", metadata=COMMON | MOST_USED | SAFE_TO_CHANGE_ON_RESUME)
    """auto, cpu, cuda or cuda:N."""
    overwrite: bool = field(default=False, metadata=SAFE_TO_CHANGE_ON_RESUME | not_in_recipe(TO_REPEAT))
    """Replace a stage that is already there."""
    micro_batch_size: int = field(default=8, metadata=COMMON | MOST_USED | SAFE_TO_CHANGE_ON_RESUME)
    """Responses in one forward pass. Lower it when memory does not suffice; results do not depend on it."""
    generation_batch_size: int = field(default=32, metadata=COMMON | SAFE_TO_CHANGE_ON_RESUME)
    """Responses generated at a time; decoding needs less memory per response than training."""
    max_prompt_tokens: int = field(default=256, metadata=COMMON | MOST_USED)
    """Longer prompts lose their beginning, at a message boundary where possible."""
    max_response_tokens: int = field(default=256, metadata=COMMON | MOST_USED)
    """Responses are generated up to this length; long_responses says what happens to longer ones in data."""
    long_responses: Literal["refuse", "cut"] = field(default="refuse", metadata=COMMON)
    """A response in data over max_response_tokens: refuse it, or cut it there (without an end); both are counted."""
    format: str | None = None
    """Format of this stage's data file, by its name in docs/data.md; recognised from the rows unless given."""
    columns: str | None = None
    """Names for its columns that no format knows: prompt=question,response=reply; ignore=label leaves one out."""
    strict: bool = field(default=False, metadata=COMMON | SAFE_TO_CHANGE_ON_RESUME)
    """Stop at the first row that cannot be used, instead of leaving it out and counting it."""
    trust_remote_code: bool = field(default=False, metadata=COMMON | SAFE_TO_CHANGE_ON_RESUME | NEEDS_TRUST)
    """Run the code that comes with the base. Only for authors that you trust; each stage needs this flag."""
    gradient_checkpointing: bool = field(default=False, metadata=COMMON | SAFE_TO_CHANGE_ON_RESUME)
    """Compute activations again in the backward pass: less memory, about a third more time."""
    dequantize: Literal["auto", "always", "never"] = field(default="auto", metadata=COMMON | SAFE_TO_CHANGE_ON_RESUME)
    """Keep the 4-bit base dequantised as well: more memory, less time. auto: on a CPU with memory to spare."""
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = field(
        default="auto", metadata=COMMON | SAFE_TO_CHANGE_ON_RESUME
    )
    """Attention of the base. auto: PyTorch's (sdpa) where the family has it. flash_attention needs its library, a GPU
    and 16 bits, and generates with the plain engine."""
    fused_kernels: Literal["none", "liger"] = field(default="none", metadata=COMMON | SAFE_TO_CHANGE_ON_RESUME)
    """liger: Liger-Kernel's fused norms, rotations and gates on a GPU (pip install liger-kernel): less memory and time;
    compared with PyTorch's own before they are used."""

    def faults(self) -> list[str]:
        """Everything wrong with these values, each with the flag, the value and what would be right."""
        return [
            *at_least(self, 1, "micro_batch_size", "generation_batch_size", "max_prompt_tokens"),
            *at_least(self, 1, "max_response_tokens"),
            *device_faults(self),
            *seed_faults(self),
            *([] if self.run else ["run is empty; name a folder, for example runs/first"]),
        ]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(StageConfig):
    """What the stages that train share: how a run resumes, and where its metrics go."""

    resume: bool = field(
        default=False, metadata=COMMON | SAFE_TO_CHANGE_ON_RESUME | subject("training and checkpoints")
    )
    """Fail where there is no unfinished run to go on with. Without it, one of the same settings is continued too."""
    allow_changes: bool = field(default=False, metadata=COMMON | SAFE_TO_CHANGE_ON_RESUME)
    """Go on with an unfinished run though settings have changed since it began; the changes are recorded."""
    save_every: int = field(default=50, metadata=COMMON | SAFE_TO_CHANGE_ON_RESUME)
    """Steps from one checkpoint to the next; in PPO, iterations."""
    keep_checkpoints: int = field(default=2, metadata=COMMON | SAFE_TO_CHANGE_ON_RESUME)
    """How many of the newest checkpoints are kept, beside the best."""
    max_grad_norm: float = 1.0
    """Gradients of each role are clipped to this norm."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw"
    """AdamW; 8bit: bitsandbytes' with moments in 8 bits; paged: with moments that a GPU moves to the host when full."""
    report_to: tuple[str, ...] = field(default=(), metadata=COMMON | SAFE_TO_CHANGE_ON_RESUME)
    """Trackers that get the metrics beside metrics.jsonl: tensorboard, wandb, trackio."""

    def faults(self) -> list[str]:
        both = self.resume and self.overwrite
        return [
            *super().faults(),
            *at_least(self, 1, "save_every", "keep_checkpoints"),
            *positive(self, "max_grad_norm"),
            *(["resume goes on with a run and overwrite begins it again: give one of them"] if both else []),
            *tracking_faults(self.report_to),
        ]
