"""PPO's learning step: clipped policy and value losses and the pretraining term, on minibatches of one rollout."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_rlhf.algo.advantages import gae, grpo, rloo
from lora_rlhf.algo.kl import k1
from lora_rlhf.algo.losses import lm_loss, policy_loss, value_loss
from lora_rlhf.algo.masking import explained_variance, masked_mean, masked_normalize, masked_rescale
from lora_rlhf.algo.rewards import apply_missing_eos, token_rewards
from lora_rlhf.config import PPOConfig
from lora_rlhf.data.stream import TextStream
from lora_rlhf.model.forward import response_logprobs, response_values, text_logprobs
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stages.rollout import Rollout
from lora_rlhf.stages.session import adamw, role_parameters, set_learning_rate


@dataclass(frozen=True)
class Targets:
    """What a rollout teaches: advantages (B, R) for the policy, returns (B, R) for the value (None without one)."""

    advantages: Tensor
    returns: Tensor | None


def targets(config: PPOConfig, rollout: Rollout, kl_coef: float) -> Targets:
    """Token rewards, then advantages: GAE against the value role, or each response against its siblings.

    Critic-free, the KL penalty of the whole response is taken off its score first, and every token gets the same
    advantage (RLOO, arXiv 2402.14740; GRPO's groups, arXiv 2402.03300). GAE's are normalised over the batch.
    """
    mask = rollout.mask
    scores = apply_missing_eos(rollout.scores, rollout.finished, config.missing_eos_score)
    kl = torch.where(mask, k1(rollout.old_logprobs, rollout.ref_logprobs), 0.0)
    if config.advantage == "gae":
        assert rollout.values is not None
        rewards = token_rewards(scores, kl, mask, kl_coef)
        if config.whiten_rewards:
            rewards = masked_rescale(rewards, mask)
        advantages, returns = gae(rewards, rollout.values, mask, config.gamma, config.lam)
        return Targets(masked_normalize(advantages, mask), returns)
    estimate = rloo if config.advantage == "rloo" else grpo
    per_response = estimate(scores - kl_coef * kl.sum(dim=1), config.samples_per_prompt)
    return Targets(torch.where(mask, per_response.unsqueeze(1), 0.0), None)


class Learner:
    """The trained roles, their optimizers and the pretraining text."""

    def __init__(self, config: PPOConfig, model: SharedModel, text: TextStream | None) -> None:
        self.config, self.model, self.text = config, model, text
        rates = {"policy": config.policy_learning_rate}
        if config.advantage == "gae":
            rates["value"] = config.value_learning_rate
        self.peaks = rates
        self.optimizers = {role: adamw(role_parameters(model, role), rate) for role, rate in rates.items()}

    def set_share_of_peak(self, share: float) -> None:
        """Learning rates as a share of their peaks, for the warm-up."""
        for role, optimizer in self.optimizers.items():
            set_learning_rate(optimizer, share * self.peaks[role])

    def learn(self, rollout: Rollout, goal: Targets, generator: torch.Generator) -> dict[str, float]:
        """`num_epochs` passes over the rollout in minibatches; returns the means of their metrics.

        Ends early when the policy has moved further from the rollout's than `stop_at_approx_kl`.
        """
        rows: list[dict[str, float]] = []
        for minibatch in self._minibatches(len(rollout.sequences), generator):
            metrics = self._policy_step(rollout, goal, minibatch)
            if goal.returns is not None:
                metrics |= self._value_step(rollout, goal, minibatch)
            rows.append(metrics)
            limit = self.config.stop_at_approx_kl
            if limit is not None and metrics["ppo/approx_kl"] > limit:
                break
        means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        means["ppo/ratio_deviation"] = rows[0]["ppo/ratio_deviation"]  # of the first step, where it should be 0
        means["ppo/updates"] = float(len(rows))
        if goal.returns is not None and rollout.values is not None:
            means["ppo/explained_variance"] = float(explained_variance(rollout.values, goal.returns, rollout.mask))
        return means

    def _minibatches(self, count: int, generator: torch.Generator) -> Iterator[list[int]]:
        for _ in range(self.config.num_epochs):
            order = torch.randperm(count, generator=generator).tolist()
            for start in range(0, count, self.config.minibatch_size):
                yield order[start : start + self.config.minibatch_size]

    def _micro_batches(self, rollout: Rollout, minibatch: list[int]) -> list[list[int]]:
        groups = rollout.sequences.index(minibatch).micro_batches(self.config.micro_batch_size)
        return [[minibatch[row] for row in group] for group in groups]

    def _policy_step(self, rollout: Rollout, goal: Targets, minibatch: list[int]) -> dict[str, float]:
        num_tokens = int(rollout.mask[minibatch].sum())
        totals: dict[str, float] = {}
        deviation = 0.0
        self.optimizers["policy"].zero_grad()
        with self.model.role("policy", training=True):
            for rows in self._micro_batches(rollout, minibatch):
                mask, old = rollout.mask[rows], rollout.old_logprobs[rows]
                new, entropy = response_logprobs(self.model, rollout.sequences.index(rows), self.config.temperature)
                part = policy_loss(new, old, goal.advantages[rows], mask, self.config.clip_range, num_tokens)
                part.loss.backward()
                deviation = max(deviation, float((new.detach() - old).abs().amax()))
                _add(totals, "ppo/policy_loss", part.loss)
                _add(totals, "ppo/clip_fraction", part.clip_fraction)
                _add(totals, "ppo/approx_kl", part.approx_kl)
                _add(totals, "ppo/entropy", masked_mean(entropy, mask, num_tokens))
            if self.text is not None:
                totals["ppo/ptx_loss"] = self._pretraining_gradient(self.text)
            totals["ppo/grad_norm"] = self._step("policy")
        return {**totals, "ppo/ratio_deviation": deviation}

    def _pretraining_gradient(self, text: TextStream) -> float:
        """Adds ptx_coef times the language-modelling gradient to the policy's (PPO-ptx; InstructGPT, eq. 2)."""
        blocks = torch.stack([next(text) for _ in range(self.config.ptx_batch_size)]).to(self.model.device)
        num_tokens = blocks.shape[0] * (blocks.shape[1] - 1)
        total = 0.0
        for part in blocks.split(self.config.micro_batch_size):
            logprobs = text_logprobs(self.model, part, torch.ones_like(part, dtype=torch.bool))
            loss = lm_loss(logprobs, torch.ones_like(logprobs, dtype=torch.bool), num_tokens)
            (self.config.ptx_coef * loss).backward()
            total += float(loss.detach())
        return total

    def _value_step(self, rollout: Rollout, goal: Targets, minibatch: list[int]) -> dict[str, float]:
        assert rollout.values is not None and goal.returns is not None
        num_tokens = int(rollout.mask[minibatch].sum())
        totals: dict[str, float] = {}
        self.optimizers["value"].zero_grad()
        with self.model.role("value", training=True):
            for rows in self._micro_batches(rollout, minibatch):
                mask = rollout.mask[rows]
                values = response_values(self.model, rollout.sequences.index(rows)) - rollout.value_offset
                old, returns = rollout.values[rows], goal.returns[rows]
                part = value_loss(values, old, returns, mask, self.config.value_clip_range, num_tokens)
                part.loss.backward()
                _add(totals, "ppo/value_loss", part.loss)
                _add(totals, "ppo/value_clip_fraction", part.clip_fraction)
            totals["ppo/value_grad_norm"] = self._step("value")
        return totals

    def _step(self, role: str) -> float:
        """Clips the role's gradients and applies them; returns their norm before. Raises if one is missing."""
        self.model.check_gradients(role)
        norm = torch.nn.utils.clip_grad_norm_(role_parameters(self.model, role), self.config.max_grad_norm)
        self.optimizers[role].step()
        return float(norm)


def _add(totals: dict[str, float], key: str, value: Tensor) -> None:
    totals[key] = totals.get(key, 0.0) + float(value.detach())
