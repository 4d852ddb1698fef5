"""The losses of the three stages.

Token losses take a `denominator`: the number of counted tokens in the whole minibatch. Every value that they
return is a sum over this number, so those of micro-batches add up to exactly the loss, the gradient and the metrics of
one big batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lora_rlhf.algo.kl import k3
from lora_rlhf.algo.masking import masked_mean, zero_masked


class PolicyLoss(NamedTuple):
    loss: Tensor  # scalar
    clip_fraction: Tensor  # scalar: share of tokens whose gradient is 0 because of the clip
    approx_kl: Tensor  # scalar, nats per token: KL(old || new), by k3


class ValueLoss(NamedTuple):
    loss: Tensor  # scalar
    clip_fraction: Tensor  # scalar: share of tokens whose clipped value has the larger error


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
    clip_range_high: float | None = None,
    weights: Tensor | float = 1.0,
) -> PolicyLoss:
    """-min(ratio * A, clip(ratio, 1 - c, 1 + c) * A) per token (PPO, Schulman et al., arXiv 1707.06347, eq. 7).

    All tensors (B, R); only `logprobs` should carry a gradient. ratio = new / old probability of the sampled token. A
    token whose ratio has moved by more than `c` in the direction of its advantage gets no gradient; because of the min,
    a token that moved in the other direction always gets one.

    clip_range_high: c of the upper bound, where it is another, so that unlikely tokens may become likely faster
    (clip-higher of DAPO, Yu et al., arXiv 2503.14476, eq. 10). weights: of each token in the loss, as
    `response_weights` gives them.
    """
    logprobs, old_logprobs, advantages = (zero_masked(x, mask) for x in (logprobs, old_logprobs, advantages))
    ratio = (logprobs - old_logprobs).exp()
    unclipped = -advantages * ratio
    high = clip_range if clip_range_high is None else clip_range_high
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + high)
    return PolicyLoss(
        loss=masked_mean(weights * torch.maximum(unclipped, clipped), mask, denominator),
        clip_fraction=masked_mean((clipped > unclipped).to(clipped.dtype), mask, denominator),
        approx_kl=masked_mean(k3(old_logprobs, logprobs.detach()), mask, denominator),  # the sampler is the old policy
    )


def response_weights(mask: Tensor, level: str, num_tokens: int, num_responses: int, max_tokens: int) -> Tensor | float:
    """What each token of a response weighs in a loss that is divided by `num_tokens` of a minibatch: (B, 1), or 1.

    mask (B, R); num_tokens, num_responses: of the whole minibatch; max_tokens: the longest that a response may be.
    "token": every token weighs the same (DAPO, arXiv 2503.14476, eq. 12). "sequence": every response weighs the same,
    so that the loss is the mean over responses of their means over tokens (GRPO, arXiv 2402.03300, eq. 3). "constant":
    every token weighs the same in all minibatches, whatever the lengths, 1 / (num_responses * max_tokens) (Dr. GRPO,
    arXiv 2503.20783, section 3.2 and appendix A).
    """
    if level == "token":
        return 1.0
    if level == "constant":
        return num_tokens / (num_responses * max_tokens)
    if level != "sequence":
        raise ValueError(f"level is {level!r}, expected token, sequence or constant")
    return num_tokens / (num_responses * mask.sum(dim=1, keepdim=True).clamp(min=1))


def mismatch_weights(logprobs: Tensor, sampled_logprobs: Tensor, cap: float) -> Tensor:
    """min(p / q, cap) of each sampled token: p by the passes of training, q by the sampler, whose kernels differ.

    All (B, R), of the same policy; nothing carries a gradient. As weights of `policy_loss`, they make it the loss of
    tokens that p would have sampled, up to the cap (truncated importance sampling: Yao et al. 2025, "Your Efficient RL
    Framework Secretly Brings You Off-Policy RL Training", fengyao.notion.site/off-policy-rl).
    """
    return (logprobs - sampled_logprobs).exp().clamp(max=cap)


def kl_loss(
    logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, denominator: Tensor | float, weights: Tensor | float = 1.0
) -> Tensor:
    """k3 of policy and reference per token, a scalar: the KL penalty as a loss (GRPO, arXiv 2402.03300, eq. 3 and 4).

    All tensors (B, R); only `logprobs` should carry a gradient. weights: as in `policy_loss`.
    """
    logprobs, ref_logprobs = zero_masked(logprobs, mask), zero_masked(ref_logprobs, mask)
    return masked_mean(weights * k3(logprobs, ref_logprobs), mask, denominator)


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip_range: float,
    denominator: Tensor | float,
) -> ValueLoss:
    """0.5 * max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) per token (OpenAI baselines' ppo2; arXiv 2403.17031).

    All tensors (B, R); only `values` should carry a gradient. With a clip_range of `math.inf`, this is the squared
    error.
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

    logprobs (B, T - 1), all of which count. The term reduces what the policy forgets of pretraining.
    """
    return -(logprobs.sum() / denominator)


def ranking_pairs(ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (num_pairs,) of winners and losers: every pair of `ranks` (K,), 1 = best, that is not a tie."""
    winners, losers = torch.nonzero(_beats_matrix(ranks), as_tuple=True)
    return winners, losers


def step_loss(logits: Tensor, labels: Tensor, denominator: float) -> Tensor:
    """Binary cross-entropy of each labelled step, over `denominator`, the number of them in the whole batch.

    logits, labels (N,), where True is a good step (Lightman et al., arXiv 2305.20050, section 2.6; Wang et al.,
    arXiv 2312.08935, eq. 2) -> scalar.
    """
    return -logsigmoid(torch.where(labels, logits, -logits)).sum() / denominator


def ranking_loss(scores: Tensor, ranks: Tensor, margins: Tensor | None = None) -> RankingLoss:
    """-1/num_pairs * sum of log sigmoid(r_w - r_l - margin) over one prompt's pairs (InstructGPT, eq. 1).

    scores (K,), ranks (K,) with 1 = best; ties make no pair. margins (num_pairs,), in the order of `ranking_pairs`, ask
    the winner's score to be higher by that much (Llama 2, arXiv 2307.09288, eq. 2). Because of the division by the
    number of pairs, all prompts have the same weight. Without a pair the loss is 0, and backward works.
    """
    winners, losers = ranking_pairs(ranks)
    num_pairs = len(winners)
    leads = scores[winners] - scores[losers]  # (num_pairs,)
    if margins is not None and margins.shape != leads.shape:
        raise ValueError(f"{num_pairs} pairs need as many margins, got shape {tuple(margins.shape)}")
    leads_over_margin = leads if margins is None else leads - margins
    return RankingLoss(
        loss=-logsigmoid(leads_over_margin).sum() / max(num_pairs, 1),
        num_pairs=num_pairs,
        num_correct=int((leads > 0).sum()),
        sum_of_leads=float(leads.detach().sum()),
    )


def listwise_loss(scores: Tensor, ranks: Tensor) -> Tensor:
    """Mean -log p of the draws of a ranking (Plackett-Luce; ListMLE, Xia et al., ICML 2008), a scalar.

    scores (K,), ranks (K,) with 1 = best. Each response is drawn, by a softmax over scores, from itself and the
    responses with a strictly worse rank. Tied responses are not in each other's draws, so ties have no order. The mean
    is over draws of at least two responses: for K = 2 it equals `ranking_loss`; if all are tied, it is 0.
    """
    beats = _beats_matrix(ranks)
    contenders = beats | torch.eye(len(ranks), dtype=torch.bool, device=ranks.device)
    log_totals = torch.where(contenders, scores, -torch.inf).logsumexp(dim=1)  # (K,) over the columns
    num_draws = beats.any(dim=1).sum().clamp(min=1)
    return (log_totals - scores).sum() / num_draws


def _beats_matrix(ranks: Tensor) -> Tensor:
    return ranks.unsqueeze(1) < ranks.unsqueeze(0)  # (K, K): row beats column
