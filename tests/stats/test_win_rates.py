"""Win rates and length control against counts of coin tosses, scikit-learn, SciPy and closed forms."""

import math
import random
from itertools import pairwise

import numpy
import pytest
import scipy.stats
import torch
from sklearn.linear_model import LogisticRegression

from lora_rlhf.stats.differences import paired_mean_difference
from lora_rlhf.stats.intervals import clopper_pearson_interval
from lora_rlhf.stats.win_rates import RIDGE, length_controlled_win_rate, mean_outcome, sign_test_p, win_rate


def draws(seed: int, n: int = 300) -> tuple[list[float], list[float]]:
    """Outcomes that hang on length, and the length differences."""
    rng = random.Random(seed)
    gaps = [rng.gauss(12, 30) for _ in range(n)]
    won = [rng.choices([1.0, 0.5, 0.0], [p := 1 / (1 + math.exp(-0.2 - gap / 25)), 0.3, 1 - p])[0] for gap in gaps]
    return won, gaps


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [(0, 4, 1 / 8), (5, 0, 1 / 16), (6, 0, 1 / 32), (3, 3, 1.0), (0, 0, 1.0), (1, 7, 2 * 9 / 256), (2, 1, 1.0)],
)
def test_sign_test_counts_the_orders_of_a_fair_coin(wins: int, losses: int, p: float) -> None:
    assert sign_test_p(wins, losses) == pytest.approx(p, abs=1e-12)
    assert sign_test_p(wins, losses) == sign_test_p(losses, wins)


def test_the_sign_test_and_the_exact_interval_agree() -> None:
    for n in range(1, 40):
        for wins in range(n + 1):
            low, high = clopper_pearson_interval(wins, n)[1:3]
            assert (sign_test_p(wins, n - wins) < 0.05) == (low > 0.5 or high < 0.5)


def test_the_sign_test_of_many_is_near_the_normal_distributions() -> None:
    z = 200 / math.sqrt(20_000)  # with the correction for continuity, one less
    assert sign_test_p(10_100, 9_900) == pytest.approx(math.erfc((z - 1 / math.sqrt(20_000)) / math.sqrt(2)), rel=1e-3)


def test_win_rate_counts_ties_half_and_its_interval_is_that_of_the_binomial() -> None:
    outcomes = [1.0] * 130 + [0.0] * 70
    interval = mean_outcome(outcomes)
    error = 1.96 * math.sqrt(0.65 * 0.35 / 200)
    assert interval.rate == 0.65 and interval.n == 200
    assert (interval.low, interval.high) == pytest.approx((0.65 - error, 0.65 + error), abs=0.01)
    assert mean_outcome([1.0, 0.5, 0.0, 0.5, 1.0]).rate == pytest.approx(0.6)


def test_ties_narrow_the_interval() -> None:
    tied = mean_outcome([1.0] * 10 + [0.5] * 80 + [0.0] * 10)
    error = 1.96 * math.sqrt(0.05 / 100)  # variance of the outcomes: (10 + 10) / 100 * 0.25
    assert (tied.low, tied.high) == pytest.approx((0.5 - error, 0.5 + error), abs=0.01)


def test_a_bootstrap_agrees_with_one_written_in_plain_python() -> None:
    outcomes = [1.0] * 120 + [0.5] * 60 + [0.0] * 80
    rng = random.Random(1)
    means = sorted(sum(rng.choices(outcomes, k=260)) / 260 for _ in range(20000))
    interval = mean_outcome(torch.tensor(outcomes))
    assert (interval.low, interval.high) == pytest.approx((means[500], means[-501]), abs=0.01)  # one step is 1/520
    assert interval == mean_outcome(outcomes), "the same outcomes give the same interval"


@pytest.mark.parametrize(("outcome", "low", "high"), [(1.0, 0.8389, 1.0), (0.0, 0.0, 0.1611), (0.5, 0.2993, 0.7007)])
def test_equal_outcomes_do_not_claim_certainty(outcome: float, low: float, high: float) -> None:
    """0 and 20 of 20 are Newcombe's; half of 20 is 0.5 +- z sqrt(n + z^2) / (n + z^2) / 2."""
    assert mean_outcome([outcome] * 20) == pytest.approx((outcome, low, high, 20), abs=5e-5)


@pytest.mark.parametrize(("wins", "ties", "losses"), [(30, 10, 12), (4, 25, 0), (0, 3, 9), (1, 0, 0), (130, 1, 70)])
def test_the_interval_contains_the_exact_one_of_untied_prompts(wins: int, ties: int, losses: int) -> None:
    rate = win_rate([1.0] * wins + [0.5] * ties + [0.0] * losses)
    exact = scipy.stats.binomtest(wins, wins + losses)
    assert rate.p == pytest.approx(exact.pvalue, abs=1e-9)
    assert rate.rate == pytest.approx((wins + ties / 2) / (wins + ties + losses), abs=1e-12)
    assert rate[3:7] == (wins + ties + losses, wins, ties, losses) and rate.failed == 0
    ends = [(ties / 2 + (wins + losses) * end) / rate.n for end in exact.proportion_ci(0.95, "exact")]
    assert rate.low is not None and rate.high is not None
    assert rate.low <= ends[0] + 1e-9 and rate.high >= ends[1] - 1e-9
    assert (rate.low > 0.5 or rate.high < 0.5) == (exact.pvalue < 0.05)


def test_ties_alone_leave_as_much_open_as_untied_prompts_may_be_rare() -> None:
    """The rate at which none in 320 comes in 2.5 % of cases: 1 - 0.025 ** (1 / 320)."""
    rate = win_rate([0.5] * 320)
    rarest = 1 - 0.025 ** (1 / 320)
    assert rate.rate == 0.5 and rate.p == 1.0
    assert (rate.low, rate.high) == pytest.approx((0.5 - rarest / 2, 0.5 + rarest / 2), abs=1e-9)


