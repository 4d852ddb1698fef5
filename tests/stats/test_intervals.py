"""Intervals, calibration and correlation against published values, closed forms and plain Python."""

import math
import random
import statistics

import numpy
import pytest
import scipy.stats
import torch
from sklearn.calibration import calibration_curve

from lora_rlhf.stats.intervals import (
    bootstrap_mean,
    bootstrap_ratio,
    clopper_pearson,
    mean_interval,
    pearson,
    reliability,
    sign_test,
    t_quantile,
    t_test,
    wilson,
    win_rate,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, Table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_newcombes_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    found = wilson(successes, n)
    assert found == pytest.approx((successes / n, low, high, n), abs=5e-5)


def test_wilson_solves_its_defining_equation_and_mirrors() -> None:
    """Its ends are the rates p at which the observed rate lies 1.96 standard errors of p away."""
    found = wilson(7.5, 12)
    for end in (found.low, found.high):
        assert abs(found.rate - end) / math.sqrt(end * (1 - end) / 12) == pytest.approx(1.95996, abs=1e-5)
    assert found.low < found.rate < found.high
    other = wilson(4.5, 12)
    assert (1 - other.high, 1 - other.low) == pytest.approx((found.low, found.high), abs=1e-12)


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
    assert clopper_pearson(successes, n) == pytest.approx((successes / n, low, high, n), abs=5e-5)
    assert clopper_pearson(n - successes, n) == pytest.approx((1 - successes / n, 1 - high, 1 - low, n), abs=5e-5)


@pytest.mark.parametrize("n", [1, 4, 29])
def test_an_exact_interval_without_a_failure_ends_where_2_5_percent_have_none(n: int) -> None:
    assert clopper_pearson(n, n) == pytest.approx((1.0, 0.025 ** (1 / n), 1.0, n), abs=1e-9)


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [(0, 4, 1 / 8), (5, 0, 1 / 16), (6, 0, 1 / 32), (3, 3, 1.0), (0, 0, 1.0), (1, 7, 2 * 9 / 256), (2, 1, 1.0)],
)
def test_sign_test_counts_the_orders_of_a_fair_coin(wins: int, losses: int, p: float) -> None:
    assert sign_test(wins, losses) == pytest.approx(p, abs=1e-12)
    assert sign_test(wins, losses) == sign_test(losses, wins)


def test_the_sign_test_and_the_exact_interval_agree() -> None:
    for n in range(1, 40):
        for wins in range(n + 1):
            low, high = clopper_pearson(wins, n)[1:3]
            assert (sign_test(wins, n - wins) < 0.05) == (low > 0.5 or high < 0.5)


def test_exact_figures_of_many_trials_are_near_those_of_the_normal_distribution() -> None:
    error = 1.96 * math.sqrt(0.6 * 0.4 / 20_000)
    assert clopper_pearson(12_000, 20_000)[1:3] == pytest.approx((0.6 - error, 0.6 + error), abs=1e-4)
    z = 200 / math.sqrt(20_000)  # with the correction for continuity, one less
    assert sign_test(10_100, 9_900) == pytest.approx(math.erfc((z - 1 / math.sqrt(20_000)) / math.sqrt(2)), rel=1e-3)


def test_an_interval_holds_its_rate() -> None:
    for n in range(1, 60):
        for rate in (0.0, 0.5, 1.0):
            found = wilson(rate * n, n)
            assert 0 <= found.low <= found.rate <= found.high <= 1


def test_win_rate_counts_ties_half_and_its_interval_is_that_of_the_binomial() -> None:
    outcomes = [1.0] * 130 + [0.0] * 70
    found = win_rate(outcomes)
    error = 1.96 * math.sqrt(0.65 * 0.35 / 200)
    assert found.rate == 0.65 and found.n == 200
    assert (found.low, found.high) == pytest.approx((0.65 - error, 0.65 + error), abs=0.01)
    assert win_rate([1.0, 0.5, 0.0, 0.5, 1.0]).rate == pytest.approx(0.6)


