"""A recipe: every stage of a run from one YAML file, on one base in memory, going on where an earlier attempt stopped."""

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lora_rlhf.config import (
    EvaluateConfig,
    PPOConfig,
    RewardConfig,
    SampleConfig,
    SFTConfig,
    StageConfig,
    check,
    from_dict,
    read_yaml,
    to_yaml,
)
from lora_rlhf.data.io import ROW_SUFFIXES, TEXT_SUFFIX, plain_suffix
from lora_rlhf.errors import UserError
from lora_rlhf.run import find_stage, has_stage, write_json, write_text
from lora_rlhf.tinyworld.datasets import LabelConfig, TinyworldConfig, label, make, read_agreement
from lora_rlhf.tinyworld.gold import score

if TYPE_CHECKING:
    from lora_rlhf.model.shared import SharedModel

Section = TinyworldConfig | LabelConfig | StageConfig

# In the order in which they run.
SECTIONS: dict[str, tuple[str, type[Section]]] = {
    "tinyworld": ("data of the tiny world", TinyworldConfig),
    "sft": ("supervised fine-tuning", SFTConfig),
    "sample": ("responses to be ranked", SampleConfig),
    "label": ("rankings by simulated labelers", LabelConfig),
    "reward": ("reward model", RewardConfig),
    "ppo": ("PPO", PPOConfig),
    "evaluate": ("evaluation", EvaluateConfig),
}
# Keys that stand at the top of a recipe and hold for every section that has them.
COMMON = (
    *("run", "seed", "device", "model", "quantization", "compute_dtype", "trust_remote_code", "gradient_checkpointing"),
    *("micro_batch_size", "generation_batch_size", "max_prompt_tokens", "max_response_tokens"),
)
INPUTS = ("demonstrations", "prompts", "selection_prompts", "candidates", "rankings", "pretraining_text")
# Changing these does not make a finished step another one.
HARMLESS = ("device", "micro_batch_size", "generation_batch_size", "gradient_checkpointing")
RECIPE, REPORT = "recipe.yaml", "report.json"


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """All stages of a recipe, one after the other on one base; finished steps are skipped, so it also resumes."""

    config: str
    """Recipe: a YAML file with one section per stage, for example configs/quickstart.yaml."""
    run: str | None = None
    """Run folder, in place of the recipe's."""
    seed: int | None = None
    """Seed, in place of the recipe's."""
    device: str | None = None
    """Device, in place of the recipe's."""

    def faults(self) -> list[str]:
        """Nothing to find here: the recipe's own sections are checked when it is read."""
        return []


def run_recipe(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Runs a recipe's steps and returns the report of its evaluation (empty where it has no evaluate section).

    `overrides` replace keys at the top of the recipe. UserError, before anything starts, with every fault of every
    section. RuntimeError if the base was written to.
    """
    place = "recipe" if isinstance(source, Mapping) else str(source)
    values = dict(source) if isinstance(source, Mapping) else read_yaml(source)
    configs = build(values | dict(overrides or {}), place)
    run = Path(str(values | dict(overrides or {}) ["run"])) if False else Path(_run_of(configs))
    return _Recipe(run, configs).execute()
