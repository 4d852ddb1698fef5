"""One LoRA adapter: its settings, its parameters, and the standard PEFT folder that it is stored in."""

import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lora_rlhf.model.adapter_folder import (
    ADVICE,
    CONFIG,
    WEIGHTS,
    find_target,
    layer_of_tensor,
    read_config,
    read_weights,
)
from lora_rlhf.model.heads import SCORE, find_score_head, init_score_head
from lora_rlhf.model.targets import ALL_LINEAR, Targets
from lora_rlhf.system.disk import new_folder
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import quote

SAFE_INITS: dict[str, bool | str] = {"default": True, "gaussian": "gaussian"}  # both: B = 0, the base left alone


@dataclass(frozen=True)
class LoraSettings:
    """One adapter (LoRA, arXiv 2106.09685): W x + (alpha / rank) B A x, or alpha / sqrt(rank) with `use_rslora`.

    targets: "all-linear" (every linear layer of the text model but heads and routers), groups of layers ("attention",
    "mlp"), or the last parts of layer names.
    init: "default" (Kaiming-uniform A, B = 0) or "gaussian". PEFT's others are refused: PiSSA, OLoRA, LoftQ and CorDA
    write to the base, which every role shares.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
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
        if not self.targets or isinstance(self.targets, str):
            raise UserError(f'LoRA targets {self.targets!r}: give "{ALL_LINEAR}" or a list of layer names')

    def to_peft(self, targets: Targets) -> LoraConfig:
        """PEFT's configuration, on a base with these layers. UserError for a target that is none of them."""
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets.peft_names(self.targets),
            use_rslora=self.use_rslora,
            init_lora_weights=SAFE_INITS[self.init],
        )


def is_head_parameter(name: str) -> bool:
    """Whether a parameter with this name belongs to the score head."""
    return name.endswith(f".{SCORE}.weight")


def role_parameters(peft: PeftModel, role: str) -> dict[str, nn.Parameter]:
    """{checkpoint key (the adapter's name removed): the live parameter}."""
    parameters = {}
    for name, parameter in peft.named_parameters():
        for part in (".lora_A", ".lora_B", ".modules_to_save"):
            before, separator, after = name.partition(f"{part}.{role}.")
            if separator:
                key = f"{before}.{after}" if part == ".modules_to_save" else f"{before}{part}.{after}"
                parameters[key] = parameter
    return parameters


def load_state(parameters: dict[str, nn.Parameter], state: dict[str, Tensor]) -> None:
    """Copies tensors into the parameters of these names, bit for bit. ValueError, with nothing changed, on a misfit."""
    missing, unknown = parameters.keys() - state.keys(), state.keys() - parameters.keys()
    if missing or unknown:
        raise ValueError(
            f"{len(missing)} tensors missing {sorted(missing)[:2]}, {len(unknown)} unknown {sorted(unknown)[:2]}"
        )
    for name, parameter in parameters.items():
        if state[name].shape != parameter.shape:
            raise ValueError(f"{name} is {tuple(state[name].shape)}, expected {tuple(parameter.shape)}")
    for name, parameter in parameters.items():
        parameter.data.copy_(state[name])


def add_adapter(
    causal: PreTrainedModel, peft: PeftModel | None, role: str, config: LoraConfig, has_head: bool
) -> PeftModel:
    """Adds an adapter to the base, and a new score head if `has_head`; PEFT changes flags and modes of the base."""
    set_adapter_fields(config, has_head, causal.name_or_path)
    with warnings.catch_warnings():
        # PEFT asks transformers for a property that is being renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        if peft is None:
            peft = PeftModel(causal, config, adapter_name=role)
        else:
            peft.add_adapter(role, config)
    if layer := find_score_head(causal, role):
        init_score_head(layer)
    return peft