def test_ties_narrow_the_interval() -> None:
    tied = win_rate([1.0] * 10 + [0.5] * 80 + [0.0] * 10)
    error = 1.96 * math.sqrt(0.05 / 100)  # variance of the outcomes: (10 + 10) / 100 * 0.25
    assert (tied.low, tied.high) == pytest.approx((0.5 - error, 0.5 + error), abs=0.01)


def test_a_bootstrap_agrees_with_one_written_in_plain_python() -> None:
    outcomes = [1.0] * 120 + [0.5] * 60 + [0.0] * 80
    rng = random.Random(1)
    means = sorted(sum(rng.choices(outcomes, k=260)) / 260 for _ in range(20000))
    found = win_rate(torch.tensor(outcomes))
    assert (found.low, found.high) == pytest.approx((means[500], means[-501]), abs=0.01)  # one step is 1/520
    assert found == win_rate(outcomes), "the same outcomes give the same interval"


@pytest.mark.parametrize(("outcome", "low", "high"), [(1.0, 0.8389, 1.0), (0.0, 0.0, 0.1611), (0.5, 0.2993, 0.7007)])
def test_equal_outcomes_do_not_claim_certainty(outcome: float, low: float, high: float) -> None:
    """0 and 20 of 20 are Newcombe's; half of 20 is 0.5 +- z sqrt(n + z^2) / (n + z^2) / 2."""
    assert win_rate([outcome] * 20) == pytest.approx((outcome, low, high, 20), abs=5e-5)


def test_mean_interval_is_students() -> None:
    rng = random.Random(4)
    for n in (2, 3, 8, 400):
        values = [rng.gauss(5, 2) for _ in range(n)]
        theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
        expected = (statistics.fmean(values), theirs.low, theirs.high, n)
        assert mean_interval(values) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    alone = mean_interval([3.0])
    assert alone.mean == 3.0 and math.isnan(alone.low) and math.isnan(alone.high)


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 30, 499, 100_000])
def test_students_t_is_scipys(freedom: int) -> None:
    assert t_quantile(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), abs=1e-9)
    for t in (-40.0, -2.0, -1e-8, 0.1, 1.0, 1.96, 6.0):
        assert t_test(t, freedom) == pytest.approx(2 * scipy.stats.t.sf(abs(t), freedom), rel=1e-8)
    assert t_test(0.0, freedom) == 1.0 and t_test(math.inf, freedom) == 0.0


def test_a_bootstrap_of_a_ratio_is_scipys() -> None:
    rng = random.Random(2)
    tokens = [rng.randint(3, 60) for _ in range(250)]
    sums = [n * rng.expovariate(4) for n in tokens]

    def ratio(above, below, axis):  # type: ignore[no-untyped-def]
        return above.sum(axis) / below.sum(axis)

    columns = (numpy.array(sums), numpy.array(tokens))
    theirs = scipy.stats.bootstrap(columns, ratio, paired=True, method="percentile", rng=0).confidence_interval
    found = bootstrap_ratio(sums, tokens)
    assert found.mean == pytest.approx(sum(sums) / sum(tokens), abs=1e-12) and found.n == 250
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=3e-3)
    assert bootstrap_ratio(sums, tokens) == found, "the same values give the same interval"
    alone = bootstrap_ratio([3.0], [6.0])
    assert alone.mean == 0.5 and math.isnan(alone.low)


def test_a_bootstrap_of_few_is_as_wide_as_students_interval() -> None:
    """The plain percentiles of 8 values would be narrower by a fifth."""
    values = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]
    found, student = bootstrap_mean(values), mean_interval(values)
    assert found.high - found.low == pytest.approx(student.high - student.low, rel=0.06)
    assert found.mean == pytest.approx(5.0, abs=1e-12)


