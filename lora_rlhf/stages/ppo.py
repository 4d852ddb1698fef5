"""Stage 3, proximal policy optimization: its parents, roles and reward; the iterations are in `ppo_loop`."""

import importlib

from lora_rlhf.configs.stages import PPOConfig
from lora_rlhf.configs.values import check
from lora_rlhf.data.schema import Prompt, Text
from lora_rlhf.data.sources import Source
from lora_rlhf.data.stream import TextStream
from lora_rlhf.data.template import ensure_template
from lora_rlhf.model.memory import adapter_bytes
from lora_rlhf.model.open import describe_base, require_same_base
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import ADAPTER, VALUE_ADAPTER, Parent, StageFolder, find_stage
from lora_rlhf.stages.decoding import require_rollout
from lora_rlhf.stages.ppo_loop import PPOLoop
from lora_rlhf.stages.rollout import Judge, RewardFunction
from lora_rlhf.stages.rows import read_prompts_for, report_refusals
from lora_rlhf.stages.session import (
    bring,
    log,
    open_parent_base,
    require_context,
    seed_everything,
)
from lora_rlhf.system import workers
from lora_rlhf.system.errors import UserError


def train(config: PPOConfig, model: SharedModel | None = None) -> SharedModel:
    """Trains the `policy` adapter against the reward, held to the reference by a KL penalty."""
    check(config)
    with StageFolder.open(config, "ppo") as folder:
        sft, reward = _parents(config)
        prompts: Source[Prompt] = Source(config.prompts, "prompts", config.format, config.strict)
        prompts.require_first()
        function = _load_function(config.reward_function)
        require_rollout(config, sft)
        model = open_parent_base(config, sft, model)
        require_context(model, config)
        ensure_template(model.tokenizer)
        encoded = read_prompts_for(config, prompts, model.tokenizer)
        text = _pretraining_text(config, model)
        seed_everything(config.seed)
        parents = {"sft": sft} | ({"reward": reward} if reward else {})
        _make_roles(config, model, sft, reward)
        data = {"prompts": config.prompts, "pretraining_text": config.pretraining_text}
        folder.begin(describe_base(model), parents, data)
        offset = reward.manifest["results"]["offset"] if reward else 0.0
        roles = [role for role in ("sft", "reward", "policy", "value") if role in model.roles]
        sizes = {role: adapter_bytes(model, role) for role in roles}
        reference = f"the adapter of {sft.folder}, frozen" if config.reference == "sft" else "the bare base"
        log.info("KL is measured to %s; roles on one base: %s", reference, ", ".join(model.roles))
        judge = Judge(config.reward_model_weight, offset, function, config.reward_function_weight, config.score_clip)
        results = PPOLoop(config, model, folder, judge, encoded, text).run()
        workers.from_main(lambda: _save(model, folder))
        folder.finish({"prompts": len(encoded), "reference": config.reference, "adapter_bytes": sizes, **results})
    return model


def _save(model: SharedModel, folder: StageFolder) -> None:
    model.save_role("policy", folder.path / ADAPTER)
    if "value" in model.roles:
        model.save_role("value", folder.path / VALUE_ADAPTER)


def _parents(config: PPOConfig) -> tuple[Parent, Parent | None]:
    """The finished SFT stage, and the reward stage unless a function alone is the reward. They must share a base."""
    sft = find_stage(config.sft or f"{config.run}/sft", "sft")
    require_same_base(config.model, sft.manifest["base"], str(sft.folder))
    if config.reward_model_weight == 0:
        return sft, None
    reward = find_stage(config.reward or f"{config.run}/reward", "reward")
    for key, value in sft.manifest["base"].items():
        if reward.manifest["base"].get(key) != value:
            raise UserError(
                f"{reward.folder} and {sft.folder} stand on different bases: {key} is "
                f"{reward.manifest['base'].get(key)!r} and {value!r}; train both on one base"
            )
    if (parent := reward.manifest["parents"].get("sft")) and parent["id"] != sft.manifest["id"]:
        log.warning(
            "%s was trained from another SFT model than %s: train it again, unless that is meant",
            *(reward.folder, sft.folder),
        )
    return sft, reward


def _load_function(name: str | None) -> RewardFunction | None:
    """The callable that module:function names."""
    if name is None:
        return None
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"reward_function {name!r} cannot be imported ({error}); is its folder on PYTHONPATH?"
        ) from error
    if not callable(function):
        raise UserError(f"reward_function {name!r} is a {type(function).__name__}, not a function")
    return function


def _pretraining_text(config: PPOConfig, model: SharedModel) -> TextStream | None:
    if config.pretraining_text is None:
        return None
    source: Source[Text] = Source(config.pretraining_text, "texts", strict=config.strict)
    blocks, seed, held = config.ptx_block_tokens, config.seed, config.ptx_shuffle_blocks
    stream = TextStream(lambda: source, model.tokenizer, blocks, seed, held)
    report_refusals(config.pretraining_text, source.refused)  # of what was read so far: a long text is read as it goes
    return stream


def _make_roles(config: PPOConfig, model: SharedModel, sft: Parent, reward: Parent | None) -> None:
    """Policy begins as the SFT model, value as the reward model, each a bit-exact copy; the reference is no copy."""
    bring(model, "sft", sft)
    model.alias("reference", "sft" if config.reference == "sft" else "base")
    model.copy_role("sft", "policy")
    if reward is not None:
        bring(model, "reward", reward)
    if config.advantage == "gae" and reward is not None:
        model.copy_role("reward", "value", head="copy")
    elif config.advantage == "gae":
        model.copy_role("sft", "value", head="new")
