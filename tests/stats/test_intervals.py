"""Intervals of rates and means against published values, closed forms and SciPy's bootstrap."""

import math
import random

import numpy
import pytest
import scipy.stats
import torch

from lora_rlhf.stats.intervals import (
    clopper_pearson_interval,
    mean_interval,
    ratio_interval,
    share_interval,
    t_quantile,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, Table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (3, 12, 0.0889, 0.5323),  # R: prop.test(3, 12, correct = FALSE)
    ],
)
def test_wilson_gives_newcombes_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((successes / n, low, high, n), abs=5e-5)


def test_wilson_solves_its_defining_equation_and_mirrors() -> None:
    """Its ends are the rates p at which the observed rate lies 1.96 standard errors of p away."""
    interval = wilson_interval(7.5, 12)
    for end in (interval.low, interval.high):
        assert abs(interval.rate - end) / math.sqrt(end * (1 - end) / 12) == pytest.approx(1.95996, abs=1e-5)
    assert interval.low < interval.rate < interval.high
    mirrored = wilson_interval(4.5, 12)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_an_interval_holds_its_rate() -> None:
    for n in range(1, 60):
        for rate in (0.0, 0.5, 1.0):
            interval = wilson_interval(rate * n, n)
            assert 0 <= interval.low <= interval.rate <= interval.high <= 1


def test_a_share_is_wilsons_of_the_known_flags() -> None:
    assert share_interval([True, False, None, True, True]) == wilson_interval(3, 4)
    assert share_interval([None]) is None


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2527, 0.3676),  # Newcombe 1998, Table I, method 5
        (15, 148, 0.0578, 0.1617),
        (0, 20, 0.0000, 0.1684),
        (1, 29, 0.0009, 0.1776),
    ],
)
def test_clopper_pearson_gives_newcombes_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    assert clopper_pearson_interval(successes, n) == pytest.approx((successes / n, low, high, n), abs=5e-5)
    assert clopper_pearson_interval(n - successes, n) == pytest.approx(
        (1 - successes / n, 1 - high, 1 - low, n), abs=5e-5
    )


@pytest.mark.parametrize("n", [1, 4, 29])
def test_an_exact_interval_without_a_failure_ends_where_2_5_percent_have_none(n: int) -> None:
    assert clopper_pearson_interval(n, n) == pytest.approx((1.0, 0.025 ** (1 / n), 1.0, n), abs=1e-9)


def test_the_exact_interval_of_many_trials_is_near_the_normal_distributions() -> None:
    error = 1.96 * math.sqrt(0.6 * 0.4 / 20_000)
    assert clopper_pearson_interval(12_000, 20_000)[1:3] == pytest.approx((0.6 - error, 0.6 + error), abs=1e-4)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [
        (1, math.tan(0.475 * math.pi)),  # closed forms of one and two degrees of freedom
        (2, math.sqrt(2 / (1 / 0.95**2 - 1))),
        (7, 2.365),  # tables of the t distribution
        (30, 2.042),
        (120, 1.980),
        (100_000, 1.960),
    ],
)
def test_quantiles_of_students_t(freedom: int, quantile: float) -> None:
    assert t_quantile(freedom) == pytest.approx(quantile, abs=1e-9 if freedom < 3 else 5e-4)


def test_mean_interval_is_students() -> None:
    values = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]  # squared distances from the mean: 32
    margin = 2.36462 * math.sqrt(32 / 7 / 8)
    assert mean_interval(values) == pytest.approx((5.0, 5.0 - margin, 5.0 + margin, 8), abs=1e-5)
    single = mean_interval([3.0])
    assert single.mean == 3.0 and math.isnan(single.low) and math.isnan(single.high)


def test_a_bootstrap_of_a_ratio_is_scipys() -> None:
    rng = random.Random(2)
    tokens = [rng.randint(3, 60) for _ in range(250)]
    sums = [n * rng.expovariate(4) for n in tokens]

    def ratio(above, below, axis):
        return above.sum(axis) / below.sum(axis)

    columns = (numpy.array(sums), numpy.array(tokens))
    theirs = scipy.stats.bootstrap(columns, ratio, paired=True, method="percentile", rng=0).confidence_interval
    interval = ratio_interval(sums, tokens)
    assert interval.mean == pytest.approx(sum(sums) / sum(tokens), abs=1e-12) and interval.n == 250
    assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high), abs=3e-3)
    assert ratio_interval(sums, tokens) == interval, "the same values give the same interval"
    single = ratio_interval([3.0], [6.0])
    assert single.mean == 0.5 and math.isnan(single.low)


def test_a_bootstrap_of_few_is_as_wide_as_students_interval() -> None:
    """The plain percentiles of 8 values would be narrower by a fifth."""
    values = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]
    resampled, student = ratio_interval(values, [1.0] * 8), mean_interval(values)
    assert resampled.high - resampled.low == pytest.approx(student.high - student.low, rel=0.06)
    assert resampled.mean == pytest.approx(5.0, abs=1e-12)


def test_many_values_are_resampled_in_parts() -> None:
    values = torch.randn(9000, generator=torch.Generator().manual_seed(1)).double()
    resampled, student = ratio_interval(values, torch.ones(9000)), mean_interval(values)
    assert resampled[:3] == pytest.approx(student[:3], abs=2e-3)


@pytest.mark.parametrize("interval", [wilson_interval, clopper_pearson_interval])
def test_more_successes_than_trials_are_an_error(interval) -> None:
    with pytest.raises(ValueError, match="3 successes in 2 trials"):
        interval(3, 2)


def test_numbers_that_have_no_ratio_or_mean_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one number"):
        mean_interval([])
    with pytest.raises(ValueError, match="not all 0"):
        ratio_interval([1.0, 2.0], [0.0, 0.0])
