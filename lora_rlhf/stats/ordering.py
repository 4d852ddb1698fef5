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
from lora_rlhf.stats.intervals import (
    Interval,
    Numbers,
    bootstrap_statistic,
    percentile_interval,
    to_float64,
    wilson_interval,
)

MARGINS = (0.25, 0.5, 1.0, 2.0)  # edges of the buckets of |score difference|, in sd of the demonstrations' scores
LIKE_LENGTH = 0.1  # lengths that differ by no more than this share of the longer one are matched
NUM_BINS = 10  # of the reliability curve
BIN_EDGES = torch.tensor([0.5 + 0.5 * index / NUM_BINS for index in range(NUM_BINS + 1)], dtype=torch.float64)


class OrderingReport(TypedDict, total=False):
    """The result of `ordering_report`, with the keys of a manifest and of a report.

    Without a pair it has the two counts only; `length_matched` is missing if no pair is matched. Intervals are None for
    a single prompt.
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

    Both are NaN if `n` is 0.
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
    margins, length_gaps, length_masks = [], [], []  # of each prompt with a pair: (pairs,)
    for prompt_ranks, prompt_scores, prompt_lengths in zip(ranks, scores, lengths, strict=True):
        winners, losers = ranking_pairs(torch.tensor(prompt_ranks))
        if len(winners):
            lengths_tensor = torch.tensor(prompt_lengths, dtype=torch.float64)
            margins.append((prompt_scores[winners] - prompt_scores[losers]).double())
            length_gaps.append(lengths_tensor[winners] - lengths_tensor[losers])
            length_masks.append(
                length_gaps[-1].abs() <= LIKE_LENGTH * torch.maximum(lengths_tensor[winners], lengths_tensor[losers])
            )
    if not margins:
        return {"held_out_prompts": len(ranks), "held_out_pairs": 0}
    all_pairs = [torch.ones(len(margin), dtype=torch.bool) for margin in margins]
    flat_margins = torch.cat(margins)
    calibration = reliability_curve(torch.sigmoid(flat_margins.abs()), _pair_correctness(flat_margins))
    columns = [row.double() for row in scores], [torch.tensor(row, dtype=torch.float64) for row in lengths]
    centred = [[row - row.mean() for row in column] for column in columns]
    report: OrderingReport = {
        "held_out_prompts": len(ranks),
        "held_out_pairs": len(flat_margins),
        "accuracy": _pair_accuracy(margins, all_pairs),
        "accuracy_by_margin": _accuracy_by_margin(margins),
        "ece": calibration.ece,
        "ece_interval": _ece_interval(margins, calibration.ece),
        "reliability": [bin._asdict() for bin in calibration.bins],
        "length_correlation": _pearson_correlation(*(torch.cat(column) for column in columns)),
        "length_correlation_interval": _correlation_interval(*columns),
        "length_correlation_within": _pearson_correlation(*(torch.cat(column) for column in centred)),
        "longer_wins": _pair_accuracy(length_gaps, all_pairs),
    }
    if any(bool(pairs.any()) for pairs in length_masks):
        report["length_matched"] = _pair_accuracy(margins, length_masks)
    return report


def reliability_curve(probabilities: Numbers, correct: Numbers) -> Reliability:
    """Compares stated probabilities with how often they come true (Guo et al., arXiv 1706.04599, eq. 3).

    10 bins over [0.5, 1]. probabilities (n,) of the predicted winner, so at least 0.5; correct (n,): 1 if the predicted
    winner won, else 0.
    """
    probabilities, correct = to_float64(probabilities), to_float64(correct)
    if len(probabilities) != len(correct):
        raise ValueError(f"{len(probabilities)} probabilities for {len(correct)} results")
    is_outside = ~((probabilities >= 0.5) & (probabilities <= 1))
    if is_outside.any():
        raise ValueError(
            f"the predicted winner's probability is in [0.5, 1], got {probabilities[is_outside][0].item()}"
        )
    bin_indices = _bin_index(probabilities)
    bins = []
    for index, (low, high) in enumerate(pairwise(BIN_EDGES.tolist())):
        is_inside = bin_indices == index
        confidence, accuracy = probabilities[is_inside].mean().item(), correct[is_inside].mean().item()
        bins.append(Bin(low, high, confidence, accuracy, int(is_inside.sum())))
    errors = (b.n * abs(b.accuracy - b.confidence) for b in bins if b.n)
    return Reliability(bins, sum(errors) / len(probabilities))


def share_by_prompt(num_right: Tensor, num_pairs: Tensor) -> Interval:
    """The share of right pairs with a 95 % interval over prompts: num_right (n,) of num_pairs (n,) at each prompt.

    Wilson's, for the number of trials that would have the observed spread between prompts: the variance is that of a
    ratio estimate. If all prompts have the same share (all pairs right, for example), prompts are the trials: the pairs
    of one prompt may all be right or wrong together.
    """
    rate, total_pairs, num_prompts = float(num_right.sum() / num_pairs.sum()), float(num_pairs.sum()), len(num_pairs)
    spread = float(((num_right - rate * num_pairs) ** 2).sum())
    trials = float(num_prompts)
    if spread > 0 and num_prompts > 1:
        variance = spread * num_prompts / (num_prompts - 1) / total_pairs**2
        trials = min(max(1.0, rate * (1 - rate) / variance), total_pairs)
    return wilson_interval(min(max(rate * trials, 0.0), trials), trials)._replace(rate=rate, n=int(total_pairs))


def _pair_correctness(margins: Tensor) -> Tensor:
    """1 if the winner's margin is above 0, 0.5 if it is 0, else 0."""
    return (margins.sign() + 1) / 2