def set_adapter_fields(config: LoraConfig, has_head: bool, base_name: str) -> None:
    """Sets in the configuration the kind of adapter and its base."""
    # Plain PEFT picks the class by the task type when somebody loads the folder elsewhere.
    config.task_type = "SEQ_CLS" if has_head else "CAUSAL_LM"
    config.modules_to_save = [SCORE] if has_head else None
    config.inference_mode = False
    config.base_model_name_or_path = base_name


def disable_dropout(config: LoraConfig) -> LoraConfig:
    """The configuration of a copy, without dropout: dropout is only for SFT, and would move PPO's first ratio off 1."""
    config.lora_dropout = 0.0
    return config


def read_adapter(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """A PEFT folder's configuration and tensors. UserError for an adapter that is not plain LoRA in safetensors.

    The author of the folder is not trusted: nothing in it is run or looked up, and no more memory is allocated than the
    file has bytes. Links are followed, since the hub's cache consists of them; their targets are checked like any file.
    """
    for name in (CONFIG, WEIGHTS):
        if not os.path.isfile(folder / name):  # unlike Path.is_file, no error for a folder that we may not read
            raise UserError(f"adapter {folder}: no {name} there; {ADVICE}")
    config = read_config(folder)
    return config, read_weights(folder, config)


def require_fit(causal: PreTrainedModel, config: LoraConfig, state: dict[str, Tensor]) -> None:
    """ValueError unless the tensors have the names and sizes of the layers that PEFT would adapt on this base.

    Call it before PEFT makes an adapter: then it allocates no more than was read.
    """
    size_by_path = dict(_adaptable_modules(causal))
    targeted_layers = {path for path in size_by_path if find_target(path, config.target_modules) is not None}
    layers = {layer for layer in map(layer_of_tensor, state) if layer is not None}
    if targeted_layers != layers:
        missing, unknown = sorted(targeted_layers - layers), sorted(layers - targeted_layers)
        raise ValueError(
            f"tensors of {len(missing)} layers are missing {quote(missing[:2])}, of {len(unknown)} layers unknown "
            f"{quote(unknown[:2])}"
        )
    for layer in sorted(layers):
        size = size_by_path[layer]
        if size is None:
            raise ValueError(f"{layer} is not a linear layer")
        for part, expected in (("A", (config.r, size[0])), ("B", (size[1], config.r))):
            shape = tuple(state[f"base_model.model.{layer}.lora_{part}.weight"].shape)
            if shape != expected:
                raise ValueError(f"lora_{part} of {layer} is {shape}, expected {expected}")


def _adaptable_modules(causal: PreTrainedModel) -> Iterator[tuple[str, tuple[int, int] | None]]:
    """The path of every module that an adapter could name, with (in, out) of a linear one; without adapters' parts."""
    wrapped = ""  # the path of the last wrapped layer, whose parts are left out
    for path, module in causal.named_modules():
        if not path or path == SCORE or path.startswith(f"{SCORE}.") or (wrapped and path.startswith(wrapped)):
            continue
        layer = module
        if isinstance(module, BaseTunerLayer):
            wrapped, layer = f"{path}.", module.get_base_layer()
        if isinstance(layer, nn.Linear):
            yield path, (layer.in_features, layer.out_features)
        else:
            yield path, (layer.weight.shape[0], layer.weight.shape[1]) if isinstance(layer, Conv1D) else None


def write_adapter(folder: Path, config: LoraConfig, state: dict[str, Tensor]) -> None:
    """Writes a PEFT folder completely or not at all, and replaces an older folder of that name. OSError if it fails."""
    with new_folder(folder) as temporary:
        write_adapter_files(temporary, config, state)


def write_adapter_files(folder: Path, config: LoraConfig, state: dict[str, Tensor]) -> None:
    """Writes the two files of an adapter into a folder. OSError if it fails."""
    save_tensors(folder / WEIGHTS, state)
    config.inference_mode = True  # PEFT's mark of a finished adapter: it loads frozen
    if isinstance(config.target_modules, set):  # PEFT would write it in another order in each process
        config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(folder))


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a safetensors file. OSError if the disk is full, as for other writes."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
