"""Differences of two systems against published examples, closed forms and SciPy's bootstrap."""

import math
import random

import numpy
import pytest
import scipy.stats

from lora_rlhf.stats.differences import (
    independent_difference,
    paired_mean_difference,
    paired_rate_difference,
    paired_ratio_difference,
    t_test_p,
)


@pytest.mark.parametrize("t", [-40.0, -2.0, 0.0, 0.1, 1.0, 6.0, math.inf])
def test_p_values_of_students_t_have_closed_forms(t: float) -> None:
    """Of one degree of freedom (Cauchy's distribution), of two, and of so many that t is normal."""
    assert t_test_p(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(abs(t)), abs=1e-12)
    assert t_test_p(t, 2) == pytest.approx(1 - abs(t) / math.hypot(math.sqrt(2), t) if t < math.inf else 0.0, abs=1e-12)
    assert t_test_p(t, 1e9) == pytest.approx(math.erfc(abs(t) / math.sqrt(2)), abs=1e-8)


def test_paired_means_are_students_own_example() -> None:
    """Hours of sleep with two drugs (Student 1908; R's t.test(paired = TRUE) on its data set "sleep")."""
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    difference = paired_mean_difference(second, first)
    assert difference == pytest.approx((1.58, 0.7001142, 2.4598858, 0.002832890, 10), abs=1e-7)
    back = paired_mean_difference(first, second)
    assert back == pytest.approx((-1.58, -2.4598858, -0.7001142, 0.002832890, 10), abs=1e-7)


def test_paired_means_of_few_or_equal_differences() -> None:
    assert paired_mean_difference([1.0, None, 3.0, 5.0], [0.0, 1.0, None, 1.0]) == paired_mean_difference(
        [1.0, 5.0], [0.0, 1.0]
    )
    assert paired_mean_difference([2.0, 2.0], [2.0, 2.0])[:4] == (0.0, 0.0, 0.0, 1.0)
    assert paired_mean_difference([3.0, 3.0], [2.0, 2.0]).p == 0.0
    assert math.isnan(paired_mean_difference([1.0], [0.0]).p) and paired_mean_difference([], []).n == 0


def test_paired_rates_are_mcnemars_exact_test_and_turn_with_the_sides() -> None:
    flags = [True] * 14 + [False] * 5 + [True] * 30 + [False] * 40
    baseline = [False] * 14 + [True] * 5 + [True] * 30 + [False] * 40
    difference = paired_rate_difference(flags, baseline)
    assert difference.difference == pytest.approx((14 - 5) / 89, abs=1e-12)
    p = 2 * sum(math.comb(19, k) for k in range(6)) / 2**19
    assert difference.p == pytest.approx(p, abs=1e-12) and difference.n == 89
    back = paired_rate_difference(baseline, flags)
    assert (back.difference, back.p) == pytest.approx((-difference.difference, difference.p), abs=1e-12)
    error = 1.96 * math.sqrt((19 / 89 - (9 / 89) ** 2) / 89)  # of a difference of paired shares, for many prompts
    assert (difference.low, difference.high) == pytest.approx((9 / 89 - error, 9 / 89 + error), abs=0.05)
    assert paired_rate_difference([True, None], [False, True]) == paired_rate_difference([True], [False])
    assert math.isnan(paired_rate_difference([None], [True]).difference)


def test_flags_that_never_differ_differ_by_no_more_than_the_exact_bound() -> None:
    """The rate at which none in 28 comes in 2.5 % of cases: 1 - 0.025 ** (1 / 28)."""
    difference = paired_rate_difference([True] * 5 + [False] * 23, [True] * 5 + [False] * 23)
    assert (difference.difference, difference.p, difference.n) == (0.0, 1.0, 28)
    most = 1 - 0.025 ** (1 / 28)
    assert (difference.low, difference.high) == pytest.approx((-most, most), abs=1e-9)


def test_paired_ratios_are_scipys_bootstrap_of_the_difference() -> None:
    rng = random.Random(9)
    tokens = [rng.randint(3, 60) for _ in range(150)]
    sums = [n * rng.expovariate(4) for n in tokens]
    others = [rng.randint(3, 60) for _ in range(150)]
    other_sums = [n * rng.expovariate(5) for n in others]
    difference = paired_ratio_difference(sums, tokens, other_sums, others)
    assert difference.difference == pytest.approx(sum(sums) / sum(tokens) - sum(other_sums) / sum(others), abs=1e-12)

    def ratio(a, b, c, d, axis):
        return a.sum(axis) / b.sum(axis) - c.sum(axis) / d.sum(axis)

    columns = tuple(map(numpy.array, (sums, tokens, other_sums, others)))
    theirs = scipy.stats.bootstrap(columns, ratio, paired=True, method="percentile", rng=0)
    ends = theirs.confidence_interval
    assert (difference.low, difference.high) == pytest.approx((ends.low, ends.high), abs=3e-3)
    share_below = (theirs.bootstrap_distribution <= 0).mean()
    assert difference.p == pytest.approx(2 * share_below, abs=0.03)  # the error of p itself is 0.01
    same = paired_ratio_difference(sums, tokens, sums, tokens)
    assert same[:4] == (0.0, 0.0, 0.0, 1.0)
    far = paired_ratio_difference([10.0 * n for n in tokens], tokens, other_sums, others)
    assert far.p == pytest.approx(2 / 4001, abs=1e-9)
    assert math.isnan(paired_ratio_difference([1.0], [0.0], [1.0], [2.0]).difference)
    assert math.isnan(paired_ratio_difference([1.0], [2.0], [1.0], [2.0]).low)


def test_the_difference_of_two_shares_is_newcombes() -> None:
    """Newcombe 1998 (Interval estimation for the difference), Table II, method 10: 56/70 - 48/80 and 10/10 - 0/20."""
    for (a, m), (b, n), ends in [((56, 70), (48, 80), (0.0524, 0.3339)), ((10, 10), (0, 20), (0.6791, 1.0))]:
        sides = []
        for x, of in ((a, m), (b, n)):
            interval = scipy.stats.binomtest(x, of).proportion_ci(0.95, "wilson")
            sides.append((x / of, interval.low, interval.high))
        difference = independent_difference(*sides)
        assert difference[0] == pytest.approx(a / m - b / n, abs=1e-12)
        assert difference[1:] == pytest.approx(ends, abs=5e-5)
