"""Measures a model from its config alone: its counts and the memory of its passes."""

from dataclasses import dataclass
from pathlib import Path

import torch

from lora_rlhf.configs.catalogue import DPO
from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.base import load_config
from lora_rlhf.model.files import TINYWORLD
from lora_rlhf.model.skeleton import Counts, build_skeleton, count_model, make_config
from lora_rlhf.plan.config import PlanConfig
from lora_rlhf.plan.dryrun import Passes, measure_passes
from lora_rlhf.plan.memory import CPU, CUDA, Device
from lora_rlhf.plan.shapes import SHAPES, find_shape_name
from lora_rlhf.system.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class MeasuredModel:
    """The model of a plan: its counts, the memory of its passes, and the kind of device."""

    name: str
    counts: Counts
    passes: Passes
    device: Device


def measure_model(config: PlanConfig) -> MeasuredModel:
    """Counts a model's weights and measures a few of its layers. This takes seconds, and reads no weights.

    Raises UserError for a config that cannot be read or built, for lengths beyond the context, and for layers that do
    not run without weights.
    """
    assert config.model is not None
    name, dtype = config.model, _compute_dtype(config)
    is_local = name == TINYWORLD or Path(name).expanduser().exists()
    shape_name = None if is_local else find_shape_name(name)
    model_config = (
        load_config(name, config.trust_remote_code, config.quantization)
        if shape_name is None
        else make_config(*SHAPES[shape_name])
    )
    counts = count_model(model_config, config.quantization, dtype, config.lora_targets)
    tokens = config.max_prompt_tokens + config.max_response_tokens
    if counts.context is not None and tokens > counts.context:
        raise UserError(
            f"max_prompt_tokens {config.max_prompt_tokens} and max_response_tokens {config.max_response_tokens} make "
            f"{tokens} tokens, but the context of {name!r} is {counts.context}: lower one of them"
        )
    lora = LoraSettings(rank=config.lora_rank, targets=config.lora_targets)
    try:
        passes = measure_passes(
            counts,
            lambda layers: build_skeleton(
                model_config, config.quantization, dtype, lora, layers, on_gpu=config.device == "cuda"
            ),
            config.max_prompt_tokens,
            config.max_response_tokens,
            config.minibatch_size if config.stage in (None, DPO.name) else None,
        )
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError, LookupError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{counts.family} cannot be planned: its layers do not run without weights ({reason}). Begin its stages as "
            "they are, which may work all the same: each tries its longest case first, and halves what does not fit"
        ) from error
    return MeasuredModel(name, counts, passes, CPU if config.device == "cpu" else CUDA)


def _compute_dtype(config: PlanConfig) -> torch.dtype:
    if config.compute_dtype == "auto":
        return torch.float32 if config.device == "cpu" else torch.bfloat16
    return DTYPES[config.compute_dtype]
