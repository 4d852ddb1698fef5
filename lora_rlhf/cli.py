"""The command line: a command, its configuration from flags and file, one call. Heavy imports wait until that call."""

import dataclasses
import difflib
import logging
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser, set_parsing_settings

from lora_rlhf import __version__
from lora_rlhf.config import EvaluateConfig, PPOConfig, RewardConfig, SampleConfig, SFTConfig, check
from lora_rlhf.errors import UserError
from lora_rlhf.recipe import RecipeConfig, report_place, run_recipe
from lora_rlhf.tinyworld.datasets import LabelConfig, TinyworldConfig, label, make
from lora_rlhf.tinyworld.gold import score, score_request
from lora_rlhf.tinyworld.requests import find

OUT_OF_MEMORY = (
    "out of memory: lower --micro-batch-size (results do not depend on it) and --generation-batch-size, or give "
    "--gradient-checkpointing"
)
DASHED_FLAG = re.compile(r"--[A-Za-z][\w-]*")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How good a response to a prompt of the tiny world is, by the hidden gold score that evaluation alone reads."""

    prompt: str
    """A prompt of the tiny world, for example "Where does the fox live?"."""
    response: str
    """Any answer to it."""

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        return [] if find(self.prompt) else [f"{self.prompt!r} is not a prompt of the tiny world: `lora-rlhf tinyworld make` writes some"]


def _sft(config: SFTConfig) -> None:
    from lora_rlhf.stages import sft

    sft.train(config)


def _sample(config: SampleConfig) -> None:
    from lora_rlhf.stages.sample import sample

    sample(config)


def _reward(config: RewardConfig) -> None:
    from lora_rlhf.stages import reward

    reward.train(config)


def _ppo(config: PPOConfig) -> None:
    from lora_rlhf.stages import ppo

    ppo.train(config)


def _evaluate(config: EvaluateConfig) -> None:
    from lora_rlhf.evaluate.report import evaluate, table

    print(table(evaluate(config, gold=score)))


def _run(config: RecipeConfig) -> None:
    from lora_rlhf.evaluate.report import table

    report = run_recipe(config)
    print(f"\n{table(report)}\n\nreport: {report_place(report)}")
