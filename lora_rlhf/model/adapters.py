"""What one LoRA adapter is: its settings, its parameters, and the standard PEFT folder that it is kept in."""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig, PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lora_rlhf.errors import UserError
from lora_rlhf.model.heads import SCORE

ALL_LINEAR = "all-linear"
SAFE_INITS: dict[str, bool | str] = {"default": True, "gaussian": "gaussian"}  # both: B = 0, the base left alone
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class LoraSettings:
    """One adapter (LoRA, arXiv 2106.09685): W x + (alpha / rank) B A x, or alpha / sqrt(rank) with `use_rslora`.

    targets: "all-linear" (every linear layer but the LM head), or the last parts of layer names.
    init: "default" (Kaiming-uniform A, B = 0) or "gaussian". The others that PEFT knows are refused: PiSSA, OLoRA,
    LoftQ and CorDA write to the base, which every role shares.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str | tuple[str, ...] = ALL_LINEAR
    use_rslora: bool = False
    init: str = "default"

    def __post_init__(self) -> None:
        if self.init not in SAFE_INITS:
            raise UserError(
                f"LoRA init {self.init!r} is refused; only {' and '.join(SAFE_INITS)} leave the shared base alone"
            )
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise UserError(
                f"LoRA rank {self.rank}, alpha {self.alpha}, dropout {self.dropout}: "
                "rank is at least 1, alpha above 0, dropout in [0, 1)"
            )
        if not self.targets or (isinstance(self.targets, str) and self.targets != ALL_LINEAR):
            raise UserError(f'LoRA targets {self.targets!r}: give "{ALL_LINEAR}" or a list of layer names')

    def to_peft(self, linear_names: frozenset[str]) -> LoraConfig:
        """PEFT's configuration, on a base whose linear layers have these names. UserError for a target not there."""
        targets = linear_names if self.targets == ALL_LINEAR else frozenset(self.targets)
        if unknown := sorted(targets - linear_names):
            raise UserError(f"LoRA targets {unknown} are not on this base; it has: {', '.join(sorted(linear_names))}")
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=sorted(targets),
            use_rslora=self.use_rslora,
            init_lora_weights=SAFE_INITS[self.init],
        )


def linear_names(causal: PreTrainedModel) -> frozenset[str]:
    """The last parts of the names of all linear layers but the LM head."""
    lm_head = causal.get_output_embeddings()
    layers = ((path, module) for path, module in causal.named_modules() if isinstance(module, nn.Linear | Conv1D))
    return frozenset(path.rpartition(".")[2] for path, module in layers if module is not lm_head)


def is_head(name: str) -> bool:
    """Whether a parameter of this name belongs to the score head."""
    return name.endswith(f".{SCORE}.weight")


def parameters_of(peft: PeftModel, role: str) -> dict[str, nn.Parameter]:
    """An adapter's live parameters under the names that PEFT writes to a file, which leave the adapter's own out."""
    found = {}
    for name, parameter in peft.named_parameters():
        for part in (".lora_A", ".lora_B", ".modules_to_save"):
            head, mark, tail = name.partition(f"{part}.{role}.")
            if mark:
                found[f"{head}.{tail}" if part == ".modules_to_save" else f"{head}{part}.{tail}"] = parameter
    return found


def without_dropout(config: LoraConfig) -> LoraConfig:
    """The configuration of a copy: dropout is for SFT alone, and would move PPO's first ratio off 1."""
    config.lora_dropout = 0.0
    return config


def read_adapter(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """A PEFT folder's configuration and tensors. UserError for one that is not plain LoRA in safetensors."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"adapter {folder}: no {name} there; give a folder that save_role or PEFT wrote")
    try:
        fields = json.loads((folder / CONFIG).read_text())
        state = load_file(folder / WEIGHTS)
        if fields.get("peft_type") != "LORA":
            raise UserError(f"adapter {folder}: peft_type is {fields.get('peft_type')!r}, only LORA can be used")
        config = LoraConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, SafetensorError) as error:
        raise UserError(f"adapter {folder} cannot be read: {error}") from error
    if config.use_dora or config.bias != "none":
        raise UserError(f"adapter {folder}: DoRA and trained biases are not supported, only plain LoRA")
    if config.init_lora_weights not in (True, False, *SAFE_INITS.values()):
        raise UserError(
            f"adapter {folder}: made with init {config.init_lora_weights!r}, which belongs to a rewritten base"
        )
    config.init_lora_weights = True  # all of it is overwritten by the tensors read here
    return config, state


def write_adapter(folder: Path, config: LoraConfig, state: dict[str, Tensor]) -> None:
    """Write a PEFT folder under a temporary name, sync it and rename it; an older folder of that name goes away."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        save_file(state, new / WEIGHTS, metadata={"format": "pt"})
        config.inference_mode = True  # PEFT's mark of a finished adapter: it loads frozen
        config.save_pretrained(str(new))
        for path in (new / WEIGHTS, new / CONFIG, new):
            _sync(path)
        if folder.exists():  # a folder that is not empty cannot be renamed over
            folder.rename(old)
        new.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(temporary)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
