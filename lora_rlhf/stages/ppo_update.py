"""PPO's optimizer steps: the clipped losses of policy and value, over minibatches (InstructGPT, section 3.5, eq. 2)."""

from collections import defaultdict

import torch
from torch import Tensor

from lora_rlhf.algo.advantages import gae
from lora_rlhf.algo.kl import AdaptiveKL, FixedKL
from lora_rlhf.algo.losses import kl_loss, mismatch_weights, policy_loss, ptx_loss, response_weights, value_loss
from lora_rlhf.algo.masking import explained_variance, masked_mean
from lora_rlhf.configs.stages import PPOConfig
from lora_rlhf.data.stream import TextStream
from lora_rlhf.model.forward import response_logprobs, response_values, text_logprobs
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stages.auto_batch import AutoBatch
from lora_rlhf.stages.ppo_checks import check_start, is_exact
from lora_rlhf.stages.ppo_rollout import Metrics, Rollout, Targets
from lora_rlhf.stages.trainer import RoleOptimizer
from lora_rlhf.system import workers


class PolicyTooFar(Exception):
    """The policy has moved so far from the rollout's on a minibatch that its probability ratios mean nothing."""


class Update:
    """The steps that an iteration learns by, and the optimizers of the roles that are trained."""

    def __init__(
        self,
        config: PPOConfig,
        model: SharedModel,
        batch: AutoBatch,
        kl: FixedKL | AdaptiveKL,
        text: TextStream | None,  # for the pretraining term
    ) -> None:
        self.config, self.model, self.kl, self.text = config, model, kl, text
        peaks = {"policy": config.policy_learning_rate}
        if config.has_value_role:
            peaks["value"] = config.value_learning_rate
        self.optimizers = {role: RoleOptimizer(config, model, role, peak, batch) for role, peak in peaks.items()}
        self.must_weigh = config.mismatch_cap is not None and not is_exact(model)

    def learn(
        self,
        rollout: Rollout,
        targets: Targets,
        minibatches: list[list[int]],
        value_metrics: Metrics | None = None,
        must_start_at_1: bool = False,
    ) -> tuple[Metrics, bool]:
        """A step for each of the minibatches (`num_epochs` passes); returns mean metrics, and whether it went too far.

        `value_metrics`: of the value role's first step, if that was taken. `must_start_at_1`: the first step of the
        policy must find the rollout's own log-probabilities.

        It ends early when the policy has moved further from the rollout's than `stop_at_approx_kl`, in nats per token,
        or, without that step, when a minibatch's mean probability ratio is above `max_ratio`: then it went too far.
        """
        limit, steps, too_far = self.config.stop_at_approx_kl, list[Metrics](), False
        for rows in minibatches:
            try:
                metrics = self.policy_step(rollout, targets, rows, must_start_at_1=must_start_at_1 and not steps)
            except PolicyTooFar:
                too_far = True
                break
            if targets.returns is not None:
                metrics |= value_metrics or self.value_step(rollout, targets, rows)
                value_metrics = None
            steps.append(metrics)
            if limit is not None and metrics["ppo/approx_kl"] > limit:
                break
        means = {key: sum(step[key] for step in steps) / len(steps) for key in (steps[0] if steps else {})}
        if steps:  # of the first step, where both should be 0
            means |= {name: steps[0][name] for name in ("ppo/ratio_deviation", "ppo/ratio_gap")}
            if rollout.is_of_sampler:
                means |= {
                    "rollout/mismatch": steps[0]["ppo/ratio_gap"],
                    "rollout/mismatch_kl": steps[0]["ppo/approx_kl"],
                }
        means |= {**targets.figures, "ppo/updates": float(len(steps))}
        if targets.returns is not None and rollout.values is not None:
            means["ppo/explained_variance"] = float(explained_variance(rollout.values, targets.returns, rollout.mask))
        return means, too_far

    def policy_step(self, rollout: Rollout, targets: Targets, rows: list[int], must_start_at_1: bool) -> Metrics:
        blocks = None
        if self.text is not None:
            blocks = torch.stack([next(self.text) for _ in range(self.config.ptx_batch_size)]).to(self.model.device)
        deviation = 0.0

        def accumulate(size: int) -> Metrics:
            nonlocal deviation
            totals, deviation = self.accumulate_policy_gradient(rollout, targets, rows, blocks, size)
            return totals

        def inspect(totals: Metrics) -> None:
            if must_start_at_1:
                check_start(self.model, totals["ppo/ratio_gap"])
            if self.config.max_ratio is not None and totals["ppo/ratio"] > self.config.max_ratio:
                raise PolicyTooFar

        metrics = self.optimizers["policy"].step(accumulate, inspect)
        metrics["ppo/grad_norm"] = metrics.pop("grad_norm")
        return {**metrics, "ppo/ratio_deviation": max(workers.gather([deviation]))}

    def value_step(self, rollout: Rollout, targets: Targets, rows: list[int], rewards: Tensor | None = None) -> Metrics:
        """One optimizer step of the value role on a minibatch."""
        optimizer = self.optimizers["value"]
        metrics = optimizer.step(lambda size: self.accumulate_value_gradient(rollout, targets, rows, size, rewards))
        metrics["ppo/value_grad_norm"] = metrics.pop("grad_norm")
        return metrics

    def accumulate_policy_gradient(
        self, rollout: Rollout, targets: Targets, rows: list[int], blocks: Tensor | None, size: int
    ) -> tuple[Metrics, float]:
        """Gradient of the policy's loss on some rows, and of the pretraining term on blocks (b, T) of text.

        Returns metrics that add up over micro-batches, and the largest distance of a log-prob from the rollout's.
        """
        config, model, num_tokens = self.config, self.model, int(rollout.mask[rows].sum())
        totals: dict[str, Tensor] = defaultdict(float)  # type: ignore[arg-type]
        deviation = torch.zeros((), device=self.model.device)
        for part in self._split_into_micro_batches(rollout, rows, size):
            mask, old = rollout.mask[part], rollout.old_logprobs[part]
            # scored as well, or the surprise of the tokens, whose expectation it is: two passes over logits less
            is_scored, sequences = config.old_logprobs == "scored", rollout.sequences.index(part)
            new, entropy = response_logprobs(model, sequences, config.temperature, needs_entropy=is_scored)
            weights = response_weights(mask, config.loss_level, num_tokens, len(rows), config.max_response_tokens)
            advantages = targets.advantages[part]
            ranges = config.clip_range, num_tokens, config.clip_range_high
            trained_weights = weights
            if self.must_weigh and rollout.sampled_logprobs is not None:
                assert config.mismatch_cap is not None
                trained_weights = weights * mismatch_weights(old, rollout.sampled_logprobs[part], config.mismatch_cap)
            loss = policy_loss(new, old, advantages, mask, *ranges, trained_weights)
            if config.kl_in == "loss":
                distance = kl_loss(new, rollout.ref_logprobs[part], mask, num_tokens, weights)
                self.model.backward(loss.loss + self.kl.coef * distance)
                totals["ppo/kl_loss"] += distance.detach().double()
            else:
                self.model.backward(loss.loss)
            log_ratio = new.detach() - old
            ratio = log_ratio.exp()
            deviation = torch.maximum(deviation, log_ratio.abs().amax())
            totals["ppo/policy_loss"] += loss.loss.detach().double()
            totals["ppo/clip_fraction"] += loss.clip_fraction.double()
            totals["ppo/approx_kl"] += loss.approx_kl.double()
            surprise = entropy if is_scored else -ratio * new.detach()
            totals["ppo/entropy"] += masked_mean(surprise, mask, num_tokens).double()
            totals["ppo/ratio"] += masked_mean(ratio, mask, num_tokens).double()
            totals["ppo/ratio_gap"] += masked_mean(log_ratio.abs(), mask, num_tokens).double()
        if blocks is not None:
            totals["ppo/ptx_loss"] = self._accumulate_ptx_gradient(blocks, size)
        return _to_floats(totals), float(deviation)

    def _accumulate_ptx_gradient(self, blocks: Tensor, size: int) -> Tensor:
        """Adds ptx_coef times the gradient of the pretraining term (PPO-ptx) to the policy's; returns the term."""
        num_tokens = blocks.shape[0] * (blocks.shape[1] - 1)
        share = blocks[workers.share_of_process(range(len(blocks)))]
        total = torch.zeros((), dtype=torch.float64, device=blocks.device)
        for part in share.split(size):
            logprobs = text_logprobs(self.model, part, torch.ones_like(part, dtype=torch.bool))
            loss = ptx_loss(logprobs, num_tokens)
            self.model.backward(self.config.ptx_coef * loss)
            total += loss.detach()
        return total

    def accumulate_value_gradient(
        self, rollout: Rollout, targets: Targets, rows: list[int], size: int, rewards: Tensor | None = None
    ) -> Metrics:
        """Gradient of the value's loss on some rows; returns metrics that add up over micro-batches.

        With the token rewards (B, R) of a rollout whose value role has not learned from it, the values and returns of
        these rows are computed first, and written into rollout and targets.
        """
        assert rollout.values is not None and targets.returns is not None
        num_tokens, config = int(rollout.mask[rows].sum()), self.config
        totals: dict[str, Tensor] = defaultdict(float)  # type: ignore[arg-type]
        for part in self._split_into_micro_batches(rollout, rows, size):
            values = response_values(self.model, rollout.sequences.index(part))
            mask = rollout.mask[part]
            if rewards is not None:
                rollout.values[part] = values.detach()
                targets.returns[part] = gae(rewards[part], values.detach(), mask, config.gamma, config.lam)[1]
            old, returns = rollout.values[part], targets.returns[part]
            loss = value_loss(values, old, returns, mask, config.value_clip_range, num_tokens)
            self.model.backward(loss.loss)
            totals["ppo/value_loss"] += loss.loss.detach().double()
            totals["ppo/value_clip_fraction"] += loss.clip_fraction.double()
        return _to_floats(totals)

    def _split_into_micro_batches(self, rollout: Rollout, rows: list[int], size: int) -> list[list[int]]:
        """This process's share of a minibatch, in groups of like length."""
        share = workers.share_of_process(rows)
        return [[share[index] for index in group] for group in rollout.sequences.index(share).micro_batches(size)]


def _to_floats(totals: dict[str, Tensor]) -> Metrics:
    """The totals as numbers, read together: each reading waits for the GPU."""
    return dict(zip(totals, torch.stack(list(totals.values())).tolist(), strict=True)) if totals else {}
