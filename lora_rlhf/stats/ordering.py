"""How well scores order ranked responses: accuracy, calibration, and how much of it is length.

The pairs of one prompt share its responses, so every interval counts prompts, not pairs, as independent.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from lora_rlhf.algo.losses import ranking_pairs
from lora_rlhf.stats.intervals import Interval, Numbers, as_floats, bootstrap, percentile_interval, wilson

MARGINS = (0.25, 0.5, 1.0, 2.0)  # edges of the buckets of |score difference|, in sd of the demonstrations' scores
LIKE_LENGTH = 0.1  # lengths that differ by no more than this share of the longer one are matched
NUM_BINS = 10  # of the reliability curve
BIN_EDGES = torch.tensor([0.5 + 0.5 * index / NUM_BINS for index in range(NUM_BINS + 1)], dtype=torch.float64)


class OrderingReport(TypedDict, total=False):
    """What `ordering_report` says, as it stands in a manifest and in a report.

    Without a pair only the two counts are there; `length_matched` is there where a pair is matched. Intervals are None
    for a single prompt.
    """

    held_out_prompts: int
    held_out_pairs: int
    accuracy: dict[str, float]
    """The share of pairs that are ordered right: {"rate", "low", "high", "n"}."""
    accuracy_by_margin: list[dict[str, float]]
    """The same for the pairs whose scores differ by at least "from" and less than "to"."""
    ece: float
    ece_interval: dict[str, float] | None
    """{"low", "high"}."""
    reliability: list[dict[str, float]]
    """The fields of `Bin`."""
    length_correlation: float
    """Pearson's, of scores and lengths over all responses; NaN where one of them does not vary."""
    length_correlation_interval: dict[str, float] | None
    length_correlation_within: float
    """The same of scores and lengths less their means over the prompt's responses."""
    longer_wins: dict[str, float]
    """The share of the same pairs whose winner is the longer response, equal lengths counted half."""
    length_matched: dict[str, float]
    """The accuracy where lengths differ by at most 10 %, which no preference for length can raise."""


class Bin(NamedTuple):
    """Predictions with a probability in [low, high): their mean probability, and the share that was right.

    Both are NaN where `n` is 0.
    """

    low: float
    high: float
    confidence: float
    accuracy: float
    n: int


class Reliability(NamedTuple):
    """The reliability curve, and the expected calibration error: 0 is perfect."""

    bins: list[Bin]
    ece: float


def ordering_report(
    ranks: Sequence[Sequence[int]], scores: Sequence[Tensor], lengths: Sequence[Sequence[float]]
) -> OrderingReport:
    """How well scores order n prompts' ranked responses: of each prompt ranks (1 = best), scores and lengths, (K,).

    All pairs count that are not ties. A pair is right when its winner scores higher, half right where both score the
    same. The predicted probability that the higher-scored response wins is sigmoid(|difference|) (Bradley-Terry); ECE
    compares it with how often that is so.
    """
    margins, length_gaps, matched = [], [], []  # of each prompt with a pair: (pairs,)
    for prompt_ranks, prompt_scores, prompt_lengths in zip(ranks, scores, lengths, strict=True):
        winners, losers = ranking_pairs(torch.tensor(prompt_ranks))
        if len(winners):
            sizes = torch.tensor(prompt_lengths, dtype=torch.float64)
            margins.append((prompt_scores[winners] - prompt_scores[losers]).double())
            length_gaps.append(sizes[winners] - sizes[losers])
            matched.append(length_gaps[-1].abs() <= LIKE_LENGTH * torch.maximum(sizes[winners], sizes[losers]))
    if not margins:
        return {"held_out_prompts": len(ranks), "held_out_pairs": 0}
    all_pairs = [torch.ones(len(margin), dtype=torch.bool) for margin in margins]
    flat_margins = torch.cat(margins)
    calibration = reliability(torch.sigmoid(flat_margins.abs()), _right(flat_margins))
    columns = [row.double() for row in scores], [torch.tensor(row, dtype=torch.float64) for row in lengths]
    centred = [[row - row.mean() for row in column] for column in columns]
    report: OrderingReport = {
        "held_out_prompts": len(ranks),
        "held_out_pairs": len(flat_margins),
        "accuracy": _accuracy(margins, all_pairs),
        "accuracy_by_margin": _by_margin(margins),
        "ece": calibration.ece,
        "ece_interval": _ece_interval(margins, calibration.ece),
        "reliability": [bin._asdict() for bin in calibration.bins],
        "length_correlation": _pearson(*(torch.cat(column) for column in columns)),
        "length_correlation_interval": _correlation_interval(*columns),
        "length_correlation_within": _pearson(*(torch.cat(column) for column in centred)),
        "longer_wins": _accuracy(length_gaps, all_pairs),
    }
    if any(bool(pairs.any()) for pairs in matched):
        report["length_matched"] = _accuracy(margins, matched)
    return report


