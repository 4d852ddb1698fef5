"""What a person can choose when a model is exported."""

import re
from dataclasses import dataclass, field
from typing import Literal

from lora_rlhf.configs.catalogue import BY_ROLE, PPO, ExportRole
from lora_rlhf.configs.marks import COMMON, SAFE_TO_CHANGE_ON_RESUME, input_file, not_in_recipe
from lora_rlhf.configs.values import at_least, device_faults, positive, share


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """A trained role as a plain model: adapter and base merged, measured against what was trained, written whole."""

    folder: str = field(metadata=not_in_recipe("what is exported is the recipe's own run"))
    """The run; with --verify, an export."""
    role: ExportRole = PPO.role
    """Which of the run's models: PPO's policy, the SFT model or the reward model."""
    form: Literal["merged", "adapter", "gguf"] = "merged"
    """merged: a folder for transformers and vLLM. adapter: the adapter alone, for PEFT and vLLM. gguf: one file for
    llama.cpp and Ollama."""
    gguf_type: Literal["f32", "f16", "bf16", "q8_0"] = "bf16"
    """With --form gguf, what matrices are stored in."""
    to: str | None = None
    """Folder to make. It must not exist."""
    base: Literal["rounded", "original"] = "rounded"
    """rounded: add the adapter to the base as it was trained on, rounded to 4 bits. original: to the base's own
    weights, which the adapter has never seen."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """What the merged weights are rounded to, once."""
    text_only: bool = False
    """Of a base with towers for images or sound: export its text model alone, as a plain text model."""
    max_shard_size: str = "5GB"
    """Largest weight file, in KB, MB or GB (or KiB, MiB, GiB)."""
    device: str = field(default="auto", metadata=COMMON | SAFE_TO_CHANGE_ON_RESUME)
    """Where weights are rounded and models compared: auto, cpu, cuda or cuda:N."""
    parity: Literal["full", "none"] = "full"
    """none: do not compare the export with the model that was trained, for models too large to load here."""
    prompts: str | None = field(default=None, metadata=input_file())
    """File of prompts for the comparison; unless given, those that the run was evaluated on."""
    parity_prompts: int = 16
    """Most prompts to compare on."""
    parity_tokens: int = 128
    """Greedy tokens to compare after each prompt."""
    max_kl_share: float = 0.05
    """Refuse an export whose KL per token from the trained model is more than this share of the adapter's own."""
    min_agreement: float = 0.99
    """Refuse an export whose most probable token is the trained model's less often than this."""
    max_score_share: float = 0.05
    """Refuse a reward model whose scores differ from the trained one's by more than this share of their spread."""
    force: bool = False
    """Keep an export that is further away."""
    verify: bool = field(default=False, metadata=not_in_recipe("it is for `lora-rlhf export FOLDER --verify`"))
    """Check the files of an export instead, and compare it again with what was recorded, in plain transformers."""
    trust_remote_code: bool = field(default=False, metadata=COMMON | SAFE_TO_CHANGE_ON_RESUME)
    """Run the base model's own code. Only for authors that you trust."""

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        if self.verify and self.to is not None:
            return ["--verify checks the export in FOLDER: leave --to out"]
        is_refused = self.form == "gguf" and BY_ROLE[self.role].scores
        is_no_text_model = self.text_only and (self.form != "merged" or BY_ROLE[self.role].scores)
        return [
            *(["form gguf is for models that write text; leave --form out for a reward model"] if is_refused else []),
            *(["text_only is for merged models that write text"] if is_no_text_model else []),
            *([] if self.to or self.verify else ["give --to, the folder to make"]),
            *device_faults(self),
            *_size_faults(self.max_shard_size),
            *at_least(self, 1, "parity_prompts", "parity_tokens"),
            *positive(self, "max_kl_share", "max_score_share"),
            *share(self, "min_agreement", upper=1.0),
        ]


BYTES_BY_UNIT = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """The bytes of a size such as "5GB" or "500 MiB". Raises ValueError for any other text."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]i?B)?", text.strip(), re.IGNORECASE)
    num_bytes = 0 if match is None else int(float(match[1]) * BYTES_BY_UNIT[(match[2] or "").upper()])
    if num_bytes < 1:
        raise ValueError(f"{text!r} is no size; give one such as 5GB or 500MB")
    return num_bytes


def _size_faults(text: str) -> list[str]:
    """What is wrong with a size, as a list of at most one message."""
    try:
        parse_size(text)
    except ValueError as error:
        return [f"max_shard_size {error}"]
    return []
