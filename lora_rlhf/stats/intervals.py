"""What a sample can and cannot say: rates and means with 95 % intervals, calibration, correlation.

Every function takes a tensor or any sequence of numbers, computes in float64 on the CPU and returns plain floats.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

Numbers = Tensor | Sequence[float]

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % point
NUM_RESAMPLES = 4000
RESAMPLING_SEED = 0  # fixed: the same outcomes always give the same interval
MOST_COUNTS = 2**22  # counts of resamples that are held at a time: 32 MiB
NUM_BINS = 10


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


def wilson(successes: float, n: float) -> Interval:
    """Wilson's score interval of a rate (Wilson 1927): honest near 0 and 1 too. `successes` may count ties as half.

    n need not be whole: trials that hang together count as fewer.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials: there must be a trial, and at most one success each")
    rate, z2 = successes / n, Z_95**2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    margin = Z_95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n**2))
    # At a rate of 0 or 1 the near end is that rate exactly, which rounding would miss.
    return Interval(rate, max(0.0, min(rate, centre - margin)), min(1.0, max(rate, centre + margin)), n)


def clopper_pearson(successes: int, n: int) -> Interval:
    """The exact interval of a rate (Clopper and Pearson 1934): it holds with at least 95 %, however few trials."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials: there must be a trial, and at most one success each")
    return Interval(successes / n, _exact_low(successes, n), 1.0 - _exact_low(n - successes, n), n)


def sign_test(wins: int, losses: int) -> float:
    """The exact two-sided p-value of wins and losses that are equally likely (the sign test, McNemar's exact test)."""
    n = wins + losses
    return min(1.0, 2.0 * _at_least(max(wins, losses), n, 0.5)) if n else 1.0


def _exact_low(successes: int, n: int) -> float:
    """The rate at which as many successes or more come in 2.5 % of cases; 0 where there is none."""
    low, high = 0.0, successes / n
    for _ in range(60):  # halves the interval to what a float can tell apart
        middle = (low + high) / 2
        low, high = (middle, high) if _at_least(successes, n, middle) < 0.025 else (low, middle)
    return low


def _at_least(successes: int, n: int, rate: float) -> float:
    """The probability of as many successes or more in n trials."""
    if successes == 0 or rate >= 1.0:
        return 1.0
    if rate <= 0.0:
        return 0.0
    return _incomplete_beta(rate, 1 - rate, successes, n - successes + 1)


def win_rate(outcomes: Numbers) -> Interval:
    """The mean of paired outcomes (n,): 1 a win, 0.5 a tie, 0 a loss.

    The interval is the bootstrap over the outcomes (Efron 1979), which gives ties their smaller variance; Wilson's
    where all outcomes are equal, as resampling them would claim certainty.
    """
    outcomes = _floats(outcomes)
    if wrong := sorted(set(outcomes.tolist()) - {0.0, 0.5, 1.0}):
        raise ValueError(f"an outcome is 0, 0.5 or 1, got {wrong[0]}")
    n = len(outcomes)
    if outcomes.min() == outcomes.max():
        return wilson(outcomes.sum().item(), n)
    wins, ties = (int((outcomes == outcome).sum()) for outcome in (1.0, 0.5))
    # A resample of three values is three counts, which are drawn at once: no need to draw every outcome.
    generator = torch.Generator().manual_seed(RESAMPLING_SEED)
    won = _binomial(torch.full((NUM_RESAMPLES,), float(n)), wins / n, generator)
    tied = _binomial(n - won, ties / (n - wins), generator)
    return Interval(outcomes.mean().item(), *percentile_interval((won + tied / 2).double() / n, n), n)


def _binomial(trials: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Successes in each number of trials."""
    return torch.binomial(trials, torch.full_like(trials, rate), generator=generator)


def mean_interval(values: Numbers) -> MeanInterval:
    """The mean of values (n,) with Student's t interval; one value alone has none (NaN)."""
    values = _floats(values)
    mean, n = values.mean().item(), len(values)
    margin = t_quantile(n - 1) * values.std(correction=1).item() / math.sqrt(n) if n > 1 else math.nan
    return MeanInterval(mean, mean - margin, mean + margin, n)


def bootstrap_mean(values: Numbers) -> MeanInterval:
    """The mean of values (n,) with its bootstrap interval, for values that are far from normal."""
    return bootstrap_ratio(values, [1.0] * len(values))


def bootstrap_ratio(numerators: Numbers, denominators: Numbers) -> MeanInterval:
    """sum(numerators) / sum(denominators), (n,) each, with its bootstrap interval over the n pairs.

    A mean per token is one: a response brings its sum and its tokens, and responses are what was drawn independently.
    ValueError for a denominator that is negative, or for denominators that are all 0.
    """
    above, below = _floats(numerators), _floats(denominators)
    n = len(above)
    if len(below) != n or bool((below < 0).any()) or not bool(below.any()):
        raise ValueError(f"{n} numerators over {len(below)} denominators, which must be 0 or more and not all 0")
    value = (above.sum() / below.sum()).item()
    if n == 1:
        return MeanInterval(value, math.nan, math.nan, n)
    return MeanInterval(
        value, *percentile_interval(bootstrap(n, lambda counts: counts @ above / (counts @ below)), n), n
    )


def bootstrap(n: int, statistic: Callable[[Tensor], Tensor], resamples: int = NUM_RESAMPLES) -> Tensor:
    """`statistic` of resamples of n cases (Efron 1979): (resamples, ...), the same for the same n every time.

    `statistic` is given counts (b, n), how often each case was drawn in each of b resamples, and returns (b, ...).
    """
    return torch.cat([statistic(counts) for counts in _resamples(n, resamples)])


def percentile_interval(resampled: Tensor, n: int) -> tuple[float, float]:
    """The ends of the 95 % interval of a statistic (resamples,) over n cases; NaNs (an empty resample) are left out.

    The percentiles are moved out to what Student's t would need for so few cases: the plain ones are too narrow by
    sqrt((n - 1) / n) and a normal quantile ("expanded percentile", Hesterberg 2015, section 5.3).
    """
    tail = 0.5 * math.erfc(math.sqrt(n / (n - 1)) * t_quantile(n - 1) / math.sqrt(2)) if n > 1 else 0.0
    low, high = resampled.double().nanquantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def _resamples(n: int, resamples: int) -> Iterator[Tensor]:
    """Counts (b, n) of cases drawn with replacement, a part of the resamples at a time."""
    if n * resamples <= MOST_COUNTS:
        yield _counts(n, resamples, RESAMPLING_SEED)
        return
    rows = max(1, MOST_COUNTS // n)
    for number, start in enumerate(range(0, resamples, rows)):
        yield _counts.__wrapped__(n, min(rows, resamples - start), RESAMPLING_SEED + number)


@lru_cache(maxsize=2)  # a report resamples the same prompts for figure after figure
def _counts(n: int, resamples: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n, (resamples, n), generator=generator)
    return torch.zeros(resamples, n, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(1, 1, dtype=torch.float64).expand(resamples, n)
    )


@lru_cache(maxsize=64)
def t_quantile(freedom: float) -> float:
    """The 97.5 % point of Student's t with so many degrees of freedom, above 0."""
    low, high = Z_95, 13.0  # 12.7 with one degree
    for _ in range(60):  # halves the interval to what a float can tell apart
        middle = (low + high) / 2
        low, high = (middle, high) if t_test(middle, freedom) > 0.05 else (low, middle)
    return high


def t_test(t: float, freedom: float) -> float:
    """The two-sided p-value of Student's t: I_x(freedom / 2, 1 / 2) at x = freedom / (freedom + t^2)."""
    if t == 0 or math.isinf(t):
        return float(t == 0)
    return _incomplete_beta(freedom / (freedom + t * t), t * t / (freedom + t * t), freedom / 2, 0.5)


def _incomplete_beta(x: float, rest: float, a: float, b: float) -> float:
    """The regularised incomplete beta function at 0 < x < 1, by its continued fraction (DLMF 8.17.22); rest: 1 - x."""
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1.0 - _incomplete_beta(rest, x, b, a)
    ways = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    fraction, above, below = 1.0, 1.0, 0.0
    for step in range(1, 10_000):  # Lentz's way, from the outside in
        m = step // 2
        term = m * (b - m) if step % 2 == 0 else -(a + m) * (a + b + m)
        term *= x / ((a + step - 1) * (a + step))
        below = 1.0 / (1.0 + term * below)
        above = 1.0 + term / above
        fraction *= above * below
        if abs(above * below - 1.0) < 1e-15:
            break
    return math.exp(a * math.log(x) + b * math.log(rest) + ways) / a / fraction


def reliability(probabilities: Numbers, correct: Numbers) -> Reliability:
    """How far stated probabilities can be trusted (Guo et al., arXiv 1706.04599, eq. 3), in 10 bins over [0.5, 1].

    probabilities (n,) of the predicted winner, so at least 0.5; correct (n,): 1 where that one did win, else 0.
    """
    probabilities, correct = _floats(probabilities), _floats(correct)
    if len(probabilities) != len(correct):
        raise ValueError(f"{len(probabilities)} probabilities for {len(correct)} results")
    outside = ~((probabilities >= 0.5) & (probabilities <= 1))
    if outside.any():
        raise ValueError(f"the predicted winner's probability is in [0.5, 1], got {probabilities[outside][0].item()}")
    edges = torch.tensor([0.5 + 0.5 * place / NUM_BINS for place in range(NUM_BINS + 1)], dtype=torch.float64)
    places = torch.bucketize(probabilities, edges[1:-1], right=True)  # 1 belongs to the last bin
    bins = []
    for place in range(NUM_BINS):
        inside = places == place
        confidence, accuracy = probabilities[inside].mean().item(), correct[inside].mean().item()
        bins.append(Bin(edges[place].item(), edges[place + 1].item(), confidence, accuracy, int(inside.sum())))
    errors = (b.n * abs(b.accuracy - b.confidence) for b in bins if b.n)
    return Reliability(bins, sum(errors) / len(probabilities))


def pearson(x: Numbers, y: Numbers) -> float:
    """Pearson's correlation of x (n,) and y (n,); NaN where one of them does not vary."""
    x, y = _floats(x), _floats(y)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} values against {len(y)}")
    if x.min() == x.max() or y.min() == y.max():
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    return (x @ y / (x.norm() * y.norm())).item()


def _floats(values: Numbers) -> Tensor:
    """(n,) float64 on the CPU. ValueError for none."""
    floats = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach()
    if floats.ndim != 1 or len(floats) == 0:
        raise ValueError(f"expected a list of at least one number, got shape {tuple(floats.shape)}")
    return floats