def reliability(probabilities: Numbers, correct: Numbers) -> Reliability:
    """How far stated probabilities can be trusted (Guo et al., arXiv 1706.04599, eq. 3), in 10 bins over [0.5, 1].

    probabilities (n,) of the predicted winner, so at least 0.5; correct (n,): 1 where that one did win, else 0.
    """
    probabilities, correct = as_floats(probabilities), as_floats(correct)
    if len(probabilities) != len(correct):
        raise ValueError(f"{len(probabilities)} probabilities for {len(correct)} results")
    outside = ~((probabilities >= 0.5) & (probabilities <= 1))
    if outside.any():
        raise ValueError(f"the predicted winner's probability is in [0.5, 1], got {probabilities[outside][0].item()}")
    bin_of = _bin_of(probabilities)
    bins = []
    for index, (low, high) in enumerate(pairwise(BIN_EDGES.tolist())):
        inside = bin_of == index
        confidence, accuracy = probabilities[inside].mean().item(), correct[inside].mean().item()
        bins.append(Bin(low, high, confidence, accuracy, int(inside.sum())))
    errors = (b.n * abs(b.accuracy - b.confidence) for b in bins if b.n)
    return Reliability(bins, sum(errors) / len(probabilities))


def share_by_prompt(right: Tensor, pairs: Tensor) -> Interval:
    """The share of right pairs, right (n,) of pairs (n,) at each prompt, with a 95 % interval over prompts.

    Wilson's, for the number of trials that would have the observed spread between prompts: the variance is that of a
    ratio estimate. Where all prompts have the same share (all pairs right, say), prompts are the trials: the pairs of
    one prompt may all be right or wrong together.
    """
    rate, count, n = float(right.sum() / pairs.sum()), float(pairs.sum()), len(pairs)
    spread = float(((right - rate * pairs) ** 2).sum())
    trials = float(n)
    if spread > 0 and n > 1:
        variance = spread * n / (n - 1) / count**2
        trials = min(max(1.0, rate * (1 - rate) / variance), count)
    return wilson(min(max(rate * trials, 0.0), trials), trials)._replace(rate=rate, n=int(count))


def _right(margins: Tensor) -> Tensor:
    """1 where the winner's margin is above 0, 0.5 where it is 0, else 0."""
    return (margins.sign() + 1) / 2


def _bin_of(probabilities: Tensor) -> Tensor:
    """The index of each probability's bin; 1 belongs to the last one."""
    return torch.bucketize(probabilities, BIN_EDGES[1:-1], right=True)


def _accuracy(margins: Sequence[Tensor], counted: Sequence[Tensor]) -> dict[str, float]:
    """Share of the counted pairs that are right; prompts without any are left out."""
    right, pairs = [], []
    for margin, mask in zip(margins, counted, strict=True):
        if bool(mask.any()):
            right.append(float(_right(margin[mask]).sum()))
            pairs.append(float(mask.sum()))
    return share_by_prompt(*(torch.tensor(x, dtype=torch.float64) for x in (right, pairs)))._asdict()


def _by_margin(margins: Sequence[Tensor]) -> list[dict[str, float]]:
    """Accuracy of the pairs whose scores differ by about as much."""
    rows = []
    for low, high in pairwise((0.0, *MARGINS, math.inf)):
        counted = [(margin.abs() >= low) & (margin.abs() < high) for margin in margins]
        if any(bool(mask.any()) for mask in counted):
            rows.append({"from": low, "to": high, **_accuracy(margins, counted)})
    return rows


def _ece_interval(margins: Sequence[Tensor], ece: float) -> dict[str, float] | None:
    """The basic bootstrap: twice the estimate less the percentiles. The percentiles alone would count noise twice.

    A sum of absolute errors is above 0 by chance alone, and in a resample by chance once more (Davison and Hinkley
    1997, section 5.2).
    """
    if len(margins) < 2:
        return None
    errors = torch.zeros(len(margins), NUM_BINS, dtype=torch.float64)
    for row, margin in enumerate(margins):
        confidence = torch.sigmoid(margin.abs())
        errors[row].index_add_(0, _bin_of(confidence), _right(margin) - confidence)
    pairs = torch.tensor([float(len(margin)) for margin in margins], dtype=torch.float64)
    resampled = bootstrap(len(margins), lambda counts: (counts @ errors).abs().sum(dim=1) / (counts @ pairs))
    low, high = percentile_interval(resampled, len(margins))
    return {"low": max(0.0, 2 * ece - high), "high": max(ece, 2 * ece - low)}


def _pearson(x: Tensor, y: Tensor) -> float:
    """Pearson's correlation of x (n,) and y (n,); NaN where one of them does not vary, which rounding would hide."""
    if x.min() == x.max() or y.min() == y.max():
        return math.nan
    return torch.corrcoef(torch.stack([x, y]))[0, 1].item()


def _correlation_interval(scores: Sequence[Tensor], lengths: Sequence[Tensor]) -> dict[str, float] | None:
    """The bootstrap over prompts of Pearson's correlation over all responses."""
    if len(scores) < 2:
        return None
    mean_score, mean_length = torch.cat([*scores]).mean(), torch.cat([*lengths]).mean()
    rows = []
    for prompt_scores, prompt_lengths in zip(scores, lengths, strict=True):
        x, y = prompt_scores - mean_score, prompt_lengths - mean_length  # near 0, or squares would lose digits
        rows.append(torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y]).sum(dim=1))
    sums = torch.stack(rows)

    def correlation(counts: Tensor) -> Tensor:
        n, x, y, xx, yy, xy = (counts @ sums).unbind(dim=1)
        return (n * xy - x * y) / ((n * xx - x * x) * (n * yy - y * y)).clamp(min=0).sqrt()

    low, high = percentile_interval(bootstrap(len(sums), correlation), len(sums))
    return None if math.isnan(low) else {"low": low, "high": high}
