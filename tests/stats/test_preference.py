"""Win rates, length control and paired differences against scikit-learn, SciPy and closed forms."""

import math
import random
from itertools import pairwise

import numpy
import pytest
import scipy.stats
import torch
from sklearn.linear_model import LogisticRegression

from lora_rlhf.stats.preference import (
    RIDGE,
    by_category,
    length_controlled,
    paired_means,
    paired_rates,
    paired_ratios,
    preference,
    share,
)


def draws(seed: int, n: int = 300) -> tuple[list[float], list[float]]:
    """Outcomes that hang on length, and the length differences."""
    rng = random.Random(seed)
    gaps = [rng.gauss(12, 30) for _ in range(n)]
    won = [rng.choices([1.0, 0.5, 0.0], [p := 1 / (1 + math.exp(-0.2 - gap / 25)), 0.3, 1 - p])[0] for gap in gaps]
    return won, gaps


def test_ties_alone_leave_as_much_open_as_untied_prompts_may_be_rare() -> None:
    found = preference([0.5] * 320)
    rarest = scipy.stats.binomtest(0, 320).proportion_ci(0.95, "exact").high
    assert found.rate == 0.5 and found.p == 1.0
    assert (found.low, found.high) == pytest.approx((0.5 - rarest / 2, 0.5 + rarest / 2), abs=1e-9)


@pytest.mark.parametrize(("wins", "ties", "losses"), [(30, 10, 12), (4, 25, 0), (0, 3, 9), (1, 0, 0), (130, 1, 70)])
def test_the_sign_test_is_scipys_binomial_test_and_the_interval_holds_its_exact_one(
    wins: int, ties: int, losses: int
) -> None:
    found = preference([1.0] * wins + [0.5] * ties + [0.0] * losses)
    exact = scipy.stats.binomtest(wins, wins + losses)
    assert found.p == pytest.approx(exact.pvalue, abs=1e-9)
    assert found.rate == pytest.approx((wins + ties / 2) / (wins + ties + losses), abs=1e-12)
    assert found[3:7] == (wins + ties + losses, wins, ties, losses) and found.failed == 0
    ends = [(ties / 2 + (wins + losses) * end) / found.n for end in exact.proportion_ci(0.95, "exact")]
    assert found.low is not None and found.high is not None
    assert found.low <= ends[0] + 1e-9 and found.high >= ends[1] - 1e-9
    assert (found.low > 0.5 or found.high < 0.5) == (exact.pvalue < 0.05)


def test_what_the_judge_could_not_tell_is_left_out_and_counted() -> None:
    some = preference([1.0, None, 0.0, 0.5, None, 1.0])
    assert some == preference([1.0, 0.0, 0.5, 1.0])._replace(failed=2)
    assert preference([None, None]) == (None, None, None, 0, 0, 0, 0, None, 2)
    with pytest.raises(ValueError, match=r"got 0\.25"):
        preference([0.25])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_length_control_is_scikit_learns_logistic_regression_read_at_equal_lengths(seed: int) -> None:
    """Ties enter it as half a win and half a loss: each prompt is two weighted rows."""
    won, gaps = draws(seed)
    found = length_controlled(won, gaps)
    shift = numpy.tanh(numpy.array(gaps) / numpy.std(gaps))
    rows = numpy.column_stack([numpy.ones(600), numpy.r_[shift, shift]])  # the constant's ridge is the slope's
    model = LogisticRegression(C=1 / RIDGE, fit_intercept=False, tol=1e-12, max_iter=10_000)
    model.fit(rows, [1] * 300 + [0] * 300, sample_weight=[*won, *(1 - one for one in won)])
    constant, slope = model.coef_[0]
    assert found.rate == pytest.approx(1 / (1 + math.exp(-constant)), abs=1e-6)
    assert found.length_effect == pytest.approx(slope, abs=1e-5)
    assert slope > 0.5, "length helps here, or this shows little"


