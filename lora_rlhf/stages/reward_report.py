"""How good a reward model is on rankings that it was not trained on."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lora_rlhf.algo.losses import ranking_pairs
from lora_rlhf.algo.statistics import pearson, reliability, wilson
from lora_rlhf.data.encode import EncodedRanking

MARGINS = (0.25, 0.5, 1.0, 2.0)  # edges of the buckets of |score difference|, in sd of the demonstrations' scores


def held_out_report(rankings: Sequence[EncodedRanking], scores: list[Tensor]) -> dict[str, Any]:
    """Accuracy, calibration and length bias over all pairs that are not ties; empty where nothing was held out.

    rankings, and of each its scores (K,). A pair is right when its winner scores higher. The predicted probability that
    the higher-scored response wins is sigmoid(|difference|) (Bradley-Terry); ECE compares it with how often that is so.
    The interval counts prompts, not pairs, as independent: the pairs of one prompt share its responses.
    """
    leads = []
    for ranking, own in zip(rankings, scores, strict=True):
        winners, losers = ranking_pairs(torch.tensor(ranking.ranks))
        if len(winners):
            leads.append(own[winners] - own[losers])
    if not leads:
        return {"held_out_prompts": len(rankings), "held_out_pairs": 0}
    flat = torch.cat(leads).double()
    right = flat > 0
    probabilities = torch.sigmoid(flat.abs())
    calibration = reliability(probabilities, right)
    lengths = torch.cat([torch.tensor([len(ids) for ids in r.response_ids]) for r in rankings]).double()
    return {
        "held_out_prompts": len(rankings),
        "held_out_pairs": len(flat),
        "accuracy": _per_prompt_interval(leads),
        "accuracy_by_margin": _by_margin(flat),
        "ece": calibration.ece,
        "reliability": [bin._asdict() for bin in calibration.bins],
        "length_correlation": pearson(torch.cat(scores).double(), lengths),
    }


def _per_prompt_interval(leads: list[Tensor]) -> dict[str, float]:
    """Share of right pairs with a 95 % interval: Wilson's, for as many trials as have the spread between prompts.

    The variance is that of a ratio estimate. Where no prompt differs from another (all pairs right, say), prompts are
    the trials: the pairs of one prompt may all be right or wrong together.
    """
    right = torch.tensor([float((lead > 0).sum()) for lead in leads], dtype=torch.float64)
    pairs = torch.tensor([float(len(lead)) for lead in leads], dtype=torch.float64)
    rate, count = float(right.sum() / pairs.sum()), int(pairs.sum())
    spread = float(((right - rate * pairs) ** 2).sum())
    trials = float(len(leads))
    if spread > 0 and len(leads) > 1:
        variance = spread * len(leads) / (len(leads) - 1) / count**2
        trials = min(max(1.0, rate * (1 - rate) / variance), float(count))
    return wilson(rate * trials, trials)._asdict() | {"rate": rate, "n": count}


def _by_margin(leads: Tensor) -> list[dict[str, float]]:
    """Accuracy of the pairs whose scores differ by about as much."""
    rows = []
    edges = (0.0, *MARGINS, float("inf"))
    for low, high in pairwise(edges):
        chosen = leads[(leads.abs() >= low) & (leads.abs() < high)]
        if len(chosen):
            rows.append({"from": low, "to": high, **wilson(float((chosen > 0).sum()), len(chosen))._asdict()})
    return rows
