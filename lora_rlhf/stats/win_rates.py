"""How often one system beats another, with 95 % intervals: win rates, and win rates at equal length.

Both systems answer the same prompts, so every comparison is paired: the difficulty of a prompt cancels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy import special
from torch import Tensor

from lora_rlhf.stats.intervals import (
    NUM_RESAMPLES,
    RESAMPLING_SEED,
    Interval,
    Numbers,
    bootstrap_statistic,
    clopper_pearson_interval,
    percentile_interval,
    to_float64,
    wilson_interval,
)
from lora_rlhf.stats.newton import FIT_RESAMPLES, solve_newton

Outcomes = Sequence[float | None]  # 1 the first system wins, 0.5 a tie, 0 it loses, None: the judge gave no verdict

RIDGE = 1e-2  # of the logistic regression; n outcomes weigh up to n / 4, so it decides only where nothing else does


class WinRate(NamedTuple):
    """A win rate over `n` prompts, ties counted half, with its interval; `p` of the sign test over untied prompts.

    `failed` outcomes, without a verdict, are left out. Rate, ends and p are None if no outcome is left.
    """

    rate: float | None
    low: float | None
    high: float | None
    n: int
    wins: int
    ties: int
    losses: int
    p: float | None
    failed: int


class LengthControlled(NamedTuple):
    """The win rate that answers of equal length would have, with its interval, over `n` prompts.

    `length_effect`: log odds of a win that come with being longer (per unit of tanh). Rate, ends and effect are None if
    they cannot be estimated: there are no outcomes, or one system is longer by the same amount on every prompt.
    """

    rate: float | None
    low: float | None
    high: float | None
    n: int
    length_effect: float | None


def win_rate(outcomes: Outcomes) -> WinRate:
    """The win rate of paired outcomes, with an interval and the exact sign test (McNemar's, where there are ties).

    The interval is the wider, at either end, of two: the bootstrap over prompts, and the exact interval
    (Clopper-Pearson) of the share of wins among the untied prompts, with the ties at half. The bootstrap says how far
    the number of ties itself is a matter of chance, but is too narrow for few untied prompts (of 4 losses in 29
    prompts it ends below 50 %). The exact interval lies on one side of 50 % just where p is below 0.05.
    Where all prompts are ties, the interval is as wide as the share of untied ones may be (Clopper-Pearson again, for
    0 of n). ValueError for another outcome than 1, 0.5, 0 and None.
    """
    verdicts = [outcome for outcome in outcomes if outcome is not None]
    failed = len(outcomes) - len(verdicts)
    if not verdicts:
        return WinRate(None, None, None, 0, 0, 0, 0, None, failed)
    rate, low, high, n = mean_outcome(verdicts)
    wins, ties, losses = (verdicts.count(outcome) for outcome in (1.0, 0.5, 0.0))
    if num_untied := wins + losses:
        exact_interval = clopper_pearson_interval(wins, num_untied)
        low = min(low, (ties / 2 + num_untied * exact_interval.low) / n)
        high = max(high, (ties / 2 + num_untied * exact_interval.high) / n)
    else:  # unknown is only how rare untied prompts are, and who would win them
        margin = clopper_pearson_interval(0, len(verdicts)).high / 2
        low, high = 0.5 - margin, 0.5 + margin
    return WinRate(rate, low, high, len(verdicts), wins, ties, losses, sign_test_p(wins, losses), failed)


def sign_test_p(wins: int, losses: int) -> float:
    """The exact two-sided p-value of wins and losses that are equally likely (the sign test, McNemar's exact test)."""
    return min(1.0, 2.0 * float(special.bdtr(min(wins, losses), wins + losses, 0.5)))


def mean_outcome(outcomes: Numbers) -> Interval:
    """The mean of paired outcomes (n,): 1 a win, 0.5 a tie, 0 a loss.

    The interval is the bootstrap over the outcomes (Efron 1979), which gives ties their smaller variance; it is
    Wilson's if all outcomes are equal, as resampling them would claim certainty.
    """
    outcomes = to_float64(outcomes)
    if invalid_outcomes := sorted(set(outcomes.tolist()) - {0.0, 0.5, 1.0}):
        raise ValueError(f"an outcome is 0, 0.5 or 1, got {invalid_outcomes[0]}")
    n = len(outcomes)
    if outcomes.min() == outcomes.max():
        return wilson_interval(outcomes.sum().item(), n)
    wins, ties = (int((outcomes == outcome).sum()) for outcome in (1.0, 0.5))
    # A resample of three values is three counts, which are drawn at once: no need to draw every outcome.
    generator = torch.Generator().manual_seed(RESAMPLING_SEED)
    resampled_wins = _draw_binomial(torch.full((NUM_RESAMPLES,), float(n)), wins / n, generator)
    resampled_ties = _draw_binomial(n - resampled_wins, ties / (n - wins), generator)
    return Interval(
        outcomes.mean().item(), *percentile_interval((resampled_wins + resampled_ties / 2).double() / n, n), n
    )


def _draw_binomial(trials: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Draws the number of successes for each number of trials."""
    return torch.binomial(trials, torch.full_like(trials, rate), generator=generator)


def length_controlled_win_rate(outcomes: Outcomes, length_differences: Sequence[float]) -> LengthControlled:
    """The win rate as if both answers were equally long (length-controlled AlpacaEval, arXiv 2404.04475, section 3).

    length_differences (n,): the first's length less the second's, in any one unit. A logistic regression of the outcome
    on a constant and tanh(difference / standard deviation of the differences) is read at difference 0; a tie is half a
    win and half a loss. The paper's third term, the difficulty of an instruction, needs many systems to fit and is left
    out. The interval is the bootstrap over prompts, with the lengths' standard deviation fixed. A slight ridge keeps
    the fit finite where length alone decides.
    """
    if len(outcomes) != len(length_differences):
        raise ValueError(f"{len(outcomes)} outcomes, {len(length_differences)} length differences")
    pairs = zip(outcomes, length_differences, strict=True)
    rows = [(outcome, float(gap)) for outcome, gap in pairs if outcome is not None]
    if not rows:
        return LengthControlled(None, None, None, 0, None)
    win_shares, gaps = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    n, plain_win_rate = len(rows), win_rate(win_shares.tolist())
    has_equal_gaps = bool((gaps == gaps[0]).all())
    if has_equal_gaps and gaps[0]:
        return LengthControlled(None, None, None, n, None)
    if has_equal_gaps or bool((win_shares == win_shares[0]).all()):
        # the outcomes do not depend on length, in no resample either
        return LengthControlled(plain_win_rate.rate, plain_win_rate.low, plain_win_rate.high, n, 0.0)
    scaled_gaps = torch.tanh(gaps / gaps.std(correction=0))
    coefficients = _fit_logistic(
        win_shares, scaled_gaps, torch.ones(1, n, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    )
    rates = bootstrap_statistic(
        n, lambda counts: _fit_logistic(win_shares, scaled_gaps, counts, coefficients)[:, 0].sigmoid(), FIT_RESAMPLES
    )
    constant, slope = coefficients[0].tolist()
    return LengthControlled(1 / (1 + math.exp(-constant)), *percentile_interval(rates, n), n, slope)


def _fit_logistic(outcomes: Tensor, scaled_gaps: Tensor, counts: Tensor, start: Tensor) -> Tensor:
    """Constant and slope (b, 2) of the logistic regression of outcomes (n,) on scaled_gaps (n,), for counts (b, n).

    It starts from `start` (1, 2), and is fitted on the log-likelihood less RIDGE / 2 of the squared coefficients.
    """
    inputs = torch.stack([torch.ones_like(scaled_gaps), scaled_gaps], dim=1)  # (n, 2)
    products = torch.stack([inputs[:, 0], scaled_gaps, scaled_gaps * scaled_gaps], dim=1)
    target = (counts * outcomes) @ inputs

    def step(coefficients: Tensor) -> Tensor:
        win_probabilities = torch.sigmoid(coefficients @ inputs.T)
        expected_wins = counts * win_probabilities
        slope = target - expected_wins @ inputs - RIDGE * coefficients
        # the information is [[a, b], [b, c]]
        a, b, c = ((expected_wins - expected_wins * win_probabilities) @ products).unbind(1)
        a, c = a + RIDGE, c + RIDGE
        solution = torch.stack([c * slope[:, 0] - b * slope[:, 1], a * slope[:, 1] - b * slope[:, 0]], dim=1)
        return solution / (a * c - b * b).unsqueeze(1)

    return solve_newton(start.expand(len(counts), 2), step)
