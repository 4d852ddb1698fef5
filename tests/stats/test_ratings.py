"""Bradley-Terry ratings against scikit-learn's logistic regression, closed forms and the definition."""

import math
import random

import numpy
import pytest
from sklearn.linear_model import LogisticRegression

from lora_rlhf.stats.ratings import ratings

STRENGTHS = {"base": 0.0, "sft": 0.8, "policy": 1.5, "other": -0.4}


def contests(n: int, seed: int, names: tuple[str, ...] = tuple(STRENGTHS)) -> dict[tuple[str, str], list[float | None]]:
    """Each pair's outcomes over n prompts: the mean of two tosses, so that there are ties."""
    rng = random.Random(seed)
    found = {}
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            p = 1 / (1 + math.exp(STRENGTHS[other] - STRENGTHS[one]))
            found[one, other] = [(float(rng.random() < p) + float(rng.random() < p)) / 2 for _ in range(n)]
    return found


def test_ratings_are_a_logistic_regression_on_who_plays() -> None:
    """+1 for the one, -1 for the other, no constant; half a win for either side of each pair comes on top."""
    games = contests(200, seed=1)
    games["base", "other"] = [None] * 60 + games["base", "other"][60:]
    found = ratings(games, "sft")
    names = ["base", "policy", "other"]
    rows, won, weights = [], [], []
    for (one, other), outcomes in games.items():
        row = [float(name == one) - float(name == other) for name in names]
        wins = sum(outcome for outcome in outcomes if outcome is not None) + 0.5
        losses = sum(1 - outcome for outcome in outcomes if outcome is not None) + 0.5
        rows += [row, row]
        won += [1, 0]
        weights += [wins, losses]
    model = LogisticRegression(C=numpy.inf, fit_intercept=False, tol=1e-12, max_iter=10_000)
    model.fit(rows, won, sample_weight=weights)
    assert found["sft"] == (0.0, 0.0, 0.0, 600)
    for name, expected in zip(names, model.coef_[0], strict=True):
        assert found[name].rating == pytest.approx(expected, abs=1e-5)
    assert [found[name].n for name in names] == [540, 600, 540]


def test_two_systems_have_the_log_odds() -> None:
    found = ratings({("a", "b"): [1.0] * 29 + [0.0] * 10 + [0.5] * 2}, "b")["a"]
    assert found.rating == pytest.approx(math.log(30.5 / 11.5), abs=1e-9)
    back = ratings({("b", "a"): [0.0] * 29 + [1.0] * 10 + [0.5] * 2}, "b")["a"]
    assert back == pytest.approx(found, abs=1e-9)
    error = 1.96 * math.sqrt(39 / 41 / 41 / 4 + 0)  # of a mean of outcomes near 1/2, as log odds: times 4
    assert 0.5 < (found.high - found.low) / (2 * 4 * error) < 2


def test_the_interval_is_that_of_the_bootstrap_over_prompts() -> None:
    """Without ties two systems' log odds have variance 1 / wins + 1 / losses; equal prompts repeated add nothing."""
    once = ratings({("a", "b"): [1.0] * 240 + [0.0] * 160}, "b")["a"]
    error = math.sqrt(1 / 240 + 1 / 160)
    assert (once.low, once.high) == pytest.approx((once.rating - 1.96 * error, once.rating + 1.96 * error), abs=0.03)
    outcomes = [1.0] * 240 + [0.0] * 160
    chained = ratings({("a", "b"): outcomes, ("b", "c"): [1 - x for x in outcomes], ("a", "c"): [0.5] * 400}, "b")
    assert chained["a"] == pytest.approx(chained["c"], abs=1e-9), "a and c are the same system under two names"
    assert chained["a"].high - chained["a"].low == pytest.approx(once.high - once.low, rel=0.05)


def test_an_undefeated_system_stays_finite_and_is_not_certain() -> None:
    found = ratings({("a", "b"): [1.0] * 20}, "b")["a"]
    assert found.rating == pytest.approx(math.log(20.5 / 0.5), abs=1e-9)
    error = math.sqrt(1 / 20.5 + 1 / 0.5)  # of log odds
    assert (found.low, found.high) == pytest.approx((found.rating - 1.959964 * error, found.rating + 1.959964 * error))
    everything = ratings({("a", "b"): [1.0] * 50, ("b", "c"): [1.0] * 50, ("a", "c"): [1.0] * 50}, "c")
    assert everything["a"].rating > everything["b"].rating > 0 and math.isfinite(everything["a"].high)


def test_what_cannot_be_rated_is_said() -> None:
    with pytest.raises(ValueError, match="c, d to a"):
        ratings({("a", "b"): [1.0], ("c", "d"): [0.0]}, "a")
    with pytest.raises(ValueError, match="c to a"):
        ratings({("a", "b"): [1.0, 0.0], ("b", "c"): [None, None]}, "a")
    with pytest.raises(ValueError, match=r"\[1, 2\] prompts"):
        ratings({("a", "b"): [1.0], ("b", "c"): [1.0, 0.0]}, "a")
