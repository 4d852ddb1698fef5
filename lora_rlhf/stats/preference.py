"""Which of two systems is better, and by how much: win rates, paired differences, by category; with 95 % intervals.

Systems answer the same prompts, so every comparison is of pairs: what makes one prompt harder than another cancels.
Every function takes plain sequences, computes in float64 on the CPU and returns plain floats.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lora_rlhf.stats.intervals import (
    Interval,
    bootstrap,
    clopper_pearson,
    mean_interval,
    percentile_interval,
    sign_test,
    t_test,
    wilson,
    win_rate,
)

Outcomes = Sequence[float | None]  # 1 the first wins, 0.5 a tie, 0 it loses, None: the judge could not tell

FIT_RESAMPLES = 1000  # of what is fitted: each takes a fit
RIDGE = 1e-2  # of the logistic regression; n outcomes weigh up to n / 4, so it matters only where nothing else decides
NEWTON_STEPS = 40
LARGEST_STEP = 2.0  # in logits: from far off, Newton's step may be longer than the way
CONVERGED = 1e-9


class WinRate(NamedTuple):
    """A win rate over `n` prompts, ties counted half, with its interval; `p` of the sign test over untied prompts.

    `failed` outcomes, which the judge could not tell, are left out. Rate, ends and p are None where none is left.
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
    where the outcomes do not tell: none is there, or one system is longer by the same on every prompt.
    """

    rate: float | None
    low: float | None
    high: float | None
    n: int
    length_effect: float | None


class Difference(NamedTuple):
    """A figure less the baseline's over the same `n` prompts, with its interval and its two-sided p-value.

    NaN where too few prompts are there to tell.
    """

    difference: float
    low: float
    high: float
    p: float
    n: int


def preference(outcomes: Outcomes) -> WinRate:
    """The win rate of paired outcomes, with an interval and the exact sign test (McNemar's, where there are ties).

    The interval is the wider, at either end, of two: the bootstrap over prompts, and the exact interval
    (Clopper-Pearson) of the share of wins among the untied prompts, with the ties at half. Few untied prompts resample
    into too narrow an interval (4 losses in 29 prompts into one below 50 %), which the second corrects: it lies on one
    side of 50 % just where p is below 0.05. The first says how far the number of ties itself is a matter of chance.
    Where all prompts are ties, it is as wide as the share of untied ones may be (Clopper-Pearson again, for 0 of n).
    ValueError for another outcome than 1, 0.5, 0 and None.
    """
    told = [outcome for outcome in outcomes if outcome is not None]
    failed = len(outcomes) - len(told)
    if not told:
        return WinRate(None, None, None, 0, 0, 0, 0, None, failed)
    interval = win_rate(told)
    wins, ties, losses = (told.count(outcome) for outcome in (1.0, 0.5, 0.0))
    low, high, untied = interval.low, interval.high, wins + losses
    if untied:
        exact = clopper_pearson(wins, untied)
        low = min(low, (ties / 2 + untied * exact.low) / len(told))
        high = max(high, (ties / 2 + untied * exact.high) / len(told))
    else:  # all that is not known is how rare untied prompts are, and whose they would be
        reach = clopper_pearson(0, len(told)).high / 2
        low, high = 0.5 - reach, 0.5 + reach
    return WinRate(interval.rate, low, high, len(told), wins, ties, losses, sign_test(wins, losses), failed)


def length_controlled(outcomes: Outcomes, length_differences: Sequence[float]) -> LengthControlled:
    """The win rate as if both answers were equally long (length-controlled AlpacaEval, arXiv 2404.04475, section 3).

    length_differences (n,): the first's length less the other's, in any one unit. A logistic regression of the outcome
    on a constant and tanh(difference / standard deviation of the differences) is read at difference 0; ties are half a
    win and half a loss. The paper's third term, how hard an instruction is, needs many systems to fit and is left out.
    The interval is the bootstrap over prompts, the lengths' standard deviation kept. A slight ridge keeps the fit
    finite where length alone decides.
    """
    if len(outcomes) != len(length_differences):
        raise ValueError(f"{len(outcomes)} outcomes, {len(length_differences)} length differences")
    rows = [(won, float(gap)) for won, gap in zip(outcomes, length_differences, strict=True) if won is not None]
    if not rows:
        return LengthControlled(None, None, None, 0, None)
    won, gaps = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    n, plain = len(rows), preference(won.tolist())
    if bool((gaps == gaps[0]).all()):
        if gaps[0]:
            return LengthControlled(None, None, None, n, None)
        return LengthControlled(plain.rate, plain.low, plain.high, n, 0.0)
    if bool((won == won[0]).all()):  # nothing hangs on length, and a resample cannot tell otherwise
        return LengthControlled(plain.rate, plain.low, plain.high, n, 0.0)
    shift = torch.tanh(gaps / gaps.std(correction=0))
    fit = _logistic(won, shift, torch.ones(1, n, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64))
    rates = bootstrap(n, lambda counts: _logistic(won, shift, counts, fit)[:, 0].sigmoid(), FIT_RESAMPLES)
    constant, slope = fit[0].tolist()
    return LengthControlled(1 / (1 + math.exp(-constant)), *percentile_interval(rates, n), n, slope)


def _logistic(won: Tensor, shift: Tensor, counts: Tensor, start: Tensor) -> Tensor:
    """Constant and slope (b, 2) of the logistic regression of won (n,) on shift (n,), for each of counts (b, n).

    By Newton's method from `start` (1, 2), on the log-likelihood less RIDGE / 2 of the squared coefficients.
    """
    inputs = torch.stack([torch.ones_like(shift), shift], dim=1)  # (n, 2)
    products = torch.stack([inputs[:, 0], shift, shift * shift], dim=1)
    wanted = (counts * won) @ inputs
    found = start.expand(len(counts), 2)
    for _ in range(NEWTON_STEPS):
        likely = torch.sigmoid(found @ inputs.T)
        weighted = counts * likely
        slope = wanted - weighted @ inputs - RIDGE * found
        a, b, c = ((weighted - weighted * likely) @ products).unbind(1)
        a, c = a + RIDGE, c + RIDGE
        step = torch.stack([c * slope[:, 0] - b * slope[:, 1], a * slope[:, 1] - b * slope[:, 0]], dim=1)
        step = (step / (a * c - b * b).unsqueeze(1)).clamp(-LARGEST_STEP, LARGEST_STEP)
        found = found + step
        if float(step.abs().max()) < CONVERGED:
            break
    return found


def paired_means(values: Sequence[float | None], baseline: Sequence[float | None]) -> Difference:
    """The difference of two means over the same prompts, by Student's paired t.

    t and not Wilcoxon's ranks: what is reported is the mean, t tests just that, and its p and interval agree; ranks
    test whether the differences are symmetric around 0, and can point the other way than the mean. Prompts where either
    value is None are left out.
    """
    gaps = [one - other for one, other in zip(values, baseline, strict=True) if one is not None and other is not None]
    if len(gaps) < 2:
        return Difference(gaps[0] if gaps else math.nan, math.nan, math.nan, math.nan, len(gaps))
    found = mean_interval(gaps)
    error = torch.tensor(gaps, dtype=torch.float64).std(correction=1).item() / math.sqrt(len(gaps))
    if error == 0:
        return Difference(*found[:3], float(found.mean == 0), len(gaps))
    return Difference(*found[:3], t_test(found.mean / error, len(gaps) - 1), len(gaps))


def paired_rates(flags: Sequence[bool | None], baseline: Sequence[bool | None]) -> Difference:
    """The difference of two shares over the same prompts, by McNemar's exact test.

    It is decided by the prompts where one is flagged and the other is not, just as a win rate is by the untied ones:
    the difference is twice what that win rate is above 50 %, and so is its interval (see `preference`), which leaves
    out 0 just where p is below 0.05. Prompts where either flag is None are left out.
    """
    rows = [(one, other) for one, other in zip(flags, baseline, strict=True) if one is not None and other is not None]
    found = preference([0.5 + (bool(one) - bool(other)) / 2 for one, other in rows])
    if found.rate is None or found.low is None or found.high is None or found.p is None:
        return Difference(math.nan, math.nan, math.nan, math.nan, 0)
    return Difference(2 * found.rate - 1, 2 * found.low - 1, 2 * found.high - 1, found.p, found.n)


def paired_ratios(
    numerators: Sequence[float],
    denominators: Sequence[float],
    baseline_numerators: Sequence[float],
    baseline_denominators: Sequence[float],
    shown: Callable[[Tensor], Tensor] = torch.positive,
) -> Difference:
    """The difference of two means per token (sum / sum, see `bootstrap_ratio`) over the same n prompts, bootstrapped.

    `shown`: what is reported of a mean, exp for a perplexity; it must rise with the mean.

    p is twice the share of resamples on the rarer side of 0, one resample added to either side (Davison and Hinkley
    1997, section 4.2.5): it cannot be below 2 / 4001.
    """
    columns = (numerators, denominators, baseline_numerators, baseline_denominators)
    above, below, other_above, other_below = (torch.tensor([*c], dtype=torch.float64) for c in columns)
    n = len(above)
    if not n or not float(below.sum()) or not float(other_below.sum()):
        return Difference(math.nan, math.nan, math.nan, math.nan, n)
    difference = (shown(above.sum() / below.sum()) - shown(other_above.sum() / other_below.sum())).item()
    if n == 1:
        return Difference(difference, math.nan, math.nan, math.nan, n)
    found = bootstrap(n, lambda c: shown(c @ above / (c @ below)) - shown(c @ other_above / (c @ other_below)))
    found = found[~found.isnan()]
    rarer = min(int((found <= 0).sum()), int((found >= 0).sum()))
    return Difference(difference, *percentile_interval(found, n), min(1.0, 2 * (rarer + 1) / (len(found) + 1)), n)


def independent_difference(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Two figures of unlike cases, each (value, low, high): one less the other, and the ends of its 95 % interval.

    The ends come from those of the two (MOVER, Zou and Donner 2008; for two Wilson intervals, Newcombe's method 10).
    """
    (value, low, high), (other_value, other_low, other_high) = one, other
    difference = value - other_value
    below, above = math.hypot(value - low, other_high - other_value), math.hypot(high - value, other_value - other_low)
    return difference, difference - below, difference + above


def share(flags: Sequence[bool | None]) -> Interval | None:
    """The share of flagged cases with Wilson's interval, Nones left out; None where no case is left."""
    told = [bool(flag) for flag in flags if flag is not None]
    return wilson(sum(told), len(told)) if told else None


def by_category(categories: Sequence[str]) -> dict[str, list[int]]:
    """{category: the places of its prompts}, largest category first, then by name."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(categories):
        places.setdefault(name, []).append(place)
    return dict(sorted(places.items(), key=lambda item: (-len(item[1]), item[0])))
