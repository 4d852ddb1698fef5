"""Simulations: over 1,000 samples, each 95 % interval holds the truth in 93 to 97 % of them.

Exact intervals hold it in at least as many by design; for those the lower bound is what matters.
"""

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy
import pytest

from lora_rlhf.stats.bradley_terry import bradley_terry_ratings
from lora_rlhf.stats.differences import paired_mean_difference, paired_rate_difference, paired_ratio_difference
from lora_rlhf.stats.intervals import mean_interval, ratio_interval, wilson_interval
from lora_rlhf.stats.win_rates import length_controlled_win_rate, mean_outcome, win_rate

pytestmark = pytest.mark.slow

TRIALS = 1000
Ends = tuple[float | None, float | None]


def coverage(draw: Callable[[numpy.random.Generator], Ends], truth: float, seed: int = 0) -> float:
    """How often the interval of a sample holds the truth."""
    rng = numpy.random.default_rng(seed)
    covered = 0
    for _ in range(TRIALS):
        low, high = draw(rng)
        assert low is not None and high is not None
        covered += low <= truth <= high
    return covered / TRIALS


def outcomes(rng: numpy.random.Generator, rate: float, ties: float, n: int) -> list[float]:
    """The ties fall out of wins and losses alike, so that the mean stays at rate."""
    wins = rate - ties / 2
    return rng.choice([1.0, 0.5, 0.0], n, p=[wins, ties, 1 - wins - ties]).tolist()


def two_tosses(rng: numpy.random.Generator, p: numpy.ndarray) -> numpy.ndarray:
    """Outcomes of mean p, with ties."""
    return (rng.random((2, *p.shape)) < p).mean(axis=0)


@pytest.mark.parametrize(("rate", "ties", "n"), [(0.55, 0.3, 300), (0.7, 0.1, 200), (0.5, 0.8, 250)])
def test_win_rate_with_ties(rate: float, ties: float, n: int) -> None:
    share = coverage(lambda rng: mean_outcome(outcomes(rng, rate, ties, n))[1:3], rate)
    assert 0.93 <= share <= 0.97


@pytest.mark.parametrize(("rate", "ties", "n"), [(0.55, 0.3, 300), (0.5, 0.6, 20), (0.9, 0.1, 30)])
def test_the_reported_win_rate_is_exact_for_few_prompts_and_so_wider(rate: float, ties: float, n: int) -> None:
    assert coverage(lambda rng: win_rate(outcomes(rng, rate, ties, n))[1:3], rate) >= 0.93


@pytest.mark.parametrize(("skewed", "n"), [(False, 5), (True, 200)])
def test_mean(skewed: bool, n: int) -> None:
    def values(rng: numpy.random.Generator) -> list[float]:
        return (rng.exponential(1.0, n) if skewed else rng.normal(1.0, 3.0, n)).tolist()

    assert 0.93 <= coverage(lambda rng: mean_interval(values(rng))[1:3], 1.0) <= 0.97
    if n > 100:
        assert 0.93 <= coverage(lambda rng: ratio_interval(values(rng), [1.0] * n)[1:3], 1.0) <= 0.97


def test_a_share() -> None:
    assert 0.93 <= coverage(lambda rng: wilson_interval(rng.binomial(300, 0.07), 300)[1:3], 0.07) <= 0.97


@pytest.mark.long
def test_length_controlled_win_rate() -> None:
    """At equal lengths the first wins 45 %; as it is mostly longer, its plain win rate is far above."""
    n, constant, slope = 250, math.log(0.45 / 0.55), 1.2

    def ends(rng: numpy.random.Generator) -> Ends:
        gaps = rng.normal(15, 30, n)
        won = two_tosses(rng, 1 / (1 + numpy.exp(-constant - slope * numpy.tanh(gaps / gaps.std()))))
        return length_controlled_win_rate(won.tolist(), gaps.tolist())[1:3]

    assert 0.93 <= coverage(ends, 0.45) <= 0.97


def test_kl_per_token_over_responses_of_unlike_length() -> None:
    """Longer responses have more KL per token, and all tokens of one share what is particular to it."""

    def parts(rng: numpy.random.Generator, slope: float) -> tuple[Any, Any]:
        tokens = rng.integers(5, 61, 200)
        return tokens * (0.02 + slope * tokens) * rng.gamma(4, 0.25, 200), tokens

    lengths = numpy.arange(5, 61)

    def truth(slope: float) -> float:
        return float((lengths * (0.02 + slope * lengths)).sum() / lengths.sum())

    assert 0.93 <= coverage(lambda rng: ratio_interval(*parts(rng, 1e-3))[1:3], truth(1e-3)) <= 0.97
    difference = truth(1e-3) - truth(5e-4)
    share = coverage(lambda rng: paired_ratio_difference(*parts(rng, 1e-3), *parts(rng, 5e-4))[1:3], difference)
    assert 0.93 <= share <= 0.97


def test_bradley_terry() -> None:
    strengths = {"base": 0.0, "sft": 0.6, "policy": 1.1}
    pairs = [(second, first) for first, second in combinations(strengths, 2)]
    odds = numpy.array([[strengths[a] - strengths[b]] for a, b in pairs])

    def ends(rng: numpy.random.Generator) -> Ends:
        won = two_tosses(rng, numpy.repeat(1 / (1 + numpy.exp(-odds)), 200, axis=1))
        return bradley_terry_ratings(dict(zip(pairs, won.tolist(), strict=True)), "base")["policy"][1:3]

    assert 0.93 <= coverage(ends, 1.1) <= 0.97


def test_paired_differences() -> None:
    def means(rng: numpy.random.Generator) -> Ends:
        prompt = rng.exponential(2.0, 60)
        values, baseline = prompt + rng.normal(0.5, 1, 60), prompt + rng.normal(0.2, 1, 60)
        return paired_mean_difference(values.tolist(), baseline.tolist())[1:3]

    def rates(rng: numpy.random.Generator) -> Ends:
        prompt = rng.random(150)
        return paired_rate_difference(
            (prompt + rng.random(150) < 0.8).tolist(), (prompt + rng.random(150) < 0.5).tolist()
        )[1:3]

    assert 0.93 <= coverage(means, 0.3) <= 0.97
    assert coverage(rates, 0.8**2 / 2 - 0.5**2 / 2) >= 0.93
