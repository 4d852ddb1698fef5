"""The peak of memory that `lora-rlhf plan` predicts for a stage as a form sets it, computed by a process of its own."""

import functools
import json
import subprocess
import threading
from pathlib import Path
from typing import Any

from lora_rlhf.configs.catalogue import SFT, Stage
from lora_rlhf.configs.common import TrainingConfig
from lora_rlhf.configs.stages import DPOConfig
from lora_rlhf.configs.values import field_types, read_yaml
from lora_rlhf.plan.config import PlanConfig
from lora_rlhf.runs.folder import CONFIG
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.memory import memory
from lora_rlhf_demo.starting import COMMAND

LARGE_GIB = 1024.0  # of a machine that does not say what it has
SECONDS = 180  # that a plan may take
GIB = 2**30
PPO_SIZES = ("batch_size", "minibatch_size")  # in a plan: of an iteration, and of its steps
_one_at_a_time = threading.Lock()


def peak_text(stage: Stage, config: TrainingConfig) -> str:
    """How much memory the stage will need at most, and what there is. UserError where no plan can be made."""
    words = tuple(plan_words(stage, config, has_gpu()))
    with _one_at_a_time:  # who waits for the same plan finds it made
        peak, where, gib = _plan(stage.name, words)
    place = f"; this card has {gib:.1f} GiB free"
    if "--device=cpu" in words:
        found = memory()
        place = "" if found is None else f"; this machine has {found.available / GIB:.1f} GiB available"
    return f"{peak:.2f} GiB ({where}){place}"


def plan_words(stage: Stage, config: TrainingConfig, on_gpu: bool) -> list[str]:
    """The flags of `lora-rlhf plan` for a stage: the settings that both know, those of the base from the SFT stage."""
    hints, values = field_types(PlanConfig), _base_settings(stage, config)
    for name in hints.keys() & field_types(type(config)).keys():
        if getattr(config, name) is not None or name not in values:
            values[name] = getattr(config, name)
    if not all(stage.has_setting(name) for name in PPO_SIZES):
        values = {name: value for name, value in values.items() if name not in PPO_SIZES}
        if isinstance(config, DPOConfig):  # it keeps the hidden states of a whole batch: two answers to each prompt
            values |= dict.fromkeys(PPO_SIZES, 2 * config.batch_size)
    if not values.get("model"):
        raise UserError("no plan before the run has an SFT stage, which names the base")
    if values.get("quantization") == "int8":
        raise UserError("no plan for a base in 8 bits")
    if str(values.pop("device", "auto")).startswith("cpu") or not on_gpu:
        found = memory()
        values |= {"device": "cpu", "gpu_gib": LARGE_GIB if found is None else round(found.total / GIB, 1)}
    words = []
    for name, value in sorted(values.items()):
        if value is not None:
            text = json.dumps(list(value)) if isinstance(value, tuple | list) else str(value)
            words += [f"--{name}={text.lower() if isinstance(value, bool) else text}"]
    return ["--stage", stage.name, "--json", *words]


def _base_settings(stage: Stage, config: TrainingConfig) -> dict[str, Any]:
    """What the SFT stage that another one starts from has set of the base."""
    if stage.name == SFT.name:
        return {}
    folder = Path(getattr(config, SFT.name) or Path(config.run) / SFT.name)
    try:
        settings = read_yaml(folder / CONFIG)
    except (UserError, OSError):
        return {}
    return {name: settings[name] for name in field_types(PlanConfig) if name in settings}


@functools.lru_cache(maxsize=64)
def _plan(stage: str, words: tuple[str, ...]) -> tuple[float, str, float]:
    """(GiB at the peak, when that is, GiB of the card). UserError with what the command says where it makes none."""
    try:
        done = subprocess.run(
            [*COMMAND, "plan", *words], capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"the plan took longer than {SECONDS} s") from error
    if done.returncode:
        raise UserError(done.stderr.strip().removeprefix("error: ")[-600:] or "no plan could be made")
    plan = json.loads(done.stdout)
    part = plan["stages"][stage]
    return part["peak_bytes"] / GIB, part["peak_at"], plan["card"]["gib"]


@functools.cache
def has_gpu() -> bool:
    """Whether PyTorch finds a GPU; its import waits until the first plan."""
    import torch

    return torch.cuda.is_available()
