"""What every stage does before its first step: open the base, bring in its parents' adapters, check that they fit."""

import logging
import math
import random
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import torch
from torch import Tensor

from lora_rlhf.configs.catalogue import WRITERS
from lora_rlhf.configs.common import StageConfig
from lora_rlhf.configs.stages import SFTConfig
from lora_rlhf.data.chosen_template import choose_template, is_same_template
from lora_rlhf.data.refusals import pluralize
from lora_rlhf.model.adapters import read_adapter
from lora_rlhf.model.base import generation_stops
from lora_rlhf.model.kernels import prepare_base
from lora_rlhf.model.open import describe_base, open_base
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import Parent, StageFolder, find_stage
from lora_rlhf.runs.manifest import MANIFEST, read_manifest
from lora_rlhf.runs.resume import WHERE
from lora_rlhf.system import workers
from lora_rlhf.system.errors import UserError

log = logging.getLogger("lora_rlhf")

FEW_STEPS = 20
STEP_END = "step_end"  # the result in which a process reward's manifest holds the rule that splits answers
PROCESS = "process"  # the role of a process reward that is used
INIT = "init"  # the role of a policy that another one goes on from
FLOOR = 0.1  # every schedule ends, and PPO's warm-up begins, at a tenth of the peak (InstructGPT, appendix C)


def open_parent_base(config: StageConfig, parent: Parent, model: SharedModel | None) -> SharedModel:
    """The base that the parent was trained on: the one in memory, or loaded as the parent's manifest says."""
    if model is None:
        device, checkpointing = workers.device_of_process(config.device), config.gradient_checkpointing
        model = open_base(parent.manifest["base"], device, checkpointing, config.trust_remote_code)
    here, then = describe_base(model), parent.manifest["base"]
    for key in ("source_hash", "quantization", "compute_dtype"):
        if here[key] != then[key]:
            raise UserError(
                f"{parent.folder} was trained on a base with {key} {then[key]!r}; the one in memory, "
                f"{model.base.spec.name!r}, has {here[key]!r}; run this stage by itself, or train all stages on one"
            )
    if then["chat_template"] is not None:
        model.tokenizer.chat_template = then["chat_template"]
    prepare_base(model, config.dequantize, config.attn_implementation, config.fused_kernels)
    return model


def choose_run_template(config: SFTConfig, folder: StageFolder, model: SharedModel) -> None:
    """Gives the model's tokenizer the run's chat template.

    It is that of the settings, with the date on which the run began, and with the base's own ends of generation.
    """
    tokenizer, now = model.tokenizer, workers.from_main(datetime.now)
    stops = generation_stops(model.base.spec.name, tokenizer)
    choose_template(tokenizer, config.chat_template, config.template_args, config.system == "fold", now, stops)
    recorded = folder.recorded_base() if folder.resumes else {}
    if recorded and is_same_template(recorded, {"chat_template": tokenizer.chat_template}):
        tokenizer.chat_template = recorded["chat_template"]


def find_reward(folder: str, sft: Parent) -> Parent:
    """The finished reward stage in a folder. UserError where it does not stand on the SFT stage's base."""
    return _require_same_base(find_stage(folder, "reward"), sft)


def step_end_of(reward: Parent) -> str | None:
    """The text that ends a step for a process reward, as its manifest records it; None for another reward model."""
    step_end: str | None = reward.manifest["results"].get(STEP_END)
    return step_end


def find_init(folder: str | None, sft: Parent) -> Parent | None:
    """The finished stage whose policy another one goes on from. UserError where it has none, or another base."""
    if folder is None:
        return None
    stage = read_manifest(Path(folder))["stage"] if (Path(folder) / MANIFEST).is_file() else ""
    if stage not in [writer.name for writer in WRITERS]:
        names = " or ".join(f"RUN/{writer.name}" for writer in WRITERS)
        raise UserError(f"--init {folder}: holds no stage with a policy; name a folder such as {names}")
    return _require_same_base(find_stage(folder, stage), sft)


