"""A figure of one system less that of another, with a 95 % interval and a p-value.

Paired where both answered the same prompts: the difficulty of a prompt cancels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy import special

from lora_rlhf.stats.intervals import bootstrap_statistic, mean_interval, percentile_interval
from lora_rlhf.stats.win_rates import win_rate


class Difference(NamedTuple):
    """A figure less the baseline's over the same `n` prompts, with its interval and its two-sided p-value.

    NaN if there are too few prompts.
    """

    difference: float
    low: float
    high: float
    p: float
    n: int


def paired_mean_difference(values: Sequence[float | None], baseline: Sequence[float | None]) -> Difference:
    """The difference of two means over the same prompts, by Student's paired t.

    t and not Wilcoxon's ranks: the mean is reported, t tests just the mean, and its p and interval agree; ranks test
    whether the differences are symmetric around 0, and can point the other way than the mean. Prompts with a None are
    left out.
    """
    differences = [a - b for a, b in zip(values, baseline, strict=True) if a is not None and b is not None]
    if len(differences) < 2:
        return Difference(differences[0] if differences else math.nan, math.nan, math.nan, math.nan, len(differences))
    mean, low, high, n = mean_interval(differences)
    standard_error = torch.tensor(differences, dtype=torch.float64).std(correction=1).item() / math.sqrt(n)
    p = t_test_p(mean / standard_error, n - 1) if standard_error else float(mean == 0)
    return Difference(mean, low, high, p, n)


def t_test_p(t: float, degrees_of_freedom: float) -> float:
    """The two-sided p-value of Student's t."""
    return 2.0 * float(special.stdtr(degrees_of_freedom, -abs(t)))


def paired_rate_difference(flags: Sequence[bool | None], baseline: Sequence[bool | None]) -> Difference:
    """The difference of two shares over the same prompts, by McNemar's exact test.

    Only prompts with one flag of the two decide it, as only untied prompts decide a win rate: the difference is twice
    the amount by which that win rate exceeds 50 %, and so is its interval (see `win_rate`), which excludes 0 just if p
    is below 0.05. Prompts with a None are left out.
    """
    pairs = [(a, b) for a, b in zip(flags, baseline, strict=True) if a is not None and b is not None]
    rate = win_rate([0.5 + (bool(a) - bool(b)) / 2 for a, b in pairs])
    if rate.rate is None or rate.low is None or rate.high is None or rate.p is None:
        return Difference(math.nan, math.nan, math.nan, math.nan, 0)
    return Difference(2 * rate.rate - 1, 2 * rate.low - 1, 2 * rate.high - 1, rate.p, rate.n)


def paired_ratio_difference(
    numerators: Sequence[float],
    denominators: Sequence[float],
    baseline_numerators: Sequence[float],
    baseline_denominators: Sequence[float],
    is_exponential: bool = False,
) -> Difference:
    """The difference of two means per token (sum / sum, see `ratio_interval`) over the same n prompts, bootstrapped.

    is_exponential: of exp of the two means, such as perplexities.

    p is twice the share of resamples on the rarer side of 0, one resample added to either side (Davison and Hinkley
    1997, section 4.2.5): it cannot be below 2 / 4001.
    """
    columns = (numerators, denominators, baseline_numerators, baseline_denominators)
    sums = torch.tensor([[*column] for column in columns], dtype=torch.float64)  # (4, n)
    n = sums.shape[1]
    numerator, denominator, baseline_numerator, baseline_denominator = sums
    if not n or not float(denominator.sum()) or not float(baseline_denominator.sum()):
        return Difference(math.nan, math.nan, math.nan, math.nan, n)
    transform = torch.exp if is_exponential else torch.positive
    difference = (
        transform(numerator.sum() / denominator.sum())
        - transform(baseline_numerator.sum() / baseline_denominator.sum())
    ).item()
    if n == 1:
        return Difference(difference, math.nan, math.nan, math.nan, n)
    resampled = bootstrap_statistic(
        n,
        lambda counts: (
            transform(counts @ numerator / (counts @ denominator))
            - transform(counts @ baseline_numerator / (counts @ baseline_denominator))
        ),
    )
    resampled = resampled[~resampled.isnan()]
    num_on_rarer_side = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    p = min(1.0, 2 * (num_on_rarer_side + 1) / (len(resampled) + 1))
    return Difference(difference, *percentile_interval(resampled, n), p, n)


def independent_difference(figure: Sequence[float], baseline: Sequence[float]) -> tuple[float, float, float]:
    """Two figures over different cases, each (value, low, high): the first less the second, with its 95 % interval.

    The ends come from those of the two (MOVER, Zou and Donner 2008; for two Wilson intervals, Newcombe's method 10).
    """
    (value, low, high), (baseline_value, baseline_low, baseline_high) = figure, baseline
    difference = value - baseline_value
    below = math.hypot(value - low, baseline_high - baseline_value)
    above = math.hypot(high - value, baseline_value - baseline_low)
    return difference, difference - below, difference + above
