"""What a sample can and cannot say: rates and means with 95 % intervals, calibration, correlation.

Every function takes a tensor or any sequence of numbers, computes in float64 on the CPU and returns plain floats.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Numbers = Tensor | Sequence[float]

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % point
NUM_RESAMPLES = 4000
RESAMPLING_SEED = 0  # fixed: the same outcomes always give the same interval
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
    yes, no, ways = math.log(rate), math.log1p(-rate), math.lgamma(n + 1)
    terms = (
        ways - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * yes + (n - k) * no for k in range(successes, n + 1)
    )
    return math.fsum(map(math.exp, terms))


def win_rate(outcomes: Numbers) -> Interval:
    """The mean of paired outcomes (n,): 1 a win, 0.5 a tie, 0 a loss.

    The interval is the percentile bootstrap over the outcomes (Efron 1979), which gives ties their smaller variance;
    Wilson's where all outcomes are equal, as resampling them would claim certainty.
    """
    outcomes = _floats(outcomes)
    if wrong := sorted(set(outcomes.tolist()) - {0.0, 0.5, 1.0}):
        raise ValueError(f"an outcome is 0, 0.5 or 1, got {wrong[0]}")
    n = len(outcomes)
    if outcomes.min() == outcomes.max():
        return wilson(outcomes.sum().item(), n)
    generator = torch.Generator().manual_seed(RESAMPLING_SEED)
    draws = (torch.randint(n, (n,), generator=generator) for _ in range(NUM_RESAMPLES))
    rates = torch.stack([outcomes[draw].mean() for draw in draws])
    low, high = rates.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(outcomes.mean().item(), low, high, n)


def mean_interval(values: Numbers) -> MeanInterval:
    """The mean of values (n,) and 1.96 standard errors to either side; one value alone has no interval (NaN)."""
    values = _floats(values)
    mean, n = values.mean().item(), len(values)
    margin = Z_95 * values.std(correction=1).item() / math.sqrt(n) if n > 1 else math.nan
    return MeanInterval(mean, mean - margin, mean + margin, n)


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
