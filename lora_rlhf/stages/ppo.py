"""Stage 3, proximal policy optimization: act, judge, reward, learn, steer (InstructGPT, section 3.5, eq. 2)."""

import importlib
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lora_rlhf.algo.kl import AdaptiveKL, FixedKL, k1, k3
from lora_rlhf.algo.rewards import apply_missing_eos
from lora_rlhf.config import PPOConfig
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.schema import Prompt, Text
from lora_rlhf.data.sources import Source
from lora_rlhf.data.stream import TextStream
from lora_rlhf.data.template import decode_response, ensure_template
from lora_rlhf.errors import UserError
from lora_rlhf.model.memory import adapter_bytes, peak_gpu_gib, peak_rss_gib
from lora_rlhf.model.open import describe_base, require_same_base
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.run import ADAPTER, VALUE_ADAPTER, Parent, StageFolder, find_stage
from lora_rlhf.settings import check
from lora_rlhf.stages.rollout import Judge, RewardFunction, Rollout, act, collect
from lora_rlhf.stages.rows import read_prompts_for, report_refusals
from lora_rlhf.stages.session import (
    FLOOR,
    batches,
    bring,
    log,
    open_parent_base,
    pick_fixed,
    require_context,
    same_state,
    seed_everything,
)
from lora_rlhf.stages.update import Learner, Targets, targets

FIXED_PROMPTS = 8  # whose responses are recorded over time
# Largest difference of log-probabilities that is still "the same policy" before the first update. On a CPU only the
# order of summation differs; on a GPU passes with and without gradients run different 4-bit kernels in 16 bits.
TOLERANCE = {"cpu": 1e-4, "cuda": 0.25}
TAIL = 10  # iterations whose mean KL is reported as the KL at the end


def train(config: PPOConfig, model: SharedModel | None = None) -> SharedModel:
    """Trains the `policy` adapter against the reward, held to the reference by a KL penalty."""
    check(config)
    folder = StageFolder.check_free(config, "ppo")
    sft, reward = _parents(config)
    prompts: Source[Prompt] = Source(config.prompts, "prompts", config.format, config.strict)
    next(iter(prompts))  # a file that cannot be used is said before the model is loaded
    function = _load_function(config.reward_function)
    model = open_parent_base(config, sft, model)
    require_context(model, config)
    ensure_template(model.tokenizer)
    encoded = read_prompts_for(config, prompts, model.tokenizer)
    text = _pretraining_text(config, model)
    seed_everything(config.seed)
    parents = {"sft": sft} | ({"reward": reward} if reward else {})
    _make_roles(config, model, sft, reward)
    folder.begin(
        describe_base(model), parents, {"prompts": config.prompts, "pretraining_text": config.pretraining_text}
    )
    offset = reward.manifest["results"]["offset"] if reward else 0.0
    sizes = {role: adapter_bytes(model, role) for role in ("sft", "reward", "policy", "value") if role in model.roles}
    reference = f"the adapter of {sft.folder}, frozen" if config.reference == "sft" else "the bare base"
    log.info("KL is measured to %s; roles on one base: %s", reference, ", ".join(model.roles))
    judge = Judge(config.reward_model_weight, offset, function, config.reward_function_weight, config.score_clip)
    results = _Loop(config, model, folder, judge, encoded, Learner(config, model, text)).run()
    model.save_role("policy", folder.path / ADAPTER)
    if config.advantage == "gae":
        model.save_role("value", folder.path / VALUE_ADAPTER)
    folder.finish({"prompts": len(encoded), "reference": config.reference, "adapter_bytes": sizes, **results})
    return model


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


