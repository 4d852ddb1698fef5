"""Repeats, collapse and partial correlation: by hand, and against least squares of NumPy."""

import math
import random

import numpy as np
import pytest

from lora_rlhf.probes.measures import (
    GradedResponses,
    fractional_ranks,
    is_collapsed,
    partial_correlation,
    repeated_share,
)


@pytest.mark.parametrize(
    ("text", "words", "fresh"),
    [
        ("", 0, 0),
        ("The fox lives in the barn.", 6, 6),
        ("Brown. Brown. Brown.", 3, 1),
        ("It is big. The fox is red. It is big.", 10, 7),
        ("It goes round and round and round it goes.", 9, 9),
        ("we go up the hill and we go up the stairs", 11, 10),  # "the" ends what stood there before
        ("a b c d e a b c d e", 10, 8),
    ],
)
def test_the_repeated_share_is_that_of_words_that_stood_there_before(text: str, words: int, fresh: int) -> None:
    assert repeated_share(text) == pytest.approx((words - fresh) / max(1, words))


def test_an_answer_counts_as_collapsed_if_another_prompt_got_it_or_it_opens_like_most() -> None:
    answers = ["I love a good cat.", "I love a good dog!", "Yes.", "yes", "No, never, not at all.", "What?"]
    assert is_collapsed(answers) == [True, True, True, True, False, False]
    assert is_collapsed(["One.", "Two.", "Three."]) == [False] * 3
    assert is_collapsed([]) == []


def test_equal_values_share_their_mean_rank() -> None:
    assert fractional_ranks([3.0, 1.0, 2.0, 2.0, 9.0]) == [0.75, 0.0, 0.375, 0.375, 1.0]
    assert fractional_ranks([5.0]) == [0.0]


def simulated(groups: int, taste: float, paid: float, seed: int) -> list[GradedResponses]:
    """Answers whose reward is their quality, plus `taste` for log length; the quality pays `paid` for it too."""
    rng = random.Random(seed)
    responses = []
    for _ in range(groups):
        level = rng.gauss(0, 3)  # some prompts ask for long answers, and their rewards are all higher
        lengths = [float(round(math.exp(rng.gauss(3, 0.5)))) for _ in range(4)]
        quality = [rng.gauss(0, 1) + paid * math.log1p(length) for length in lengths]
        rewards = [level + q + taste * math.log1p(n) + rng.gauss(0, 0.5) for q, n in zip(quality, lengths, strict=True)]
        responses.append(GradedResponses(rewards, lengths, quality))
    return responses


def residuals(values: np.ndarray, control: np.ndarray) -> np.ndarray:
    slope = np.linalg.lstsq(control[:, None], values, rcond=None)[0]
    return np.asarray(values - control * slope)


@pytest.mark.parametrize("seed", range(3))
def test_the_partial_correlation_is_that_of_the_residuals_within_prompts(seed: int) -> None:
    groups = simulated(40, taste=0.7, paid=0.4, seed=seed)
    columns = [[np.asarray(g.rewards), np.log1p(g.lengths), np.asarray(g.qualities)] for g in groups]
    reward, length, quality = (np.concatenate([row[i] - row[i].mean() for row in columns]) for i in range(3))
    expected = np.corrcoef(residuals(reward, quality), residuals(length, quality))[0, 1]
    correlation = partial_correlation(groups)
    assert correlation.mean == pytest.approx(expected, abs=1e-12) and correlation.n == 40
    assert correlation.low < correlation.mean < correlation.high


def test_what_the_judge_pays_for_length_too_is_no_bias() -> None:
    fair = partial_correlation(simulated(200, taste=0.0, paid=2.0, seed=0))
    assert abs(fair.mean) < 0.1 and fair.low < 0 < fair.high
    assert partial_correlation(simulated(200, taste=2.0, paid=0.0, seed=0)).low > 0.7


def test_the_interval_covers_at_the_nominal_rate() -> None:
    truth = 0.5 / math.hypot(0.5, 1)  # of a reward that is half the log length plus unit noise
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        logs = rng.normal(3, 1, (40, 3))
        rewards = 0.5 * logs + rng.normal(0, 1, (40, 3))
        groups = [
            GradedResponses(r, np.expm1(x).tolist(), [0.0] * 3) for r, x in zip(rewards.tolist(), logs, strict=True)
        ]
        correlation = partial_correlation(groups)
        covered += correlation.low < truth < correlation.high
    assert 0.92 < covered / 300 < 0.98


def test_where_nothing_varies_there_is_no_correlation() -> None:
    assert math.isnan(partial_correlation([]).mean)
    assert math.isnan(partial_correlation([GradedResponses([1.0], [2.0], [3.0])]).mean)
    assert math.isnan(partial_correlation([GradedResponses([1.0, 1.0], [2.0, 5.0], [3.0, 4.0])] * 5).mean)
