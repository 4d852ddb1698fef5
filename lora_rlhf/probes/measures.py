"""Measures of the audit: repeated words, equal answers, and the reward for length."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lora_rlhf.stats.intervals import MeanInterval, bootstrap_statistic, percentile_interval
from lora_rlhf.stats.text_metrics import has_common_opening, has_repeated_answer, normalized_words, num_unrepeated_words


class GradedResponses(NamedTuple):
    """Several responses to one prompt: reward, length and quality of each.

    `qualities` come from another measure than the reward: a gold or judge's score, or minus the rank that people gave.
    """

    rewards: Sequence[float]
    lengths: Sequence[float]
    qualities: Sequence[float]


def repeated_share(text: str) -> float:
    """Share of a text's words that belong to a repeated sentence or end a repeated 4-gram; 0 for an empty text."""
    count = len(normalized_words(text))
    return 1 - num_unrepeated_words(text) / count if count else 0.0


def is_collapsed(responses: Sequence[str]) -> list[bool]:
    """For each response, whether another one is equal, or it begins with the most frequent four words."""
    return [
        is_repeated or is_common
        for is_repeated, is_common in zip(has_repeated_answer(responses), has_common_opening(responses), strict=True)
    ]


def partial_correlation(groups: Sequence[GradedResponses]) -> MeanInterval:
    """The partial correlation of reward and log length within prompts, given the quality; -1 to 1.

    Every variable is centred on its prompt's mean, so prompts that ask for long answers make no difference. A
    preference of people or the judge for length is a part of the quality and does not count. The interval is the
    bootstrap over prompts; n is their number. NaN if a variable is constant.
    """
    rows = [_centred_moments(group) for group in groups if len(group.rewards) > 1]
    if not rows:
        return MeanInterval(math.nan, math.nan, math.nan, 0)
    moments, n = torch.stack(rows), len(rows)
    value = _correlation_from_moments(moments.sum(dim=0, keepdim=True)).item()
    if n == 1 or math.isnan(value):
        return MeanInterval(value, math.nan, math.nan, n)
    return MeanInterval(
        value,
        *percentile_interval(bootstrap_statistic(n, lambda counts: _correlation_from_moments(counts @ moments)), n),
        n,
    )


def _centred_moments(group: GradedResponses) -> Tensor:
    """(6,): sums of rr, ll, qq, rl, rq, lq over the responses, each variable centred."""
    logs = [math.log1p(length) for length in group.lengths]
    reward, length, quality = (
        values - values.mean()
        for values in torch.tensor([[*group.rewards], logs, [*group.qualities]], dtype=torch.float64)
    )
    squares = (reward @ reward, length @ length, quality @ quality)
    return torch.stack([*squares, reward @ length, reward @ quality, length @ quality])


def _correlation_from_moments(moments: Tensor) -> Tensor:
    """The partial correlation from sums of `_centred_moments`: (b, 6) -> (b,)."""
    rr, ll, qq, rl, rq, lq = moments.unbind(dim=1)
    inverse_qq = torch.where(qq > 0, 1 / qq.clamp(min=1e-300), 0.0)  # a constant quality explains nothing
    rest_rr, rest_ll = rr - rq * rq * inverse_qq, ll - lq * lq * inverse_qq
    is_constant = (rest_rr <= 1e-12 * rr) | (rest_ll <= 1e-12 * ll)
    product = torch.where(is_constant, math.nan, rest_rr * rest_ll)
    return (rl - rq * lq * inverse_qq) / product.sqrt()


def fractional_ranks(values: Sequence[float]) -> list[float]:
    """The share of the other values that are below each value, 0 to 1; equal values share their mean rank."""
    order = sorted(values)
    first: dict[float, int] = {}
    for rank, value in enumerate(order):
        first.setdefault(value, rank)
    counts = Counter(order)
    return [(first[value] + (counts[value] - 1) / 2) / max(1, len(order) - 1) for value in values]
