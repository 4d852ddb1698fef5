"""PPO's learning step: clipped policy and value losses and the pretraining term, on minibatches of one rollout."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_rlhf.algo.advantages import gae, grpo, rloo
from lora_rlhf.algo.kl import k1
from lora_rlhf.algo.losses import lm_loss, policy_loss, value_loss
from lora_rlhf.algo.masking import explained_variance, masked_mean, masked_normalize, masked_rescale
from lora_rlhf.algo.rewards import apply_missing_eos, token_rewards
from lora_rlhf.configs.stages import PPOConfig
from lora_rlhf.data.stream import TextStream
from lora_rlhf.model.forward import response_logprobs, response_values, text_logprobs
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stages.fitting import Pieces
from lora_rlhf.stages.learning import RoleOptimizer
from lora_rlhf.stages.rollout import Rollout
from lora_rlhf.system import workers


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


class TooFar(Exception):
    """A minibatch on which the policy has moved so far from the rollout's that its ratios mean nothing."""


@dataclass
class Learning:
    """How far the learning from one rollout has got: what a checkpoint in its middle keeps."""

    order: list[list[int]]  # the minibatches of all epochs
    steps: list[dict[str, float]] = field(default_factory=list)  # metrics of those done
    ended: bool = False  # before its end, since the policy has moved far enough
    too_far: bool = False  # or too far

    @classmethod
    def begin(cls, config: PPOConfig, count: int, generator: torch.Generator) -> "Learning":
        """`num_epochs` passes over the rollout's responses in minibatches, each in an order of its own."""
        order: list[list[int]] = []
        for _ in range(config.num_epochs):
            rows = torch.randperm(count, generator=generator).tolist()
            order += [rows[start : start + config.minibatch_size] for start in range(0, count, config.minibatch_size)]
        return cls(order)


