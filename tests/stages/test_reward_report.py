"""The interval of a reward model's accuracy: never certainty, and no narrower than the prompts allow."""

import math

import pytest
import torch

from lora_rlhf.data.encode import EncodedRanking
from lora_rlhf.stages.reward_report import held_out_report


def accuracy(*right: list[bool]) -> dict[str, float]:
    """Of one prompt per list, with a pair for each of its entries: the winner scores higher where it is True."""
    rankings, scores = [], []
    for pairs in right:
        # the first response beats every other, and those are tied with one another
        count = len(pairs)
        rankings.append(EncodedRanking([1], [[5, place] for place in range(count + 1)], [1] + [2] * count))
        scores.append(torch.tensor([0.0, *(-1.0 if is_right else 1.0 for is_right in pairs)]))
    return held_out_report(rankings, scores)["accuracy"]


def wilson(rate: float, trials: float) -> tuple[float, float]:
    """The rates at which the observed one lies 1.96 standard errors away, by halving."""
    ends = []
    for low, high, sign in ((0.0, rate, 1), (rate, 1.0, -1)):
        for _ in range(60):
            middle = (low + high) / 2
            away = abs(rate - middle) > 1.959964 * math.sqrt(middle * (1 - middle) / trials)
            low, high = (middle, high) if (away and sign == 1) or (not away and sign == -1) else (low, middle)
        ends.append(low)
    return ends[0], ends[1]


def test_13_pairs_that_are_all_right_are_not_certainty() -> None:
    found = accuracy(*[[True]] * 13)
    assert (found["rate"], found["high"], found["n"]) == (1.0, 1.0, 13)
    assert found["low"] == pytest.approx(1 / (1 + 1.959964**2 / 13), abs=1e-6)  # Wilson's, in closed form
    wrong = accuracy(*[[False]] * 13)
    assert (wrong["rate"], wrong["low"]) == (0.0, 0.0)
    assert wrong["high"] == pytest.approx(1 - found["low"], abs=1e-9)


def test_where_all_are_right_the_prompts_are_the_trials() -> None:
    few = accuracy([True] * 6, [True] * 7)
    assert (few["rate"], few["n"]) == (1.0, 13)
    assert few["low"] == pytest.approx(1 / (1 + 1.959964**2 / 2), abs=1e-6)
    assert accuracy([True] * 13)["low"] == pytest.approx(1 / (1 + 1.959964**2), abs=1e-6)


def test_independent_pairs_have_wilsons_interval() -> None:
    found = accuracy(*[[True]] * 70, *[[False]] * 30)
    trials = 99  # the spread is estimated with one prompt less than there are
    assert (found["low"], found["high"]) == pytest.approx(wilson(0.7, trials), abs=1e-6)


def test_pairs_that_stand_and_fall_together_count_as_one() -> None:
    found = accuracy(*[[True] * 5] * 70, *[[False] * 5] * 30)
    assert (found["low"], found["high"]) == pytest.approx(wilson(0.7, 99), abs=1e-6)
    assert found["n"] == 500


def test_no_more_trials_than_pairs() -> None:
    found = accuracy(*[[True, False]] * 20, [True, True], [False, False])
    assert (found["low"], found["high"]) == pytest.approx(wilson(0.5, 44), abs=1e-6)