def _require_same_base(stage: Parent, sft: Parent) -> Parent:
    """The stage. UserError where it does not stand on the SFT stage's base."""
    for key, value in sft.manifest["base"].items():
        if key not in WHERE and stage.manifest["base"].get(key) != value:
            raise UserError(
                f"{stage.folder} and {sft.folder} stand on different bases: {key} is "
                f"{stage.manifest['base'].get(key)!r} and {value!r}; train both on one base"
            )
    return stage


def make_policy(model: SharedModel, role: str, sft: Parent, init: Parent | None, reference: str) -> None:
    """Makes the policy a bit-exact copy of the SFT role or of an earlier policy, and the reference an alias."""
    load_parent_role(model, "sft", sft)
    if init is not None:
        load_parent_role(model, INIT, init)
    model.copy_role("sft" if init is None else INIT, role)
    model.alias("reference", reference)


def load_parent_role(model: SharedModel, role: str, parent: Parent) -> None:
    """Loads a parent's adapter under a role, unless it is in memory. UserError when another one is."""
    if role not in model.roles:
        model.load_role(role, parent.adapter)
    elif not same_state(model.adapter_state(role), read_adapter(parent.adapter)[1]):
        raise UserError(
            f"{parent.adapter} is not the {role} adapter in memory, which another stage of this run left there: run "
            "this stage by itself, or leave the other folder out"
        )
    model.set_score_offset(role, parent.score_offset)


def same_state(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two adapters are equal, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def require_context(model: SharedModel, config: StageConfig) -> None:
    """UserError when a longest prompt with a longest response would not fit the model's context."""
    context = getattr(model.config, "max_position_embeddings", None)
    longest = config.max_prompt_tokens + config.max_response_tokens
    if context is not None and longest > context:
        raise UserError(
            f"max_prompt_tokens {config.max_prompt_tokens} and max_response_tokens {config.max_response_tokens} make "
            f"{longest} tokens, but the context of {model.base.spec.name!r} is {context}: lower one of them"
        )


def seed_everything(seed: int) -> random.Random:
    """Seeds PyTorch's global generator, which new adapters draw from, and returns one for the order of the data."""
    torch.manual_seed(seed)
    return random.Random(seed)


def batches(count: int, size: int, rng: random.Random) -> list[list[int]]:
    """One shuffled pass over `count` indices in batches; the last may be smaller."""
    order = list(range(count))
    rng.shuffle(order)
    return [order[start : start + size] for start in range(0, count, size)]


def fixed_prompt_indices(prompts: Sequence[object], count: int) -> list[int]:
    """Indices of the prompts whose responses are recorded over time: spread evenly over the data."""
    step = max(1, len(prompts) // count)
    return list(range(0, len(prompts), step))[:count]


def cosine(step: int, steps: int) -> float:
    """Share of the peak learning rate in step `step` of `steps`, from 0: a half cosine down to FLOOR."""
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * step / steps))


def warmup(step: int, over: int) -> float:
    """Share of the peak learning rate in step `step`: linear from FLOOR (InstructGPT, appendix C.4)."""
    return 1.0 if over == 0 else min(1.0, FLOOR + (1 - FLOOR) * step / over)


def warn_of_few_steps(steps: int) -> None:
    """Warns of a training that was too short to learn much."""
    if steps < FEW_STEPS:
        log.warning(
            "only %s: the adapter has hardly moved; more rows, more --epochs or a smaller --batch-size train longer",
            pluralize(steps, "step"),
        )


def epochs_of_batches(count: int, size: int, epochs: int, rng: random.Random) -> list[list[int]]:
    """The batches of all epochs, in order: the same for the same seed, so that a step's number says what it reads."""
    return [batch for _ in range(epochs) for batch in batches(count, size, rng)]