def test_what_the_judge_could_not_tell_is_left_out_and_counted() -> None:
    with_failures = win_rate([1.0, None, 0.0, 0.5, None, 1.0])
    assert with_failures == win_rate([1.0, 0.0, 0.5, 1.0])._replace(failed=2)
    assert win_rate([None, None]) == (None, None, None, 0, 0, 0, 0, None, 2)
    with pytest.raises(ValueError, match=r"got 0\.25"):
        win_rate([0.25])


def test_other_outcomes_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"got 0\.7"):
        mean_outcome([1.0, 0.7])
    with pytest.raises(ValueError, match="at least one number"):
        mean_outcome([])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_length_control_is_scikit_learns_logistic_regression_read_at_equal_lengths(seed: int) -> None:
    """Ties enter it as half a win and half a loss: each prompt is two weighted rows."""
    won, gaps = draws(seed)
    controlled = length_controlled_win_rate(won, gaps)
    shift = numpy.tanh(numpy.array(gaps) / numpy.std(gaps))
    rows = numpy.column_stack([numpy.ones(600), numpy.r_[shift, shift]])  # the constant's ridge is the slope's
    model = LogisticRegression(C=1 / RIDGE, fit_intercept=False, tol=1e-12, max_iter=10_000)
    model.fit(rows, [1] * 300 + [0] * 300, sample_weight=[*won, *(1 - outcome for outcome in won)])
    constant, slope = model.coef_[0]
    assert controlled.rate == pytest.approx(1 / (1 + math.exp(-constant)), abs=1e-6)
    assert controlled.length_effect == pytest.approx(slope, abs=1e-5)
    assert slope > 0.5, "length helps here, or this shows little"


def test_length_control_takes_a_win_that_is_only_length_away() -> None:
    """The first is longer on most prompts, and only length decides: 0.5 where both are equally long."""
    rng = random.Random(5)
    gaps = [rng.choice([30.0, 40.0, 30.0, -30.0]) for _ in range(400)]
    won = [float(rng.random() < (0.9 if gap > 0 else 0.1)) for gap in gaps]
    plain, controlled = win_rate(won), length_controlled_win_rate(won, gaps)
    assert plain.low is not None and plain.low > 0.6
    assert controlled.low is not None and controlled.high is not None and controlled.low < 0.5 < controlled.high < 0.64
    assert length_controlled_win_rate(won, [-gap for gap in gaps]).rate == pytest.approx(controlled.rate, abs=1e-9)
    lost = [1 - outcome for outcome in won]
    assert length_controlled_win_rate(lost, gaps).rate == pytest.approx(1 - (controlled.rate or 0), abs=1e-9)


def test_the_interval_of_length_control_is_that_of_the_regression() -> None:
    """Near the sandwich estimate's: se of the constant from scores and information, in closed form."""
    won, gaps = draws(7, n=2000)
    controlled = length_controlled_win_rate(won, gaps)
    shift = numpy.tanh(numpy.array(gaps) / numpy.std(gaps))
    inputs = numpy.column_stack([numpy.ones(2000), shift])
    assert controlled.rate is not None and controlled.length_effect is not None
    constant = math.log(controlled.rate / (1 - controlled.rate))
    likely = 1 / (1 + numpy.exp(-constant - controlled.length_effect * shift))
    bread = numpy.linalg.inv(inputs.T @ (inputs * (likely * (1 - likely))[:, None]))
    scores = inputs * (numpy.array(won) - likely)[:, None]
    error = math.sqrt((bread @ scores.T @ scores @ bread)[0, 0])
    ends = [1 / (1 + math.exp(-constant - sign * 1.96 * error)) for sign in (-1, 1)]
    assert (controlled.low, controlled.high) == pytest.approx(ends, abs=0.004)


def test_length_control_where_little_can_be_told() -> None:
    same = [1.0, 1.0, 0.0, 0.5]
    plain = win_rate(same)
    assert length_controlled_win_rate(same, [0.0] * 4) == (plain.rate, plain.low, plain.high, 4, 0.0)
    assert length_controlled_win_rate(same, [9.0] * 4) == (None, None, None, 4, None), (
        "longer by 9 everywhere: which was it?"
    )
    assert length_controlled_win_rate([None], [1.0]) == (None, None, None, 0, None)
    assert length_controlled_win_rate([1.0, None, 0.0, 1.0], [1.0, 50.0, 2.0, 3.0]) == length_controlled_win_rate(
        [1.0, 0.0, 1.0], [1.0, 2.0, 3.0]
    )
    decided = length_controlled_win_rate([1.0] * 10 + [0.0] * 10, [5.0] * 10 + [-5.0] * 10)
    assert decided.rate == pytest.approx(0.5, abs=1e-9) and (decided.length_effect or 0) > 5
    won = length_controlled_win_rate([1.0] * 12, [float(i) for i in range(12)])
    assert (won.rate, won.low, won.high) == pytest.approx((1.0, 0.025 ** (1 / 12), 1.0), abs=1e-9)
    with pytest.raises(ValueError, match="2 outcomes, 1 length"):
        length_controlled_win_rate([1.0, 0.0], [1.0])


def test_more_prompts_narrow_every_interval() -> None:
    widths = []
    for n in (40, 160, 640):
        won, gaps = draws(11, n)
        parts = (win_rate(won), length_controlled_win_rate(won, gaps), paired_mean_difference(won, [0.5] * n))
        widths.append([float(part[2] or 0) - float(part[1] or 0) for part in parts])
    assert all(torch.tensor(a).gt(1.5 * torch.tensor(b)).all() for a, b in pairwise(widths))