def test_length_control_takes_a_win_that_is_only_length_away() -> None:
    """The first is longer on most prompts, and only length decides: 0.5 where both are equally long."""
    rng = random.Random(5)
    gaps = [rng.choice([30.0, 40.0, 30.0, -30.0]) for _ in range(400)]
    won = [float(rng.random() < (0.9 if gap > 0 else 0.1)) for gap in gaps]
    plain, found = preference(won), length_controlled(won, gaps)
    assert plain.low is not None and plain.low > 0.6
    assert found.low is not None and found.high is not None and found.low < 0.5 < found.high < 0.64
    assert length_controlled(won, [-gap for gap in gaps]).rate == pytest.approx(found.rate, abs=1e-9)
    assert length_controlled([1 - one for one in won], gaps).rate == pytest.approx(1 - (found.rate or 0), abs=1e-9)


def test_the_interval_of_length_control_is_that_of_the_regression() -> None:
    """Near the sandwich estimate's: se of the constant from scores and information, in closed form."""
    won, gaps = draws(7, n=2000)
    found = length_controlled(won, gaps)
    shift = numpy.tanh(numpy.array(gaps) / numpy.std(gaps))
    inputs = numpy.column_stack([numpy.ones(2000), shift])
    assert found.rate is not None and found.length_effect is not None
    constant = math.log(found.rate / (1 - found.rate))
    likely = 1 / (1 + numpy.exp(-constant - found.length_effect * shift))
    bread = numpy.linalg.inv(inputs.T @ (inputs * (likely * (1 - likely))[:, None]))
    scores = inputs * (numpy.array(won) - likely)[:, None]
    error = math.sqrt((bread @ scores.T @ scores @ bread)[0, 0])
    ends = [1 / (1 + math.exp(-constant - sign * 1.96 * error)) for sign in (-1, 1)]
    assert (found.low, found.high) == pytest.approx(ends, abs=0.004)


def test_length_control_where_little_can_be_told() -> None:
    same = [1.0, 1.0, 0.0, 0.5]
    plain = preference(same)
    assert length_controlled(same, [0.0] * 4) == (plain.rate, plain.low, plain.high, 4, 0.0)
    assert length_controlled(same, [9.0] * 4) == (None, None, None, 4, None), "longer by 9 everywhere: which was it?"
    assert length_controlled([None], [1.0]) == (None, None, None, 0, None)
    assert length_controlled([1.0, None, 0.0, 1.0], [1.0, 50.0, 2.0, 3.0]) == length_controlled(
        [1.0, 0.0, 1.0], [1.0, 2.0, 3.0]
    )
    decided = length_controlled([1.0] * 10 + [0.0] * 10, [5.0] * 10 + [-5.0] * 10)
    assert decided.rate == pytest.approx(0.5, abs=1e-9) and (decided.length_effect or 0) > 5
    won = length_controlled([1.0] * 12, [float(i) for i in range(12)])
    assert (won.rate, won.low, won.high) == pytest.approx((1.0, 0.025 ** (1 / 12), 1.0), abs=1e-9)
    with pytest.raises(ValueError, match="2 outcomes, 1 length"):
        length_controlled([1.0, 0.0], [1.0])


def test_paired_means_are_scipys_paired_t_test() -> None:
    rng = random.Random(3)
    for n in (2, 5, 40, 300):
        one = [rng.expovariate(1) for _ in range(n)]
        other = [value + rng.gauss(0.2, 0.5) for value in one]
        found, theirs = paired_means(one, other), scipy.stats.ttest_rel(one, other)
        interval = theirs.confidence_interval(0.95)
        assert found.p == pytest.approx(theirs.pvalue, rel=1e-7)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-7)
        assert found.difference == pytest.approx(sum(one) / n - sum(other) / n, abs=1e-9) and found.n == n
    assert paired_means([1.0, None, 3.0, 5.0], [0.0, 1.0, None, 1.0]) == paired_means([1.0, 5.0], [0.0, 1.0])
    assert paired_means([2.0, 2.0], [2.0, 2.0])[:4] == (0.0, 0.0, 0.0, 1.0)
    assert paired_means([3.0, 3.0], [2.0, 2.0]).p == 0.0
    assert math.isnan(paired_means([1.0], [0.0]).p) and paired_means([], []).n == 0


