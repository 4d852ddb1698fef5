"""An adapter folder from an unknown author: its two files, read as data alone and refused unless plain LoRA."""

import math
import re
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

import peft
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lora_rlhf.model.heads import SCORE
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.tensor_header import require_adapter
from lora_rlhf.system.untrusted import YES_OR_NO, FieldType, is_number, quote, read_object, require

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
ADVICE = "give a folder that save_role or PEFT wrote"
HEAD = f"base_model.model.{SCORE}.weight"
LAYER = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<part>[AB])\.weight")
DTYPES = ("F32", "F16", "BF16")
MAX_CONFIG_BYTES = 4 * 2**20
MAX_NAME_CHARACTERS = 512
MAX_ALPHA = 1e6  # with more, updates would not be finite


def _is_list_of_names(value: Any) -> bool:
    """Whether this is a list of one or more names."""
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) and name for name in value)


def _is_score_heads(value: Any) -> bool:
    """Whether this names only score heads. For a sequence classifier PEFT always writes both names."""
    return value is None or (isinstance(value, list) and all(name in (SCORE, "classifier") for name in value))


def _is_transformers_mapping(value: Any) -> bool:
    """Whether this is null, or PEFT's value for an adapter without a task type: a class of transformers."""
    if not isinstance(value, dict):
        return value is None
    library = str(value.get("parent_library")).split(".")[0]
    return value.keys() <= {"base_model_class", "parent_library"} and library == "transformers"


# The fields that plain LoRA may set. Only they become the configuration.
SETTING_FIELDS: dict[str, FieldType] = {
    "r": ("a whole number of at least 1", lambda value: is_number(value) and isinstance(value, int) and value >= 1),
    "lora_alpha": (f"a number above 0, up to {MAX_ALPHA:g}", lambda v: is_number(v) and 0 < v <= MAX_ALPHA),
    "target_modules": ("a list of layer names (a pattern is not run: list what it stands for)", _is_list_of_names),
    "lora_dropout": ("a share in [0, 1)", lambda value: is_number(value) and 0 <= value < 1),
    "use_rslora": YES_OR_NO,
    "fan_in_fan_out": YES_OR_NO,
}
REQUIRED = ("peft_type", "r", "lora_alpha", "target_modules")  # a missing field of the others has PEFT's default
# Fields with which PEFT notes an adapter's origin and head (its tensor shows the head). They are checked and dropped.
NOTE_FIELDS = ("base_model_name_or_path", "revision", "peft_version", "task_type", "inference_mode")
CHECKED_FIELDS: dict[str, FieldType] = {
    "peft_type": ("LORA", lambda value: value == "LORA"),
    "modules_to_save": ("null or the score head", _is_score_heads),
    "init_lora_weights": ("one that leaves the base as it was", lambda v: isinstance(v, bool) or v == "gaussian"),
    "auto_mapping": ("null or a class of transformers", _is_transformers_mapping),
    **dict.fromkeys(NOTE_FIELDS, ("a text, true, false or null", lambda v: v is None or isinstance(v, str | bool))),
}


def read_config(folder: Path) -> LoraConfig:
    """The configuration, made only of the allowed fields: PEFT does not read the file or anything that it names.

    UserError, with the field, for a field that is not at PEFT's default although plain LoRA does not use it.
    """
    settings = read_object(folder / CONFIG, ADVICE, MAX_CONFIG_BYTES, follow_links=True)
    allowed_fields = SETTING_FIELDS | CHECKED_FIELDS
    try:
        require(settings, {name: kind for name, kind in allowed_fields.items() if name in settings or name in REQUIRED})
        defaults = LoraConfig().to_dict()
        for name in sorted(settings.keys() - allowed_fields.keys()):
            _require_default(name, settings[name], defaults)
    except ValueError as error:
        raise UserError(f"adapter {folder}: {CONFIG}: {error}; only plain LoRA can be used here") from error
    return LoraConfig(**{name: settings[name] for name in SETTING_FIELDS if name in settings})


