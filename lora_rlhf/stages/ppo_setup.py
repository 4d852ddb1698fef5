"""Before and after PPO's iterations: parents, roles, data, warnings; saving the adapters."""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lora_rlhf.configs.stages import PPOConfig
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.schema import Prompt, Text
from lora_rlhf.data.sources import Source
from lora_rlhf.data.spool import Spool
from lora_rlhf.data.stream import TextStream
from lora_rlhf.data.template import ensure_template
from lora_rlhf.model.memory import adapter_bytes
from lora_rlhf.model.open import describe_base, move_base
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import ADAPTER, VALUE_ADAPTER, Parent, StageFolder, find_stage
from lora_rlhf.stages.ppo_rollout import Rollout, Targets
from lora_rlhf.stages.reward_report import chance_fault, held_out_accuracy
from lora_rlhf.stages.rows import encode_prompts, report_refusals, source_of
from lora_rlhf.stages.sampler import require_engine
from lora_rlhf.stages.scorer import TRIED, ProcessReward, ResponseScorer
from lora_rlhf.stages.session import (
    INIT,
    PROCESS,
    find_init,
    find_reward,
    load_parent_role,
    log,
    make_policy,
    open_parent_base,
    require_context,
    same_state,
    seed_everything,
    step_end_of,
)
from lora_rlhf.system import workers
from lora_rlhf.system.errors import Stopped, UserError

FAR_FROM_TARGET = 1.5  # times the KL's target, or its inverse: what is warned of


@dataclass(frozen=True)
class Setup:
    """What the iterations work with: the model with its roles, the reward, prompts, and text for PPO-ptx."""

    model: SharedModel
    scorer: ResponseScorer
    prompts: Spool[EncodedPrompt]
    text: TextStream | None


def with_rewards_of_run(config: PPOConfig) -> PPOConfig:
    """The config with a reward model of weight 0 where a run without a reward stage has other rewards.

    A reward stage that is a process reward becomes the one of the config.
    """
    folder = config.reward or f"{config.run}/reward"
    if config.reward is not None or Path(folder).exists():
        if config.reward_model_weight and step_end_of(find_stage(folder, "reward")) is not None:
            if config.process is not None:
                raise UserError(
                    f"--process {config.process}: {folder} is a process reward already; leave one of both out"
                )
            weight = config.process_weight * config.reward_model_weight
            return replace(config, process=folder, process_weight=weight, reward=None, reward_model_weight=0.0)
        return config
    if not config.has_other_rewards:
        return config
    if config.reward_model_weight:
        log.info("%s has no reward stage: the other rewards alone are the reward", config.run)
    return replace(config, reward_model_weight=0.0)


def set_up(config: PPOConfig, folder: StageFolder, model: SharedModel | None) -> Setup:
    """Checks parents and data, loads what is not in memory, and begins the stage's folder.

    UserError, before any weights are loaded where that can be, for all that cannot be used.
    """
    sft, reward, process = _find_parents(config)
    init = find_init(config.init, sft)
    for parent in (reward, process):
        if parent is not None and not folder.resumes:
            _require_better_than_chance(config, parent)
    prompts: Source[Prompt] = source_of(config, config.prompts, "prompts")
    scorer = ResponseScorer.from_config(
        config, list(itertools.islice(prompts, TRIED)), _process_reward(config, process)
    )
    require_engine(config, sft)
    model = open_parent_base(config, sft, model)
    require_context(model, config)
    ensure_template(model.tokenizer)
    encoded = encode_prompts(config, prompts, model.tokenizer)
    text = _open_pretraining_text(config, model)
    seed_everything(config.seed)
    make_policy(model, "policy", sft, init, config.reference)
    _make_reward_roles(config, model, reward)
    if process is not None:
        load_parent_role(model, PROCESS, process)
    others = {"reward": reward, PROCESS: process, INIT: init}
    parents = {"sft": sft} | {name: parent for name, parent in others.items() if parent is not None}
    folder.begin(
        describe_base(model), parents, {"prompts": config.prompts, "pretraining_text": config.pretraining_text}
    )
    held_to = init if init is not None and config.reference == INIT else sft
    reference = "the bare base" if config.reference == "base" else f"the adapter of {held_to.folder}, frozen"
    log.info("KL is measured to %s; roles on one base: %s", reference, ", ".join(model.roles))
    return Setup(model, scorer, encoded, text)


def finish(config: PPOConfig, setup: Setup, folder: StageFolder, results: dict[str, Any]) -> None:
    """Saves the adapters and marks the stage as finished. Stopped where the policy is still the SFT model."""
    model = setup.model
    if same_state(model.adapter_state("policy"), model.adapter_state(INIT if config.init else "sft")):
        raise Stopped(
            f"{folder.path}: nothing was learned in {config.iterations} iterations: the policy is what it began as, so "
            " the stage is not finished. See the warnings above; --overwrite begins again"
        )
    workers.from_main(lambda: _save_adapters(model, folder))
    roles = [role for role in ("sft", "reward", PROCESS, "policy", "value") if role in model.roles]
    folder.finish(
        {
            "prompts": len(setup.prompts),
            "reference": config.reference,
            "adapter_bytes": {role: adapter_bytes(model, role) for role in roles},
            **results,
        },
        _outcome(config, results),
    )
    target = config.kl_target
    if target is not None and not target / FAR_FROM_TARGET <= results["kl"] <= target * FAR_FROM_TARGET:
        log.warning(
            "KL ended at %.2f times its target: give more --iterations, a shorter --kl-horizon or another --kl-coef",
            results["kl"] / target,
        )