def _bin_index(probabilities: Tensor) -> Tensor:
    """The index of each probability's bin; 1 belongs to the last one."""
    return torch.bucketize(probabilities, BIN_EDGES[1:-1], right=True)


def _pair_accuracy(margins: Sequence[Tensor], pair_masks: Sequence[Tensor]) -> dict[str, float]:
    """The share of the pairs in the masks that are right; prompts without such pairs are left out."""
    num_right, num_pairs = [], []
    for margin, mask in zip(margins, pair_masks, strict=True):
        if bool(mask.any()):
            num_right.append(float(_pair_correctness(margin[mask]).sum()))
            num_pairs.append(float(mask.sum()))
    return share_by_prompt(*(torch.tensor(values, dtype=torch.float64) for values in (num_right, num_pairs)))._asdict()


def _accuracy_by_margin(margins: Sequence[Tensor]) -> list[dict[str, float]]:
    """The accuracy in each bucket of |score difference| that has pairs."""
    rows = []
    for low, high in pairwise((0.0, *MARGINS, math.inf)):
        pair_masks = [(margin.abs() >= low) & (margin.abs() < high) for margin in margins]
        if any(bool(mask.any()) for mask in pair_masks):
            rows.append({"from": low, "to": high, **_pair_accuracy(margins, pair_masks)})
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
        errors[row].index_add_(0, _bin_index(confidence), _pair_correctness(margin) - confidence)
    pairs = torch.tensor([float(len(margin)) for margin in margins], dtype=torch.float64)
    resampled = bootstrap_statistic(len(margins), lambda counts: (counts @ errors).abs().sum(dim=1) / (counts @ pairs))
    low, high = percentile_interval(resampled, len(margins))
    return {"low": max(0.0, 2 * ece - high), "high": max(ece, 2 * ece - low)}


def _pearson_correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's correlation of x (n,) and y (n,).

    NaN if one of them does not vary, which rounding would hide.
    """
    if x.min() == x.max() or y.min() == y.max():
        return math.nan
    return torch.corrcoef(torch.stack([x, y]))[0, 1].item()


def _correlation_interval(scores: Sequence[Tensor], lengths: Sequence[Tensor]) -> dict[str, float] | None:
    """The bootstrap interval over prompts of Pearson's correlation over all responses; None for a single prompt."""
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

    low, high = percentile_interval(bootstrap_statistic(len(sums), correlation), len(sums))
    return None if math.isnan(low) else {"low": low, "high": high}
