"""InstructGPT's three stages on one frozen 4-bit base: every learned thing is a LoRA adapter.

The names below are the Python API (docs/python.md). Each is imported when it is first used: `import lora_rlhf` is fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_rlhf.api import (
        TrainedStage,
        evaluate,
        export,
        sample,
        train_dpo,
        train_ppo,
        train_reward,
        train_sft,
    )
    from lora_rlhf.chat.loaded_run import LoadedRun, load_run
    from lora_rlhf.configs.sample import SampleConfig
    from lora_rlhf.configs.stages import DPOConfig, PPOConfig, RewardConfig, SFTConfig
    from lora_rlhf.evaluation.config import EvaluateConfig
    from lora_rlhf.exporting.config import ExportConfig
    from lora_rlhf.system.errors import UserError

__version__ = "0.1.0"

__all__ = [
    "DPOConfig",
    "EvaluateConfig",
    "ExportConfig",
    "LoadedRun",
    "PPOConfig",
    "RewardConfig",
    "SFTConfig",
    "SampleConfig",
    "TrainedStage",
    "UserError",
    "evaluate",
    "export",
    "load_run",
    "sample",
    "train_dpo",
    "train_ppo",
    "train_reward",
    "train_sft",
]

_MODULES = {
    "lora_rlhf.api": (
        *("TrainedStage", "evaluate", "export", "sample"),
        *("train_dpo", "train_ppo", "train_reward", "train_sft"),
    ),
    "lora_rlhf.chat.loaded_run": ("LoadedRun", "load_run"),
    "lora_rlhf.configs.sample": ("SampleConfig",),
    "lora_rlhf.configs.stages": ("DPOConfig", "PPOConfig", "RewardConfig", "SFTConfig"),
    "lora_rlhf.evaluation.config": ("EvaluateConfig",),
    "lora_rlhf.exporting.config": ("ExportConfig",),
    "lora_rlhf.system.errors": ("UserError",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