class Learner:
    """The trained roles, their optimizers and the pretraining text."""

    def __init__(self, config: PPOConfig, model: SharedModel, text: TextStream | None, pieces: Pieces) -> None:
        self.config, self.model, self.text = config, model, text
        rates = {"policy": config.policy_learning_rate}
        if config.advantage == "gae":
            rates["value"] = config.value_learning_rate
        self.peaks = rates
        self.optimizers = {
            role: RoleOptimizer(model, role, rate, config.max_grad_norm, pieces, optimizer=config.optimizer)
            for role, rate in rates.items()
        }

    def set_share_of_peak(self, share: float) -> None:
        """Learning rates as a share of their peaks, for the warm-up."""
        for role, optimizer in self.optimizers.items():
            optimizer.set_learning_rate(share * self.peaks[role])

    def learn(
        self, rollout: Rollout, goal: Targets, learning: Learning, after_step: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """The minibatches that are left; returns the means of all their metrics.

        Ends early when the policy has moved further from the rollout's than `stop_at_approx_kl`, or, unlearned, than
        `max_ratio`. `after_step` is called after each minibatch.
        """
        config = self.config
        while len(learning.steps) < len(learning.order) and not learning.ended:
            minibatch = learning.order[len(learning.steps)]
            try:
                metrics = self._policy_step(rollout, goal, minibatch)
            except TooFar:
                learning.ended = learning.too_far = True
                break
            if goal.returns is not None:
                metrics |= self._value_step(rollout, goal, minibatch)
            learning.steps.append(metrics)
            limit = config.stop_at_approx_kl
            learning.ended = limit is not None and metrics["ppo/approx_kl"] > limit
            after_step()
        rows = learning.steps
        means = {key: sum(row[key] for row in rows) / len(rows) for key in (rows[0] if rows else {})}
        if rows:
            means["ppo/ratio_deviation"] = rows[0]["ppo/ratio_deviation"]  # of the first step, where it should be 0
        means["ppo/updates"] = float(len(rows))
        if goal.returns is not None and rollout.values is not None:
            means["ppo/explained_variance"] = float(explained_variance(rollout.values, goal.returns, rollout.mask))
        return means

    def rehearse(self, rollout: Rollout, goal: Targets) -> None:
        """A step of each role on all of a rollout, of which no trace remains."""
        rows = list(range(len(rollout.sequences)))
        blocks = None
        if self.text is not None:
            blocks = torch.zeros((len(rows), self.config.ptx_block_tokens), dtype=torch.long, device=self.model.device)
        self.optimizers["policy"].rehearse(lambda size: self._accumulate_policy(rollout, goal, rows, blocks, size)[0])
        if goal.returns is not None:
            self.optimizers["value"].rehearse(lambda size: self._accumulate_value(rollout, goal, rows, size))

    def _micro_batches(self, rollout: Rollout, minibatch: list[int], size: int) -> list[list[int]]:
        """This process's share of a minibatch."""
        own = workers.share(minibatch)
        return [[own[row] for row in group] for group in rollout.sequences.index(own).micro_batches(size)]

    def _policy_step(self, rollout: Rollout, goal: Targets, minibatch: list[int]) -> dict[str, float]:
        blocks = None
        if self.text is not None:
            blocks = torch.stack([next(self.text) for _ in range(self.config.ptx_batch_size)]).to(self.model.device)
        deviation = 0.0

        def accumulate(size: int) -> dict[str, float]:
            nonlocal deviation
            totals, deviation = self._accumulate_policy(rollout, goal, minibatch, blocks, size)
            return totals

        def inspect(totals: dict[str, float]) -> None:
            if self.config.max_ratio is not None and totals["ppo/ratio"] > self.config.max_ratio:
                raise TooFar

        metrics = self.optimizers["policy"].step(accumulate, inspect)
        metrics["ppo/grad_norm"] = metrics.pop("grad_norm")
        return {**metrics, "ppo/ratio_deviation": max(workers.gather([deviation]))}

    def _accumulate_policy(
        self, rollout: Rollout, goal: Targets, minibatch: list[int], blocks: Tensor | None, size: int
    ) -> tuple[dict[str, float], float]:
        """Metrics that add up, and the largest distance of a log-probability from the rollout's."""
        num_tokens = int(rollout.mask[minibatch].sum())
        totals: dict[str, Tensor] = {}  # read once at the end: each reading waits for the GPU
        deviation = torch.zeros((), device=self.model.device)
        for rows in self._micro_batches(rollout, minibatch, size):
            mask, old = rollout.mask[rows], rollout.old_logprobs[rows]
            new, entropy = response_logprobs(self.model, rollout.sequences.index(rows), self.config.temperature)
            part = policy_loss(new, old, goal.advantages[rows], mask, self.config.clip_range, num_tokens)
            part.loss.backward()
            deviation = torch.maximum(deviation, (new.detach() - old).abs().amax())
            _add(totals, "ppo/policy_loss", part.loss)
            _add(totals, "ppo/clip_fraction", part.clip_fraction)
            _add(totals, "ppo/approx_kl", part.approx_kl)
            _add(totals, "ppo/entropy", masked_mean(entropy, mask, num_tokens))
            _add(totals, "ppo/ratio", masked_mean((new.detach() - old).exp(), mask, num_tokens))
        if blocks is not None:
            totals["ppo/ptx_loss"] = self._pretraining_gradient(blocks, size)
        return _read(totals), float(deviation)

    def _pretraining_gradient(self, blocks: Tensor, size: int) -> Tensor:
        """Adds ptx_coef times the language-modelling gradient to the policy's (PPO-ptx; InstructGPT, eq. 2)."""
        num_tokens = blocks.shape[0] * (blocks.shape[1] - 1)
        own = workers.share(range(len(blocks)))
        total = torch.zeros((), dtype=torch.float64, device=blocks.device)
        for start in range(0, len(own), size):
            part = blocks[own[start : start + size]]
            logprobs = text_logprobs(self.model, part, torch.ones_like(part, dtype=torch.bool))
            loss = lm_loss(logprobs, torch.ones_like(logprobs, dtype=torch.bool), num_tokens)
            (self.config.ptx_coef * loss).backward()
            total += loss.detach()
        return total

    def _value_step(self, rollout: Rollout, goal: Targets, minibatch: list[int]) -> dict[str, float]:
        step = self.optimizers["value"].step
        metrics = step(lambda size: self._accumulate_value(rollout, goal, minibatch, size))
        metrics["ppo/value_grad_norm"] = metrics.pop("grad_norm")
        return metrics

    def _accumulate_value(self, rollout: Rollout, goal: Targets, minibatch: list[int], size: int) -> dict[str, float]:
        assert rollout.values is not None and goal.returns is not None
        num_tokens = int(rollout.mask[minibatch].sum())
        totals: dict[str, Tensor] = {}
        for rows in self._micro_batches(rollout, minibatch, size):
            mask = rollout.mask[rows]
            values = response_values(self.model, rollout.sequences.index(rows)) - rollout.value_offset
            old, returns = rollout.values[rows], goal.returns[rows]
            part = value_loss(values, old, returns, mask, self.config.value_clip_range, num_tokens)
            part.loss.backward()
            _add(totals, "ppo/value_loss", part.loss)
            _add(totals, "ppo/value_clip_fraction", part.clip_fraction)
        return _read(totals)


def _add(totals: dict[str, Tensor], key: str, value: Tensor) -> None:
    totals[key] = totals.get(key, 0.0) + value.detach().double()


def _read(totals: dict[str, Tensor]) -> dict[str, float]:
    return dict(zip(totals, torch.stack(list(totals.values())).tolist(), strict=True)) if totals else {}