@dataclass
class _Loop:
    """The iterations, and what they carry from one to the next."""

    config: PPOConfig
    model: SharedModel
    folder: StageFolder
    judge: Judge
    prompts: Sequence[EncodedPrompt]
    learner: Learner
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    latest: dict[str, float] = field(default_factory=dict)  # this iteration's seconds
    rows: list[dict[str, float]] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        config, model = self.config, self.model
        generator = torch.Generator().manual_seed(config.seed)
        fixed = [self.prompts[index] for index in pick_fixed(self.prompts, FIXED_PROMPTS)]
        drawn = self._draw_prompts()
        if config.kl_target is None:
            controller: FixedKL | AdaptiveKL = FixedKL(config.kl_coef)
        else:
            controller = AdaptiveKL(config.kl_coef, config.kl_target, config.kl_horizon)
        reference = None if config.reference == "base" else model.adapter_state("sft")
        progress = tqdm(range(config.iterations), desc="ppo", unit="iteration")
        for iteration in progress:
            prompts = next(drawn)
            with self._timed("rollout_s"):
                responses = act(config, model, prompts, generator)  # 1 act
            with self._timed("score_s"):
                rollout = collect(config, model, self.judge, prompts, responses)  # 2 judge
            before = {role: model.adapter_state(role) for role in self.learner.optimizers} if iteration == 0 else None
            with self._timed("update_s"):
                goal = targets(config, rollout, controller.coef)  # 3 rewards and advantages
                self.learner.set_share_of_peak(_warmup(iteration, config.warmup_iterations))
                learned = self.learner.learn(rollout, goal, generator)  # 4 learn
            metrics = {**self._describe(rollout), **learned, "ppo/kl_coef": controller.coef}
            if before is not None:
                self._check_first_step(metrics, rollout, goal, before)
            controller.update(metrics["rollout/kl"], config.batch_size)  # 5 steer
            self._record(iteration, metrics, fixed)
            progress.set_postfix(score=f"{metrics['rollout/score']:.2f}", kl=f"{metrics['rollout/kl']:.2f}")
        if reference is not None and not same_state(reference, model.adapter_state("sft")):
            raise RuntimeError("the reference changed during PPO: the KL was measured to a moving target")
        tail = self.rows[-TAIL:]
        return {
            "kl": sum(row["rollout/kl"] for row in tail) / len(tail),
            "kl_target": config.kl_target,
            "kl_coef": controller.coef,
            "first_score": self.rows[0]["rollout/score"],
            "last_score": sum(row["rollout/score"] for row in tail) / len(tail),
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "peak_rss_gib": round(peak_rss_gib(), 3),
            "peak_gpu_gib": round(peak_gpu_gib(), 3),
        }

    def _draw_prompts(self) -> Iterator[list[EncodedPrompt]]:
        """Batches of prompts, all of them once before any comes again."""
        rng = seed_everything(self.config.seed)
        count = self.config.batch_size // self.config.samples_per_prompt
        waiting: list[int] = []
        while True:
            while len(waiting) < count:
                waiting += [index for batch in batches(len(self.prompts), count, rng) for index in batch]
            yield [self.prompts[index] for index in waiting[:count]]
            waiting = waiting[count:]

    def _describe(self, rollout: Rollout) -> dict[str, float]:
        mask, lengths = rollout.mask, rollout.mask.sum(dim=1).double()
        kl = torch.where(mask, k1(rollout.old_logprobs, rollout.ref_logprobs), 0.0)
        kl3 = torch.where(mask, k3(rollout.old_logprobs, rollout.ref_logprobs), 0.0)
        scores = apply_missing_eos(rollout.scores, rollout.finished, self.config.missing_eos_score)
        return {
            "rollout/score": float(scores.mean()),
            "rollout/score_sd": float(scores.std()) if len(scores) > 1 else 0.0,
            "rollout/kl": float(kl.sum(dim=1).mean()),  # nats per response
            "rollout/kl_k3": float(kl3.sum(dim=1).mean()),
            "rollout/length": float(lengths.mean()),
            "rollout/eos_rate": float(rollout.finished.double().mean()),
            "rollout/entropy": float(rollout.entropy.sum() / mask.sum()),
        }

    def _check_first_step(
        self, metrics: dict[str, float], rollout: Rollout, goal: Targets, before: dict[str, dict[str, Tensor]]
    ) -> None:
        """What must hold before anything was learned, and after the first step; a breach means a broken set-up."""
        tolerance = TOLERANCE.get(self.model.device.type, TOLERANCE["cuda"])
        if self.config.reference == "sft":
            drift = float((rollout.old_logprobs - rollout.ref_logprobs).abs().max())
            if drift > tolerance:
                raise RuntimeError(f"policy and reference differ by {drift:.2g} nats before the first update")
        if metrics["ppo/ratio_deviation"] > tolerance:
            raise RuntimeError(
                f"the first update sees log-probabilities {metrics['ppo/ratio_deviation']:.2g} nats off the rollout's"
            )
        # Where all responses to a prompt are worth the same (none is right yet), siblings have nothing to teach.
        must_move = [role for role in before if role != "policy" or bool(goal.advantages.any())]
        for role in must_move:
            if same_state(before[role], self.model.adapter_state(role)):
                raise RuntimeError(f"the {role} adapter did not move in the first update; is its learning rate 0?")

    def _record(self, iteration: int, metrics: dict[str, float], fixed: list[EncodedPrompt]) -> None:
        last = iteration == self.config.iterations - 1
        timed = {f"time/{name}": value for name, value in self.latest.items()}
        timed["time/tokens_per_s"] = metrics["rollout/length"] * self.config.batch_size / sum(self.latest.values())
        self.rows.append(metrics)
        self.folder.log(iteration + 1, {**metrics, **timed, "memory/peak_gib": peak_gpu_gib() or peak_rss_gib()})
        if iteration % self.config.sample_every == 0 or last:
            generator = torch.Generator().manual_seed(self.config.seed)
            answers = act(self.config, self.model, fixed, generator)[:: self.config.samples_per_prompt]
            texts = [decode_response(self.model.tokenizer, answer.ids).strip() for answer in answers]
            asked = [prompt.prompt.messages[-1].content for prompt in fixed]
            rows = [{"prompt": one, "response": other} for one, other in zip(asked, texts, strict=True)]
            self.folder.sample(iteration + 1, rows)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        self.latest[name] = time.monotonic() - started
        self.seconds[name] += self.latest[name]


def _warmup(iteration: int, over: int) -> float:
    """Share of the peak learning rate: linear from a tenth (InstructGPT, appendix C.4)."""
    return 1.0 if over == 0 else min(1.0, FLOOR + (1 - FLOOR) * iteration / over)
