"""Computes token rewards from scores, and advantages from rewards or scores.

A *score* is the reward model's output for a whole response. A *reward* is what the policy gets for one token: minus the
KL penalty, and for the last token also the score. An *advantage* compares rewards with a learned value (GAE), or a
score with the scores of other responses to the prompt (RLOO, GRPO, Dr. GRPO) or of earlier iterations (REINFORCE).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_rlhf.algo.masking import require_prefix, zero_masked


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """-kl_coef * kl for each token, plus the score on the last counted one (InstructGPT, arXiv 2203.02155, eq. 2).

    scores (B,), kl (B, R) = k1 of policy and reference, mask (B, R) -> (B, R), 0 where masked. Raises ValueError
    for a response without a counted token, because its score would be lost.
    """
    require_prefix(mask)
    last = mask.sum(dim=1) - 1  # (B,) the index of EOS if there is one: EOS is an action and counts
    if (last < 0).any():
        row = int((last < 0).nonzero()[0])
        raise ValueError(f"response {row} has no counted token, so its score has nowhere to land")
    is_last = torch.arange(mask.shape[1], device=mask.device) == last.unsqueeze(1)  # (B, R)
    return -kl_coef * zero_masked(kl, mask) + torch.where(is_last, scores.unsqueeze(1), 0.0)


def step_rewards(probabilities: Tensor, ends: Tensor, form: str) -> Tensor:
    """What each step of a response adds to the response's score by its steps: (B, R), 0 but where a step ends.

    probabilities (B, R) that a step is good, read where `ends` (B, R) is True. The score, to which a response's rewards
    add up, is its steps' product or minimum (Lightman et al., arXiv 2305.20050, section 2.6, appendix F), or the last
    one. A step is paid the difference that it makes, which is never above 0 after the first: more steps do not pay, as
    they would with a sum over steps.
    """
    if form == "last":
        is_last = ends & (ends.flip(1).cumsum(dim=1).flip(1) == 1)
        return torch.where(is_last, probabilities, 0.0)
    certain = torch.where(ends, probabilities, 1.0)
    scores = certain.cumprod(dim=1) if form == "product" else certain.cummin(dim=1).values
    started = ends.cumsum(dim=1) > 0
    scores = torch.where(started, scores, 0.0)  # before the first step nothing is earned
    return scores - torch.nn.functional.pad(scores[:, :-1], (1, 0))


def apply_missing_eos(scores: Tensor, has_eos: Tensor, missing_eos_score: float | None) -> Tensor:
    """Replaces the scores (B,) of responses without EOS (has_eos (B,) False) by a fixed score; None changes nothing.

    The score is replaced, not lowered: the reward model never saw unfinished text, so its score means nothing (the "EOS
    trick" of Huang et al., arXiv 2403.17031, with -1).
    """
    return scores if missing_eos_score is None else torch.where(has_eos, scores, missing_eos_score)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al., arXiv 1506.02438, eq. 16).

    rewards, values, mask (B, R) -> advantages, returns (B, R), 0 where masked. `values[:, t]` is the value *before*
    token t, and the value after the last counted token is 0: the episode is over. lam 1 is the plain return minus the
    value (no bias, much variance), lam 0 the one-step error (the reverse); the returns are the value's next target.
    """
    require_prefix(mask)
    rewards, values = zero_masked(rewards, mask), zero_masked(values, mask)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = rewards + gamma * next_values - values  # (B, R) temporal-difference errors

    advantage = torch.zeros_like(deltas[:, 0])  # (B,)
    reversed_advantages = []
    for delta in deltas.flip(1).unbind(1):  # begins with the padding, whose deltas are 0
        advantage = delta + gamma * lam * advantage
        reversed_advantages.append(advantage)
    advantages = torch.stack(reversed_advantages[::-1], dim=1)
    return advantages, advantages + values


def rloo(scores: Tensor, group_size: int) -> Tensor:
    """Each score minus the mean of the prompt's other scores (REINFORCE leave-one-out, RLOO).

    scores (B,), the `group_size` responses of a prompt next to each other -> (B,), one advantage for all tokens of a
    response (Ahmadian et al., arXiv 2402.14740).
    """
    groups = _split_into_groups(scores, group_size)
    sibling_means = (groups.sum(dim=1, keepdim=True) - groups) / (group_size - 1)
    return (groups - sibling_means).reshape(-1)


def grpo(scores: Tensor, group_size: int, eps: float = 1e-4) -> Tensor:
    """Each score minus its group's mean, over the group's sd plus eps (Shao et al., arXiv 2402.03300, section 4.1).

    scores (B,), the `group_size` responses of a prompt next to each other -> (B,). The sd is that of the sample
    (divided by group_size - 1), as in TRL and verl. A group of equal scores gets 0.
    """
    groups = _split_into_groups(scores, group_size)
    centred = groups - groups.mean(dim=1, keepdim=True)
    return (centred / (groups.std(dim=1, keepdim=True) + eps)).reshape(-1)


def dr_grpo(scores: Tensor, group_size: int) -> Tensor:
    """Each score minus its group's mean, not divided by the sd (Dr. GRPO, Liu et al., arXiv 2503.20783, section 3.2).

    scores (B,), the `group_size` responses of a prompt next to each other -> (B,). Without the division, prompts whose
    responses are nearly all right or nearly all wrong do not weigh more. RLOO's advantages are these times
    group_size / (group_size - 1).
    """
    groups = _split_into_groups(scores, group_size)
    return (groups - groups.mean(dim=1, keepdim=True)).reshape(-1)


@dataclass
class MovingBaseline:
    """REINFORCE with a baseline: the moving mean of earlier scores (Williams, Machine Learning 8, 1992).

    The baseline of the first batch is its own mean, since there are no earlier scores.
    """

    mean: float | None = None
    decay: float = 0.9

    def advantages(self, scores: Tensor) -> Tensor:
        """Scores (B,) minus the baseline -> (B,)."""
        return scores - (scores.mean() if self.mean is None else self.mean)

    def update(self, scores: Tensor) -> None:
        """Moves the baseline to decay * mean + (1 - decay) * the batch's mean."""
        batch_mean = float(scores.mean())
        self.mean = batch_mean if self.mean is None else self.decay * self.mean + (1 - self.decay) * batch_mean


def has_spread(scores: Tensor, group_size: int) -> Tensor:
    """Whether the scores of a response's group differ: scores (B,) -> (B,) bool.

    A group without spread, all right or all wrong, has no advantage to learn from, but would count in the loss's
    denominator (dynamic sampling of DAPO, Yu et al., arXiv 2503.14476, section 3.2 and eq. 11).
    """
    groups = _split_into_groups(scores, group_size)
    return (groups.amax(dim=1) > groups.amin(dim=1)).repeat_interleave(group_size)


def _split_into_groups(scores: Tensor, group_size: int) -> Tensor:
    """Scores (B,) as (B / group_size, group_size). Raises ValueError if that is not possible."""
    if group_size < 2:
        raise ValueError(f"group_size must be at least 2 to compare siblings, got {group_size}")
    if len(scores) % group_size:
        raise ValueError(f"the number of scores ({len(scores)}) must be a multiple of group_size ({group_size})")
    return scores.view(-1, group_size)


# Estimators without a value role, by their name in a config: (scores (B,), group_size) -> advantages (B,).
ESTIMATORS: dict[str, Callable[[Tensor, int], Tensor]] = {"rloo": rloo, "grpo": grpo, "dr_grpo": dr_grpo}