def read_weights(folder: Path, config: LoraConfig) -> dict[str, Tensor]:
    """The tensors, mapped from the file: A (r, in) and B (out, r) of each layer, and the score head (1, H) if any.

    The header is compared with the configuration before memory of the size that it claims is read.

    UserError for a file that is not safetensors, for one without exactly these tensors, and for weights that are not
    finite 16 or 32 bit floats.
    """
    path = folder / WEIGHTS
    try:
        require_adapter(path)
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is not a mapping)
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            _require_plain_lora(shapes, {part.get_dtype() for part in slices.values()}, config)
            state = {name: file.get_tensor(name) for name in sorted(shapes)}
        for name, tensor in state.items():
            low, high = tensor.aminmax()  # unlike isfinite, needs no memory
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ValueError(f"{quote(name)} holds NaN or infinity: its training diverged")
    except SafetensorError as error:  # its messages quote the file
        raise UserError(f"adapter {folder}: {WEIGHTS} cannot be read: {quote(str(error))}; {ADVICE}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"adapter {folder}: {WEIGHTS} cannot be used: {error}; {ADVICE}") from error
    return state


def layer_of_tensor(name: str) -> str | None:
    """The path, inside the causal model, of a tensor's layer; None for the score head's tensor."""
    match = LAYER.fullmatch(name)
    return None if match is None else match["layer"]


def find_target(layer: str, targets: Collection[str]) -> str | None:
    """The target that names a layer, as PEFT matches lists of names: by the whole path or by the end of it."""
    while layer not in targets:
        _, dot, layer = layer.partition(".")
        if not dot:
            return None
    return layer


def _require_default(name: str, value: Any, defaults: dict[str, Any]) -> None:
    """ValueError for a field that may change a result.

    Each version of PEFT writes all of its fields, mostly null. On mixtures of experts it writes an empty list of
    parameters in place of null; other empty values switch something on.
    """
    if value is None or value is False or (name in defaults and value == defaults[name]):
        return
    if name == "target_parameters" and value == []:
        return
    if name in {field.name for field in fields(LoraConfig)}:
        raise ValueError(f"{name} is {quote(value)}; plain LoRA has {quote(defaults.get(name))}")
    raise ValueError(
        f"{quote(name)} is {quote(value)}, and PEFT {peft.__version__} has no such field; if a newer PEFT wrote it, "
        "and it changes nothing, remove it from the file"
    )


def _require_plain_lora(shapes: dict[str, tuple[int, ...]], dtypes: set[str], config: LoraConfig) -> None:
    """ValueError unless every layer has an A and a B of rank r, and the layers are the targeted ones."""
    if other_dtypes := dtypes - set(DTYPES):
        raise ValueError(f"tensors are {', '.join(sorted(other_dtypes))}; adapters are {', '.join(DTYPES)}")
    layers: dict[str, set[str]] = {}
    for name, shape in shapes.items():
        match = LAYER.fullmatch(name) if len(name) <= MAX_NAME_CHARACTERS else None
        if match is None and name != HEAD:
            raise ValueError(f"{quote(name)} is unknown: neither LoRA's A or B of a layer nor the score head")
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"{quote(name)} has the shape {quote(shape)}, expected two sizes above 0")
        if match is None:
            continue
        layers.setdefault(match["layer"], set()).add(match["part"])
        if shape[0 if match["part"] == "A" else 1] != config.r:
            raise ValueError(f"{quote(name)} has the shape {quote(shape)}, but r is {config.r} in {CONFIG}")
    if not layers:
        raise ValueError("holds no LoRA tensors")
    if incomplete := [layer for layer, parts in layers.items() if len(parts) < 2]:
        raise ValueError(f"{quote(incomplete[0])} has an A or a B, not both: tensors are missing")
    targets = {layer: find_target(layer, config.target_modules) for layer in layers}
    if untargeted := [layer for layer, target in targets.items() if target is None]:
        raise ValueError(f"{quote(untargeted[0])} is not among the target_modules of {CONFIG}")
    if unused := sorted(config.target_modules - set(targets.values())):
        raise ValueError(f"{CONFIG} targets {len(unused)} modules without tensors here, the first {quote(unused[0])}")
