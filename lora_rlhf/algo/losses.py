"""The losses of the three stages.

Token losses take a `denominator`: the number of counted tokens in the whole minibatch. Every figure they return is a
sum over it, so micro-batches add up to exactly the loss, the gradient and the metrics of one big batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lora_rlhf.algo.kl import k3
from lora_rlhf.algo.masking import masked_mean, zero_masked


class PolicyLoss(NamedTuple):
    loss: Tensor  # scalar
    clip_fraction: Tensor  # scalar: share of tokens that the clip holds back from any gradient
    approx_kl: Tensor  # scalar, nats per token: KL(old || new), by k3


class ValueLoss(NamedTuple):
    loss: Tensor  # scalar
    clip_fraction: Tensor  # scalar: share of tokens where the clipped value is the worse one


class RankingLoss(NamedTuple):
    loss: Tensor  # scalar
    num_pairs: int
    num_correct: int  # pairs whose winner scores strictly higher
    sum_of_leads: float  # of the pairs, winner's minus loser's score


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_range: float,
    denominator: Tensor | float,
) -> PolicyLoss:
    """-min(ratio * A, clip(ratio, 1 - c, 1 + c) * A) per token (PPO, Schulman et al., arXiv 1707.06347, eq. 7).

    All tensors (B, R); only `logprobs` should carry a gradient. ratio = new / old probability of the sampled token. The
    min makes the objective a pessimist: a token that has already moved by `c` in the direction of its advantage earns
    nothing by moving on, while one that moved the wrong way is always pulled back.
    """
    logprobs, old_logprobs, advantages = (zero_masked(x, mask) for x in (logprobs, old_logprobs, advantages))
    ratio = (logprobs - old_logprobs).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return PolicyLoss(
        loss=masked_mean(torch.maximum(unclipped, clipped), mask, denominator),
        clip_fraction=masked_mean((clipped > unclipped).to(clipped.dtype), mask, denominator),
        approx_kl=masked_mean(k3(old_logprobs, logprobs.detach()), mask, denominator),  # the sampler is the old policy
    )


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip_range: float,
    denominator: Tensor | float,
) -> ValueLoss:
    """0.5 * max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) per token (OpenAI baselines' ppo2; arXiv 2403.17031).

    All tensors (B, R); only `values` should carry a gradient. A clip_range of `math.inf` is plain squared error.
    """
    values, old_values, returns = (zero_masked(x, mask) for x in (values, old_values, returns))
    unclipped = (values - returns).square()
    # Not old + clamp(new - old): its rounding would make an unclipped value differ from itself.
    clipped = (values.clamp(old_values - clip_range, old_values + clip_range) - returns).square()
    return ValueLoss(
        loss=0.5 * masked_mean(torch.maximum(unclipped, clipped), mask, denominator),
        clip_fraction=masked_mean((clipped > unclipped).to(clipped.dtype), mask, denominator),
    )


def lm_loss(logprobs: Tensor, mask: Tensor, denominator: Tensor | float) -> Tensor:
    """Negative log-likelihood of the counted tokens over `denominator`, a scalar: the loss of SFT."""
    return -masked_mean(logprobs, mask, denominator)


def ptx_loss(logprobs: Tensor, denominator: Tensor | float) -> Tensor:
    """Negative log-likelihood of pretraining text, a scalar: the term that InstructGPT, eq. 2 weighs by gamma (27.8).

    logprobs (B, T - 1), all of which count. The term keeps the policy from forgetting what the base had learned.
    """
    return -(logprobs.sum() / denominator)


def ranking_pairs(ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (num_pairs,) of winners and losers: every pair of `ranks` (K,), 1 = best, that is not a tie."""
    winners, losers = torch.nonzero(_beats(ranks), as_tuple=True)
    return winners, losers


def ranking_loss(scores: Tensor, ranks: Tensor, margins: Tensor | None = None) -> RankingLoss:
    """-1/num_pairs * sum of log sigmoid(r_w - r_l - margin) over one prompt's pairs (InstructGPT, eq. 1).

    scores (K,), ranks (K,) with 1 = best; ties make no pair. margins (num_pairs,), in the order of `ranking_pairs`, ask
    the winner to lead by that much (Llama 2, arXiv 2307.09288, eq. 2). Dividing by the number of pairs gives every
    prompt the same weight, however many responses it has. Without a pair the loss is 0 and backward still works.
    """
    winners, losers = ranking_pairs(ranks)
    num_pairs = len(winners)
    leads = scores[winners] - scores[losers]  # (num_pairs,)
    if margins is not None and margins.shape != leads.shape:
        raise ValueError(f"{num_pairs} pairs need as many margins, got shape {tuple(margins.shape)}")
    demanded = leads if margins is None else leads - margins
    return RankingLoss(
        loss=-logsigmoid(demanded).sum() / max(num_pairs, 1),
        num_pairs=num_pairs,
        num_correct=int((leads > 0).sum()),
        sum_of_leads=float(leads.detach().sum()),
    )


def listwise_loss(scores: Tensor, ranks: Tensor) -> Tensor:
    """Mean -log p of the choices that make up a ranking (Plackett-Luce; ListMLE, Xia et al., ICML 2008), a scalar.

    scores (K,), ranks (K,) with 1 = best. Each response in turn must be drawn, by a softmax over scores, from among
    itself and those ranked strictly below it. Tied responses never stand in each other's draw, so none is put before
    the other. The mean is over the draws that have a loser: K = 2 is exactly `ranking_loss`; all tied is 0.
    """
    beats = _beats(ranks)
    contenders = beats | torch.eye(len(ranks), dtype=torch.bool, device=ranks.device)
    log_totals = torch.where(contenders, scores, -torch.inf).logsumexp(dim=1)  # (K,) over the columns
    num_draws = beats.any(dim=1).sum().clamp(min=1)
    return (log_totals - scores).sum() / num_draws


def _beats(ranks: Tensor) -> Tensor:
    return ranks.unsqueeze(1) < ranks.unsqueeze(0)  # (K, K): row beats column