def _outcome(config: PPOConfig, results: dict[str, Any]) -> str:
    """How the training ended, in a few words."""
    target = "" if config.kl_target is None else f" (target {config.kl_target:g})"
    within = " (the judge's part is a share of the group: 0.5 whatever is learned)"
    return (
        f"score {results['first_score']:.2f} in the first iteration, {results['last_score']:.2f} at the end"
        f"{within if config.reward_judge_against == 'group' else ''}; KL {results['kl']:.2f} nats a response{target}"
    )


def warn_of_useless_rollout(config: PPOConfig, rollout: Rollout, targets: Targets, iteration: int) -> None:
    """Warns of an iteration that teaches nothing, or teaches never to end."""
    finished, count = rollout.finished, len(rollout.finished)
    if not targets.has_advantages:
        tqdm.write(
            f"iteration {iteration}: all responses to a prompt are worth the same (mean score "
            f"{float(rollout.scores.mean()):.3g}): nothing can be learned from them"
        )
    if not bool(finished.any()):
        tqdm.write(
            f"iteration {iteration}: none of {count} responses ended within max_response_tokens "
            f"{config.max_response_tokens}; raise it, or train the SFT model on shorter answers"
        )
    elif config.missing_eos_score is not None and not bool(finished.all()):
        fixed, ended = float(rollout.scores[~finished].mean()), float(rollout.scores[finished].mean())
        if fixed > ended:
            tqdm.write(
                f"iteration {iteration}: a response that never ends gets {fixed:.3g}, one that ends {ended:.3g} on "
                "average: never ending pays; lower missing_eos_score"
            )


def _save_adapters(model: SharedModel, folder: StageFolder) -> None:
    model.save_role("policy", folder.path / ADAPTER)
    if "value" in model.roles:
        model.save_role("value", folder.path / VALUE_ADAPTER)


def _find_parents(config: PPOConfig) -> tuple[Parent, Parent | None, Parent | None]:
    """The finished SFT stage, the reward stage unless it has no weight, and the process reward if there is one.

    They must share a base.
    """
    sft = find_stage(config.sft or f"{config.run}/sft", "sft")
    move_base(config.model, sft.manifest["base"], str(sft.folder))
    reward = find_reward(config.reward or f"{config.run}/reward", sft) if config.reward_model_weight else None
    process = None if config.process is None else find_reward(config.process, sft)
    for stage in (reward, process):
        if stage and (parent := stage.manifest["parents"].get("sft")) and parent["id"] != sft.manifest["id"]:
            log.warning(
                "%s was trained from another SFT model than %s: train it again, unless that is meant",
                *(stage.folder, sft.folder),
            )
    return sft, reward, process


def _process_reward(config: PPOConfig, process: Parent | None) -> ProcessReward | None:
    """How the process reward scores. UserError for a reward stage that is none."""
    if process is None:
        return None
    step_end = step_end_of(process)
    if step_end is None:
        raise UserError(
            f"--process {process.folder}: this reward model was trained on rankings, and scores whole responses; name "
            "it with --reward, or train one on steps (reward --steps)"
        )
    return ProcessReward(step_end, config.score_steps_by, config.process_weight)


def _require_better_than_chance(config: PPOConfig, reward: Parent) -> None:
    """UserError for a reward model whose held-out accuracy may be a coin's, unless the user accepts it.

    Warns of one whose accuracy was not measured.
    """
    if held_out_accuracy(reward.manifest["results"]) is None:
        log.warning(
            "%s: whether this reward model is better than chance is not known, because nothing was held out: PPO "
            "may learn noise. Read the samples",
            reward.folder,
        )
    if (fault := chance_fault(reward.manifest["results"])) and not config.accept_chance_reward:
        raise UserError(
            f"{reward.folder}: {fault}. PPO would learn noise: collect more labels, or give --accept_chance_reward true"
        )


def _open_pretraining_text(config: PPOConfig, model: SharedModel) -> TextStream | None:
    """A stream of blocks of pretraining text; None if the user gave none."""
    if config.pretraining_text is None:
        return None
    source: Source[Text] = Source(config.pretraining_text, "texts", strict=config.strict)
    stream = TextStream(
        lambda: source, model.tokenizer, config.ptx_block_tokens, config.seed, config.ptx_shuffle_blocks
    )
    report_refusals(config.pretraining_text, source.refused)  # of what was read so far: a long text is read as it goes
    return stream


def _make_reward_roles(config: PPOConfig, model: SharedModel, reward: Parent | None) -> None:
    """Loads the reward role, and makes the value role a bit-exact copy of it; without it, one of the SFT role."""
    if reward is not None:
        load_parent_role(model, "reward", reward)
    if config.has_value_role and reward is not None:
        model.copy_role("reward", "value", head="copy")
    elif config.has_value_role:
        model.copy_role("sft", "value", head="new")