def test_paired_rates_are_mcnemars_exact_test_and_turn_with_the_sides() -> None:
    flags = [True] * 14 + [False] * 5 + [True] * 30 + [False] * 40
    other = [False] * 14 + [True] * 5 + [True] * 30 + [False] * 40
    found = paired_rates(flags, other)
    assert found.difference == pytest.approx((14 - 5) / 89, abs=1e-12)
    assert found.p == pytest.approx(scipy.stats.binomtest(5, 19).pvalue, abs=1e-9) and found.n == 89
    back = paired_rates(other, flags)
    assert (back.difference, back.p) == pytest.approx((-found.difference, found.p), abs=1e-12)
    error = 1.96 * math.sqrt((19 / 89 - (9 / 89) ** 2) / 89)  # of a difference of paired shares, for many prompts
    assert (found.low, found.high) == pytest.approx((9 / 89 - error, 9 / 89 + error), abs=0.05)
    assert paired_rates([True, None], [False, True]) == paired_rates([True], [False])
    assert math.isnan(paired_rates([None], [True]).difference)


def test_paired_ratios_are_scipys_bootstrap_of_the_difference() -> None:
    rng = random.Random(9)
    tokens = [rng.randint(3, 60) for _ in range(150)]
    sums = [n * rng.expovariate(4) for n in tokens]
    others = [rng.randint(3, 60) for _ in range(150)]
    other_sums = [n * rng.expovariate(5) for n in others]
    found = paired_ratios(sums, tokens, other_sums, others)
    assert found.difference == pytest.approx(sum(sums) / sum(tokens) - sum(other_sums) / sum(others), abs=1e-12)

    def ratio(a, b, c, d, axis):  # type: ignore[no-untyped-def]
        return a.sum(axis) / b.sum(axis) - c.sum(axis) / d.sum(axis)

    columns = tuple(map(numpy.array, (sums, tokens, other_sums, others)))
    theirs = scipy.stats.bootstrap(columns, ratio, paired=True, method="percentile", rng=0)
    ends = theirs.confidence_interval
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=3e-3)
    assert found.p == pytest.approx(2 * (theirs.bootstrap_distribution <= 0).mean(), abs=0.03)  # p's own error is 0.01
    same = paired_ratios(sums, tokens, sums, tokens)
    assert same[:4] == (0.0, 0.0, 0.0, 1.0)
    far = paired_ratios([10.0 * n for n in tokens], tokens, other_sums, others)
    assert far.p == pytest.approx(2 / 4001, abs=1e-9)
    assert math.isnan(paired_ratios([1.0], [0.0], [1.0], [2.0]).difference)
    assert math.isnan(paired_ratios([1.0], [2.0], [1.0], [2.0]).low)


def test_a_share_is_wilsons_and_categories_come_largest_first() -> None:
    found = share([True, False, None, True, True])
    theirs = scipy.stats.binomtest(3, 4).proportion_ci(0.95, "wilson")
    assert found is not None and found == pytest.approx((0.75, theirs.low, theirs.high, 4), abs=1e-9)
    assert share([None]) is None
    assert list(by_category(["b", "c", "a", "c", "b"]).items()) == [("b", [0, 4]), ("c", [1, 3]), ("a", [2])]


def test_more_prompts_narrow_every_interval() -> None:
    widths = []
    for n in (40, 160, 640):
        won, gaps = draws(11, n)
        parts = (preference(won), length_controlled(won, gaps), paired_means(won, [0.5] * n))
        widths.append([float(part[2] or 0) - float(part[1] or 0) for part in parts])
    assert all(torch.tensor(a).gt(1.5 * torch.tensor(b)).all() for a, b in pairwise(widths))


def test_flags_that_never_differ_differ_by_no_more_than_the_exact_bound() -> None:
    """The rate at which none in 28 comes in 2.5 % of cases: 1 - 0.025 ** (1 / 28)."""
    found = paired_rates([True] * 5 + [False] * 23, [True] * 5 + [False] * 23)
    assert (found.difference, found.p, found.n) == (0.0, 1.0, 28)
    most = 1 - 0.025 ** (1 / 28)
    assert (found.low, found.high) == pytest.approx((-most, most), abs=1e-9)
