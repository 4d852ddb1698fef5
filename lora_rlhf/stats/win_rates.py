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
    as_floats,
    bootstrap,
    clopper_pearson,
    percentile_interval,
    wilson,
)
from lora_rlhf.stats.newton import FIT_RESAMPLES, newton

Outcomes = Sequence[float | None]  # 1 the first system wins, 0.5 a tie, 0 it loses, None: the judge gave no verdict

RIDGE = 1e-2  # of the logistic regression; n outcomes weigh up to n / 4, so it decides only where nothing else does


class WinRate(NamedTuple):
    """A win rate over `n` prompts, ties counted half, with its interval; `p` of the sign test over untied prompts.

    `failed` outcomes, without a verdict, are left out. Rate, ends and p are None where no outcome is left.
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

    `length_effect`: log odds of a win that come with being longer (per unit of tanh). Rate, ends and effect are None
    where the outcomes cannot tell: there are none, or one system is longer by the same amount on every prompt.
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
    if untied := wins + losses:
        exact = clopper_pearson(wins, untied)
        low = min(low, (ties / 2 + untied * exact.low) / n)
        high = max(high, (ties / 2 + untied * exact.high) / n)
    else:  # unknown is only how rare untied prompts are, and who would win them
        margin = clopper_pearson(0, len(verdicts)).high / 2
        low, high = 0.5 - margin, 0.5 + margin
    return WinRate(rate, low, high, len(verdicts), wins, ties, losses, sign_test(wins, losses), failed)


def sign_test(wins: int, losses: int) -> float:
    """The exact two-sided p-value of wins and losses that are equally likely (the sign test, McNemar's exact test)."""
    return min(1.0, 2.0 * float(special.bdtr(min(wins, losses), wins + losses, 0.5)))


def mean_outcome(outcomes: Numbers) -> Interval:
    """The mean of paired outcomes (n,): 1 a win, 0.5 a tie, 0 a loss.

    The interval is the bootstrap over the outcomes (Efron 1979), which gives ties their smaller variance; it is
    Wilson's where all outcomes are equal, as resampling them would claim certainty.
    """
    outcomes = as_floats(outcomes)
    if wrong := sorted(set(outcomes.tolist()) - {0.0, 0.5, 1.0}):
        raise ValueError(f"an outcome is 0, 0.5 or 1, got {wrong[0]}")
    n = len(outcomes)
    if outcomes.min() == outcomes.max():
        return wilson(outcomes.sum().item(), n)
    wins, ties = (int((outcomes == outcome).sum()) for outcome in (1.0, 0.5))
    # A resample of three values is three counts, which are drawn at once: no need to draw every outcome.
    generator = torch.Generator().manual_seed(RESAMPLING_SEED)
    won = _binomial(torch.full((NUM_RESAMPLES,), float(n)), wins / n, generator)
    tied = _binomial(n - won, ties / (n - wins), generator)
    return Interval(outcomes.mean().item(), *percentile_interval((won + tied / 2).double() / n, n), n)


def _binomial(trials: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Successes in each number of trials."""
    return torch.binomial(trials, torch.full_like(trials, rate), generator=generator)


def length_controlled(outcomes: Outcomes, length_differences: Sequence[float]) -> LengthControlled:
    """The win rate as if both answers were equally long (length-controlled AlpacaEval, arXiv 2404.04475, section 3).

    length_differences (n,): the first's length less the second's, in any one unit. A logistic regression of the outcome
    on a constant and tanh(difference / standard deviation of the differences) is read at difference 0; a tie is half a
    win and half a loss. The paper's third term, the difficulty of an instruction, needs many systems to fit and is left
    out. The interval is the bootstrap over prompts, with the lengths' standard deviation fixed. A slight ridge keeps
    the fit finite where length alone decides.
    """
    if len(outcomes) != len(length_differences):
        raise ValueError(f"{len(outcomes)} outcomes, {len(length_differences)} length differences")
    rows = [(won, float(gap)) for won, gap in zip(outcomes, length_differences, strict=True) if won is not None]
    if not rows:
        return LengthControlled(None, None, None, 0, None)
    won, gaps = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    n, plain = len(rows), win_rate(won.tolist())
    equal_gaps = bool((gaps == gaps[0]).all())
    if equal_gaps and gaps[0]:
        return LengthControlled(None, None, None, n, None)
    if equal_gaps or bool((won == won[0]).all()):  # the outcomes do not depend on length, in no resample either
        return LengthControlled(plain.rate, plain.low, plain.high, n, 0.0)
    shift = torch.tanh(gaps / gaps.std(correction=0))
    fit = _logistic(won, shift, torch.ones(1, n, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64))
    rates = bootstrap(n, lambda counts: _logistic(won, shift, counts, fit)[:, 0].sigmoid(), FIT_RESAMPLES)
    constant, slope = fit[0].tolist()
    return LengthControlled(1 / (1 + math.exp(-constant)), *percentile_interval(rates, n), n, slope)


def _logistic(won: Tensor, shift: Tensor, counts: Tensor, start: Tensor) -> Tensor:
    """Constant and slope (b, 2) of the logistic regression of won (n,) on shift (n,), for each of counts (b, n).

    From `start` (1, 2), on the log-likelihood less RIDGE / 2 of the squared coefficients.
    """
    inputs = torch.stack([torch.ones_like(shift), shift], dim=1)  # (n, 2)
    products = torch.stack([inputs[:, 0], shift, shift * shift], dim=1)
    target = (counts * won) @ inputs

    def step(coefficients: Tensor) -> Tensor:
        likely = torch.sigmoid(coefficients @ inputs.T)
        weighted = counts * likely
        slope = target - weighted @ inputs - RIDGE * coefficients
        a, b, c = ((weighted - weighted * likely) @ products).unbind(1)  # the information is [[a, b], [b, c]]
        a, c = a + RIDGE, c + RIDGE
        solved = torch.stack([c * slope[:, 0] - b * slope[:, 1], a * slope[:, 1] - b * slope[:, 0]], dim=1)
        return solved / (a * c - b * b).unsqueeze(1)

    return newton(start.expand(len(counts), 2), step)
