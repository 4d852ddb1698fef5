"""How well scores order ranked responses: accuracy, calibration, and how much of it is length.

The pairs of one prompt share its responses, so every interval counts prompts, not pairs, as independent.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lora_rlhf.algo.losses import ranking_pairs
from lora_rlhf.stats.intervals import NUM_BINS, Interval, bootstrap, pearson, percentile_interval, reliability, wilson

MARGINS = (0.25, 0.5, 1.0, 2.0)  # edges of the buckets of |score difference|, in sd of the demonstrations' scores
LIKE_LENGTH = 0.1  # lengths that differ by no more than this share of the longer one are matched


def ordering_report(
    ranks: Sequence[Sequence[int]], scores: Sequence[Tensor], lengths: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """What a report says of n prompts' ranked responses: of each prompt ranks (1 = best), scores and lengths, (K,).

    Over all pairs that are not ties. A pair is right when its winner scores higher, half where both score the same. The
    predicted probability that the
    higher-scored response wins is sigmoid(|difference|) (Bradley-Terry); ECE compares it with how often that is so.
    `longer_wins` is the share that "the longer one wins" gets right on the same pairs, equal lengths counting half;
    `length_matched` is the accuracy where lengths differ by at most 10 %, which no preference for length can raise.
    """
    leads, gaps, matched = [], [], []
    for own_ranks, own_scores, own_lengths in zip(ranks, scores, lengths, strict=True):
        winners, losers = ranking_pairs(torch.tensor(own_ranks))
        if len(winners):
            size = torch.tensor(own_lengths, dtype=torch.float64)
            leads.append((own_scores[winners] - own_scores[losers]).double())
            gaps.append(size[winners] - size[losers])
            matched.append(gaps[-1].abs() <= LIKE_LENGTH * torch.maximum(size[winners], size[losers]))
    if not leads:
        return {"held_out_prompts": len(ranks), "held_out_pairs": 0}
    everything = [torch.ones(len(lead), dtype=torch.bool) for lead in leads]
    flat = torch.cat(leads)
    calibration = reliability(torch.sigmoid(flat.abs()), _right(flat))
    long = [torch.tensor(own, dtype=torch.float64) for own in lengths]
    wide = [own.double() for own in scores]
    report: dict[str, Any] = {
        "held_out_prompts": len(ranks),
        "held_out_pairs": len(flat),
        "accuracy": _accuracy(leads, everything),
        "accuracy_by_margin": _by_margin(leads),
        "ece": calibration.ece,
        "ece_interval": _ece_interval(leads, calibration.ece),
        "reliability": [bin._asdict() for bin in calibration.bins],
        "length_correlation": pearson(torch.cat(wide), torch.cat(long)),
        "length_correlation_interval": _correlation_interval(wide, long),
        "length_correlation_within": pearson(*(torch.cat([own - own.mean() for own in x]) for x in (wide, long))),
        "longer_wins": _accuracy(gaps, everything),
    }
    if any(bool(own.any()) for own in matched):
        report["length_matched"] = _accuracy(leads, matched)
    return report


def share_by_prompt(right: Tensor, pairs: Tensor) -> Interval:
    """The share of right pairs, right (n,) of pairs (n,) at each prompt, with a 95 % interval over prompts.

    Wilson's, for as many trials as have the spread between prompts: the variance is that of a ratio estimate. Where no
    prompt differs from another (all pairs right, say), prompts are the trials: the pairs of one prompt may all be right
    or wrong together.
    """
    rate, count, n = float(right.sum() / pairs.sum()), float(pairs.sum()), len(pairs)
    spread = float(((right - rate * pairs) ** 2).sum())
    trials = float(n)
    if spread > 0 and n > 1:
        variance = spread * n / (n - 1) / count**2
        trials = min(max(1.0, rate * (1 - rate) / variance), count)
    return wilson(min(max(rate * trials, 0.0), trials), trials)._replace(rate=rate, n=int(count))


def _right(lead: Tensor) -> Tensor:
    """1 where the winner leads, 0.5 where neither does."""
    return (lead.sign() + 1) / 2


def _accuracy(leads: Sequence[Tensor], counted: Sequence[Tensor]) -> dict[str, float]:
    """Share of the counted pairs that are right; prompts without any are left out."""
    right, pairs = [], []
    for lead, own in zip(leads, counted, strict=True):
        if bool(own.any()):
            right.append(float(_right(lead[own]).sum()))
            pairs.append(float(own.sum()))
    return share_by_prompt(*(torch.tensor(x, dtype=torch.float64) for x in (right, pairs)))._asdict()


def _by_margin(leads: Sequence[Tensor]) -> list[dict[str, float]]:
    """Accuracy of the pairs whose scores differ by about as much."""
    rows = []
    for low, high in pairwise((0.0, *MARGINS, math.inf)):
        counted = [(lead.abs() >= low) & (lead.abs() < high) for lead in leads]
        if any(bool(own.any()) for own in counted):
            rows.append({"from": low, "to": high, **_accuracy(leads, counted)})
    return rows


def _ece_interval(leads: Sequence[Tensor], ece: float) -> dict[str, float] | None:
    """The basic bootstrap: twice the estimate less the percentiles. The percentiles alone would count noise twice.

    A sum of absolute errors is above 0 by chance alone, and in a resample by chance once more (Davison and Hinkley
    1997, section 5.2).
    """
    if len(leads) < 2:
        return None
    errors = torch.zeros(len(leads), NUM_BINS, dtype=torch.float64)
    for row, lead in enumerate(leads):
        confidence = torch.sigmoid(lead.abs())
        places = ((confidence - 0.5) * 2 * NUM_BINS).long().clamp(max=NUM_BINS - 1)
        errors[row].index_add_(0, places, _right(lead) - confidence)
    pairs = torch.tensor([float(len(lead)) for lead in leads], dtype=torch.float64)
    resampled = bootstrap(len(leads), lambda counts: (counts @ errors).abs().sum(dim=1) / (counts @ pairs))
    low, high = percentile_interval(resampled, len(leads))
    return {"low": max(0.0, 2 * ece - high), "high": max(ece, 2 * ece - low)}


def _correlation_interval(scores: Sequence[Tensor], lengths: Sequence[Tensor]) -> dict[str, float] | None:
    """The bootstrap over prompts of Pearson's correlation over all responses."""
    if len(scores) < 2:
        return None
    centre = (torch.cat([*scores]).mean(), torch.cat([*lengths]).mean())  # near 0, or squares would lose digits
    rows = []
    for own, long in zip(scores, lengths, strict=True):
        x, y = own - centre[0], long - centre[1]
        rows.append(torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y]).sum(dim=1))
    sums = torch.stack(rows)

    def correlation(counts: Tensor) -> Tensor:
        n, x, y, xx, yy, xy = (counts @ sums).unbind(dim=1)
        return (n * xy - x * y) / ((n * xx - x * x) * (n * yy - y * y)).clamp(min=0).sqrt()

    low, high = percentile_interval(bootstrap(len(sums), correlation), len(sums))
    return None if math.isnan(low) else {"low": low, "high": high}
