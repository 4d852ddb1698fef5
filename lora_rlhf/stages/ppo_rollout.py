"""What PPO's steps hand on: the rollout that was sampled and judged, and the targets that it teaches."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lora_rlhf.algo.kl import k1, k3
from lora_rlhf.algo.masking import zero_masked
from lora_rlhf.model.forward import Sequences

Metrics = dict[str, float]
BARS = 20  # of a histogram of scores


@dataclass(frozen=True)
class Rollout:
    """An iteration's experience: B responses and all that the update needs of them, on the model's device.

    finished (B,) is True where the response ended by itself. raw_scores (B,) are the scorer's; scores (B,) hold the
    fixed score where a response did not end. old_logprobs, ref_logprobs, entropy and values (B, R) are 0 where masked;
    values are None until they are computed. Scores and values are in units of the demonstrations' standard deviation.
    sampled_logprobs (B, R): the sampler's own, beside scored old_logprobs; None where these are the sampler's. Then
    entropy is -old_logprobs, whose mean is the same.
    parts: {name: scores (B,)} of each source of the score, where there are reward functions. failures: {name of a
    reward function: how many responses it failed on}.
    step_rewards, num_steps: of a process reward, its part of the scores token by token (B, R), and the number of steps
    (B,); None without one.
    `scored_together`: the size of the micro-batches that gave old_logprobs; None where the sampler gave them.
    """

    sequences: Sequences
    finished: Tensor
    raw_scores: Tensor
    scores: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor
    entropy: Tensor
    values: Tensor | None
    scored_together: int | None
    parts: dict[str, Tensor] = field(default_factory=dict)
    failures: dict[str, float] = field(default_factory=dict)
    sampled_logprobs: Tensor | None = None
    step_rewards: Tensor | None = None
    num_steps: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """(B, R) bool: True on sampled tokens, EOS included."""
        return self.sequences.response_mask

    @property
    def is_of_sampler(self) -> bool:
        """Whether old_logprobs are those that the sampler recorded, from other passes than those of training."""
        return self.scored_together is None

    @property
    def kl(self) -> Tensor:
        """(B, R), nats: what each token moved from the reference (k1), 0 where masked."""
        return zero_masked(k1(self.old_logprobs, self.ref_logprobs), self.mask)

    def mismatch(self) -> Metrics:
        """How far scored log-probs are from the sampler's, per token: mean absolute difference, and KL, in nats."""
        if self.sampled_logprobs is None:
            return {}
        pair = self.sampled_logprobs[self.mask], self.old_logprobs[self.mask]
        return {
            "rollout/mismatch": float(k1(*pair).abs().mean()),
            "rollout/mismatch_kl": float(k3(*pair).mean()),
        }

    def metrics(self) -> Metrics:
        """Means over the batch, as they are recorded; KL in nats per response."""
        lengths, scores = self.mask.sum(dim=1).double(), self.scores.cpu()
        kl_k3 = zero_masked(k3(self.old_logprobs, self.ref_logprobs), self.mask)
        return {
            "rollout/score": float(scores.mean()),
            "rollout/score_sd": float(scores.std()) if len(scores) > 1 else 0.0,
            "rollout/kl": float(self.kl.sum(dim=1).mean()),
            "rollout/kl_k3": float(kl_k3.sum(dim=1).mean()),
            "rollout/length": float(lengths.mean()),
            "rollout/eos_rate": float(self.finished.double().mean()),
            "rollout/entropy": float(self.entropy.sum() / self.mask.sum()),
            **self.mismatch(),
            **({} if self.num_steps is None else {"rollout/steps": float(self.num_steps.double().mean())}),
            **{f"reward/{name}": float(part.nanmean()) for name, part in self.parts.items() if not part.isnan().all()},
            **{f"reward/{name}_failed": count for name, count in self.failures.items()},
        }

    def score_histogram(self) -> dict[str, Any]:
        """How many responses have which score: counts of BARS equal parts of `low` to `high`."""
        scores = self.scores.cpu().double()
        low, high = float(scores.min()), float(scores.max())
        if low == high:
            low, high = low - 0.5, high + 0.5
        counts = torch.histc(scores, BARS, low, high).long().tolist()
        return {"low": low, "high": high, "counts": counts}


@dataclass(frozen=True)
class Targets:
    """What a rollout teaches: advantages (B, R) for the policy, returns (B, R) for the value (None without one).

    learned (B,) bool: the responses that are learned from; None: all. figures: what was left out, for the metrics.
    """

    advantages: Tensor
    returns: Tensor | None
    learned: Tensor | None = None
    figures: Metrics = field(default_factory=dict)

    @property
    def has_advantages(self) -> bool:
        """False where all responses are worth the same, so that none is better than another."""
        return bool(self.advantages.any())
