"""Rates and means with 95 % intervals, and the bootstrap that other intervals are made with.

Functions that take `Numbers` accept a tensor or any sequence of numbers, compute in float64 on the CPU and return
plain floats.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from scipy import special
from torch import Tensor

Numbers = Tensor | Sequence[float]

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % point
NUM_RESAMPLES = 4000
RESAMPLING_SEED = 0  # fixed: the same outcomes always give the same interval
MAX_COUNTS = 2**22  # counts of resamples in memory at a time: 32 MiB


class Interval(NamedTuple):
    """A rate in [0, 1] over `n` trials, and the ends of its 95 % interval."""

    rate: float
    low: float
    high: float
    n: float


class MeanInterval(NamedTuple):
    """A mean over `n` values, in their unit, and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


def wilson_interval(successes: float, n: float) -> Interval:
    """Wilson's score interval of a rate (Wilson 1927): it keeps its coverage near 0 and 1 too.

    `successes` may count ties as half, and n need not be whole: trials that depend on one another count as fewer.
    (SciPy has this interval for whole numbers only.)
    """
    _require_counts(successes, n)
    rate, z2 = successes / n, Z_95**2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    margin = Z_95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n**2))
    # At a rate of 0 or 1 the near end is that rate exactly; rounding would miss it.
    return Interval(rate, max(0.0, min(rate, centre - margin)), min(1.0, max(rate, centre + margin)), n)


def clopper_pearson_interval(successes: int, n: int) -> Interval:
    """The exact interval of a rate (Clopper and Pearson 1934): coverage is at least 95 %, however few the trials."""
    _require_counts(successes, n)

    def low_end(count: int) -> float:
        """The rate at which `count` successes or more have a probability of 2.5 %."""
        return float(special.betaincinv(count, n - count + 1, 0.025)) if count else 0.0

    return Interval(successes / n, low_end(successes), 1.0 - low_end(n - successes), n)


def share_interval(flags: Sequence[bool | None]) -> Interval | None:
    """The share of flagged cases with Wilson's interval. None entries are left out; None if no case is left."""
    valid_flags = [bool(flag) for flag in flags if flag is not None]
    return wilson_interval(sum(valid_flags), len(valid_flags)) if valid_flags else None


def mean_interval(values: Numbers) -> MeanInterval:
    """The mean of values (n,) with Student's t interval; the interval of a single value is NaN."""
    values = to_float64(values)
    mean, n = values.mean().item(), len(values)
    margin = t_quantile(n - 1) * values.std(correction=1).item() / math.sqrt(n) if n > 1 else math.nan
    return MeanInterval(mean, mean - margin, mean + margin, n)


@lru_cache(maxsize=64)
def t_quantile(degrees_of_freedom: float) -> float:
    """The 97.5 % point of Student's t, above 0."""
    return float(special.stdtrit(degrees_of_freedom, 0.975))


def ratio_interval(numerators: Numbers, denominators: Numbers) -> MeanInterval:
    """sum(numerators) / sum(denominators), (n,) each, with its bootstrap interval over the n pairs.

    A mean per token is such a ratio: a response contributes its sum and its number of tokens, and responses are the
    independent cases. ValueError for a negative denominator, or for denominators that are all 0.
    """
    numerator, denominator = to_float64(numerators), to_float64(denominators)
    n = len(numerator)
    if len(denominator) != n or bool((denominator < 0).any()) or not bool(denominator.any()):
        raise ValueError(f"{n} numerators over {len(denominator)} denominators, which must be 0 or more and not all 0")
    ratio = (numerator.sum() / denominator.sum()).item()
    if n == 1:
        return MeanInterval(ratio, math.nan, math.nan, n)
    resampled = bootstrap_statistic(n, lambda counts: counts @ numerator / (counts @ denominator))
    return MeanInterval(ratio, *percentile_interval(resampled, n), n)


def bootstrap_statistic(n: int, statistic: Callable[[Tensor], Tensor], resamples: int = NUM_RESAMPLES) -> Tensor:
    """`statistic` of resamples of n cases (Efron 1979): (resamples, ...), the same for the same n every time.

    `statistic` receives counts (b, n), how often each case was drawn in each of b resamples, and returns (b, ...).
    """
    return torch.cat([statistic(counts) for counts in _iterate_counts(n, resamples)])


def percentile_interval(resampled: Tensor, n: int) -> tuple[float, float]:
    """The ends of the 95 % interval of a statistic (resamples,) over n cases; NaNs (an empty resample) are left out.

    The percentiles are moved outwards by as much as Student's t needs for few cases: the plain ones are too narrow by
    sqrt((n - 1) / n) and a normal quantile ("expanded percentile", Hesterberg 2015, section 5.3).
    """
    tail = float(special.ndtr(-math.sqrt(n / (n - 1)) * t_quantile(n - 1))) if n > 1 else 0.0
    low, high = resampled.double().nanquantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def to_float64(values: Numbers) -> Tensor:
    """The values as a tensor (n,) in float64 on the CPU. ValueError for an empty list."""
    floats = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach()
    if floats.ndim != 1 or len(floats) == 0:
        raise ValueError(f"expected a list of at least one number, got shape {tuple(floats.shape)}")
    return floats


def _require_counts(successes: float, n: float) -> None:
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials: there must be a trial, and at most one success each")


def _iterate_counts(n: int, resamples: int) -> Iterator[Tensor]:
    """Counts (b, n) of cases drawn with replacement, as many resamples at a time as fit into MAX_COUNTS."""
    if n * resamples <= MAX_COUNTS:
        yield _cached_counts(n, resamples, RESAMPLING_SEED)
        return
    rows = max(1, MAX_COUNTS // n)
    for number, start in enumerate(range(0, resamples, rows)):
        yield _draw_counts(n, min(rows, resamples - start), RESAMPLING_SEED + number)


def _draw_counts(n: int, resamples: int, seed: int) -> Tensor:
    """Counts (resamples, n): how often each of n cases is drawn, with replacement, in each resample."""
    generator = torch.Generator().manual_seed(seed)
    drawn_cases = torch.randint(n, (resamples, n), generator=generator)
    return torch.zeros(resamples, n, dtype=torch.float64).scatter_add_(
        1, drawn_cases, torch.ones(1, 1, dtype=torch.float64).expand(resamples, n)
    )


_cached_counts = lru_cache(maxsize=2)(_draw_counts)  # a report resamples the same prompts for figure after figure
