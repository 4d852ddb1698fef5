"""What the audit measures: how much of a text is new, which answers are the same, what a reward pays for length."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lora_rlhf.stats.intervals import MeanInterval, bootstrap, percentile_interval
from lora_rlhf.stats.text_metrics import plain_words, same_answer, same_opening, unrepeated_words


class Graded(NamedTuple):
    """Several responses to one prompt: the reward of each, its length, and how good it is by somebody else's measure.

    `qualities`: a gold or judge's score, or minus the rank that people gave it.
    """

    rewards: Sequence[float]
    lengths: Sequence[float]
    qualities: Sequence[float]


def repeated_share(text: str) -> float:
    """Share of a text's words that repeat a sentence, or end 4 words in a row, of before; 0 for an empty text."""
    count = len(plain_words(text))
    return 1 - unrepeated_words(text) / count if count else 0.0


def collapsed(responses: Sequence[str]) -> list[bool]:
    """For each response, whether another prompt got the same one, or it begins with the commonest four words of all."""
    return [same or opens for same, opens in zip(same_answer(responses), same_opening(responses), strict=True)]


def partial_correlation(groups: Sequence[Graded]) -> MeanInterval:
    """Correlation of reward and log length within prompts, both less what the quality explains of them; -1 to 1.

    Every variable is centred on its prompt's mean, so nothing hangs on which prompts ask for long answers. What people
    or a judge themselves pay for length is in the quality and does not count. The interval is the bootstrap over
    prompts (`statistics.bootstrap`); n counts them. NaN where nothing varies.
    """
    rows = [_moments(group) for group in groups if len(group.rewards) > 1]
    if not rows:
        return MeanInterval(math.nan, math.nan, math.nan, 0)
    moments, n = torch.stack(rows), len(rows)
    value = _partial(moments.sum(dim=0, keepdim=True)).item()
    if n == 1 or math.isnan(value):
        return MeanInterval(value, math.nan, math.nan, n)
    return MeanInterval(value, *percentile_interval(bootstrap(n, lambda counts: _partial(counts @ moments)), n), n)


def _moments(group: Graded) -> Tensor:
    """(6,): sums of rr, ll, qq, rl, rq, lq over the responses, each variable centred."""
    logs = [math.log1p(length) for length in group.lengths]
    reward, length, quality = (
        values - values.mean()
        for values in torch.tensor([[*group.rewards], logs, [*group.qualities]], dtype=torch.float64)
    )
    pairs = ((reward, reward), (length, length), (quality, quality), (reward, length), (reward, quality))
    return torch.stack([one @ other for one, other in (*pairs, (length, quality))])


def _partial(moments: Tensor) -> Tensor:
    """(b, 6) -> (b,)."""
    rr, ll, qq, rl, rq, lq = moments.unbind(dim=1)
    slope = torch.where(
        qq > 0, 1 / qq.clamp(min=1e-300), torch.zeros_like(qq)
    )  # without any quality, nothing is taken off
    left_r, left_l = rr - rq * rq * slope, ll - lq * lq * slope
    tiny = (left_r <= 1e-12 * rr) | (left_l <= 1e-12 * ll)
    product = torch.where(tiny, torch.full_like(rr, math.nan), left_r * left_l)
    return (rl - rq * lq * slope) / product.sqrt()


def fractional_ranks(values: Sequence[float]) -> list[float]:
    """The share of the other values that each is above, 0 to 1; equal ones share the middle of their places."""
    order = sorted(values)
    first: dict[float, int] = {}
    for place, value in enumerate(order):
        first.setdefault(value, place)
    times = Counter(order)
    return [(first[value] + (times[value] - 1) / 2) / max(1, len(order) - 1) for value in values]
