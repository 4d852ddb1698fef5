"""From one score per response to one reward per token.

A *score* is what the reward model says of a whole response. A *reward* is what the policy earns for one token: nothing
but the price of leaving the reference, until the last token, which also earns the score.
"""

import torch
from torch import Tensor

from lora_rlhf.algo.masking import require_prefix, zero_masked


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """-kl_coef * kl per token, plus the score on the last counted one (InstructGPT, arXiv 2203.02155, eq. 2).

    scores (B,), kl (B, R) = k1 of policy and reference, mask (B, R) -> (B, R), 0 where masked. ValueError for a
    response without a counted token: its score would be lost.
    """
    require_prefix(mask)
    last = mask.sum(dim=1) - 1  # (B,) EOS where there is one: EOS is an action and counts
    if (last < 0).any():
        row = int((last < 0).nonzero()[0])
        raise ValueError(f"response {row} has no counted token, so its score has nowhere to land")
    is_last = torch.arange(mask.shape[1], device=mask.device) == last.unsqueeze(1)  # (B, R)
    return -kl_coef * zero_masked(kl, mask) + torch.where(is_last, scores.unsqueeze(1), 0.0)


def apply_missing_eos(scores: Tensor, has_eos: Tensor, missing_eos_score: float | None) -> Tensor:
    """The scores (B,), with a fixed one where the response never ended (has_eos (B,) False); None changes nothing.

    Replaced, not subtracted: the reward model was never shown unfinished text, so its opinion of it means nothing
    (the "EOS trick" of Huang et al., arXiv 2403.17031, with -1).
    """
    return scores if missing_eos_score is None else torch.where(has_eos, scores, missing_eos_score)