def test_many_values_are_resampled_in_parts() -> None:
    values = torch.randn(9000, generator=torch.Generator().manual_seed(1)).double()
    found, student = bootstrap_mean(values), mean_interval(values)
    assert found[:3] == pytest.approx(student[:3], abs=2e-3)


def test_reliability_on_worked_figures() -> None:
    probabilities = [0.51, 0.53, 0.97, 0.99, 1.0, 0.75]
    correct = [1, 0, 1, 1, 0, 1]
    found = reliability(probabilities, correct)
    first, middle, last = found.bins[0], found.bins[5], found.bins[9]
    assert first == pytest.approx((0.5, 0.55, 0.52, 0.5, 2))
    assert middle == pytest.approx((0.75, 0.8, 0.75, 1.0, 1))
    assert last == pytest.approx((0.95, 1.0, (0.97 + 0.99 + 1.0) / 3, 2 / 3, 3))
    assert sum(b.n for b in found.bins) == 6 and math.isnan(found.bins[3].accuracy)
    assert found.ece == pytest.approx((2 * 0.02 + 1 * 0.25 + 3 * (2.96 / 3 - 2 / 3)) / 6, abs=1e-12)


def test_reliability_is_scikit_learns_calibration_curve() -> None:
    rng = random.Random(6)
    probabilities = [0.5 + 0.5 * rng.betavariate(1, 2) for _ in range(500)]
    correct = [int(rng.random() < 0.9 * p) for p in probabilities]
    shares, confidences = calibration_curve(correct, [2 * p - 1 for p in probabilities], n_bins=10)
    found = [b for b in reliability(probabilities, correct).bins if b.n]
    assert [b.accuracy for b in found] == pytest.approx(list(shares), abs=1e-9)
    assert [2 * b.confidence - 1 for b in found] == pytest.approx(list(confidences), abs=1e-9)


def test_a_probability_on_an_edge_belongs_to_the_bin_that_begins_there() -> None:
    for place in range(10):
        found = reliability([round(0.5 + 0.05 * place, 2)], [1])
        assert [b.n for b in found.bins] == [int(i == place) for i in range(10)]


def test_a_calibrated_predictor_has_no_error_and_an_overconfident_one_has_its_excess() -> None:
    assert reliability([0.8] * 10, [1] * 8 + [0] * 2).ece == pytest.approx(0.0, abs=1e-12)
    assert reliability([0.9] * 10, [1] * 6 + [0] * 4).ece == pytest.approx(0.3, abs=1e-12)


def test_pearson_against_the_standard_library() -> None:
    x, y = [1.0, 2.0, 3.0, 5.0, 8.0], [2.0, -1.0, 4.0, 3.0, -7.0]
    assert pearson(x, y) == pytest.approx(statistics.correlation(x, y), abs=1e-12)
    assert pearson(x, [3 - 2 * value for value in x]) == pytest.approx(-1.0, abs=1e-12)
    assert math.isnan(pearson([0.1] * 3, [1.0, 2.0, 3.0])), "0.1 is not exact: its mean may differ from it"


def test_misuse_is_an_error() -> None:
    with pytest.raises(ValueError, match="3 successes in 2 trials"):
        wilson(3, 2)
    with pytest.raises(ValueError, match="3 successes in 2 trials"):
        clopper_pearson(3, 2)
    with pytest.raises(ValueError, match=r"got 0\.7"):
        win_rate([1.0, 0.7])
    with pytest.raises(ValueError, match="at least one number"):
        win_rate([])
    with pytest.raises(ValueError, match=r"\[0.5, 1\], got 0\.4"):
        reliability([0.6, 0.4], [1, 0])
    with pytest.raises(ValueError, match="1 probabilities for 2"):
        reliability([0.6], [1, 0])
    with pytest.raises(ValueError, match="not all 0"):
        bootstrap_ratio([1.0, 2.0], [0.0, 0.0])
    with pytest.raises(ValueError, match="2 values against 1"):
        pearson([1.0, 2.0], [1.0])
