"""Bradley-Terry ratings against scikit-learn's logistic regression, closed forms and the definition."""

import math
import random
from itertools import combinations

import numpy
import pytest
from sklearn.linear_model import LogisticRegression

from lora_rlhf.stats.bradley_terry import bradley_terry_ratings

STRENGTHS = {"base": 0.0, "sft": 0.8, "policy": 1.5, "other": -0.4}


def contests(n: int, seed: int, names: tuple[str, ...] = tuple(STRENGTHS)) -> dict[tuple[str, str], list[float | None]]:
    """Each pair's outcomes over n prompts: the mean of two tosses, so that there are ties."""
    rng = random.Random(seed)
    outcomes: dict[tuple[str, str], list[float | None]] = {}
    for first, second in combinations(names, 2):
        p = 1 / (1 + math.exp(STRENGTHS[second] - STRENGTHS[first]))
        outcomes[first, second] = [(float(rng.random() < p) + float(rng.random() < p)) / 2 for _ in range(n)]
    return outcomes


def test_ratings_are_a_logistic_regression_on_who_plays() -> None:
    """+1 for the first, -1 for the second, no constant; half a win is added to either side of each pair."""
    games = contests(200, seed=1)
    games["base", "other"] = [*[None] * 60, *games["base", "other"][60:]]
    ratings = bradley_terry_ratings(games, "sft")
    names = ["base", "policy", "other"]
    rows, won, weights = [], [], []
    for (first, second), outcomes in games.items():
        row = [float(name == first) - float(name == second) for name in names]
        wins = sum(outcome for outcome in outcomes if outcome is not None) + 0.5
        losses = sum(1 - outcome for outcome in outcomes if outcome is not None) + 0.5
        rows += [row, row]
        won += [1, 0]
        weights += [wins, losses]
    model = LogisticRegression(C=numpy.inf, fit_intercept=False, tol=1e-12, max_iter=10_000)
    model.fit(rows, won, sample_weight=weights)
    assert ratings["sft"] == (0.0, 0.0, 0.0, 600)
    for name, expected in zip(names, model.coef_[0], strict=True):
        assert ratings[name].rating == pytest.approx(expected, abs=1e-5)
    assert [ratings[name].n for name in names] == [540, 600, 540]


def test_two_systems_have_the_log_odds() -> None:
    rating = bradley_terry_ratings({("a", "b"): [1.0] * 29 + [0.0] * 10 + [0.5] * 2}, "b")["a"]
    assert rating.rating == pytest.approx(math.log(30.5 / 11.5), abs=1e-9)
    back = bradley_terry_ratings({("b", "a"): [0.0] * 29 + [1.0] * 10 + [0.5] * 2}, "b")["a"]
    assert back == pytest.approx(rating, abs=1e-9)
    error = 1.96 * math.sqrt(39 / 41 / 41 / 4 + 0)  # of a mean of outcomes near 1/2, as log odds: times 4
    assert 0.5 < (rating.high - rating.low) / (2 * 4 * error) < 2


def test_the_interval_is_that_of_the_bootstrap_over_prompts() -> None:
    """Without ties two systems' log odds have variance 1 / wins + 1 / losses; equal prompts repeated add nothing."""
    single = bradley_terry_ratings({("a", "b"): [1.0] * 240 + [0.0] * 160}, "b")["a"]
    error = math.sqrt(1 / 240 + 1 / 160)
    ends = (single.rating - 1.96 * error, single.rating + 1.96 * error)
    assert (single.low, single.high) == pytest.approx(ends, abs=0.03)
    outcomes = [1.0] * 240 + [0.0] * 160
    chained = bradley_terry_ratings(
        {("a", "b"): outcomes, ("b", "c"): [1 - x for x in outcomes], ("a", "c"): [0.5] * 400}, "b"
    )
    assert chained["a"] == pytest.approx(chained["c"], abs=1e-9), "a and c are the same system under two names"
    assert chained["a"].high - chained["a"].low == pytest.approx(single.high - single.low, rel=0.05)


def test_an_undefeated_system_stays_finite_and_is_not_certain() -> None:
    rating = bradley_terry_ratings({("a", "b"): [1.0] * 20}, "b")["a"]
    assert rating.rating == pytest.approx(math.log(20.5 / 0.5), abs=1e-9)
    error = math.sqrt(1 / 20.5 + 1 / 0.5)  # of log odds
    ends = (rating.rating - 1.959964 * error, rating.rating + 1.959964 * error)
    assert (rating.low, rating.high) == pytest.approx(ends)
    chain = bradley_terry_ratings({("a", "b"): [1.0] * 50, ("b", "c"): [1.0] * 50, ("a", "c"): [1.0] * 50}, "c")
    assert chain["a"].rating > chain["b"].rating > 0 and math.isfinite(chain["a"].high)


def test_what_cannot_be_rated_is_said() -> None:
    with pytest.raises(ValueError, match="c, d to a"):
        bradley_terry_ratings({("a", "b"): [1.0], ("c", "d"): [0.0]}, "a")
    with pytest.raises(ValueError, match="c to a"):
        bradley_terry_ratings({("a", "b"): [1.0, 0.0], ("b", "c"): [None, None]}, "a")
    with pytest.raises(ValueError, match=r"\[1, 2\] prompts"):
        bradley_terry_ratings({("a", "b"): [1.0], ("b", "c"): [1.0, 0.0]}, "a")
