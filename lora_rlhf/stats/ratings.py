"""Bradley-Terry ratings: one strength for each of several systems, from who won against whom."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lora_rlhf.stats.intervals import Z_95, bootstrap, percentile_interval
from lora_rlhf.stats.preference import CONVERGED, FIT_RESAMPLES, LARGEST_STEP, NEWTON_STEPS, Outcomes

PRIOR = 0.5  # wins that either side of a compared pair is given beforehand


class Rating(NamedTuple):
    """log odds of beating the baseline, with their 95 % interval, over `n` comparisons of the system."""

    rating: float
    low: float
    high: float
    n: int


def ratings(contests: Mapping[tuple[str, str], Outcomes], baseline: str) -> dict[str, Rating]:
    """{system: rating}: P(a beats b) = sigmoid(rating a - rating b) (Bradley and Terry 1952), the baseline's is 0.

    contests: {(a, b): an outcome of a against b for each prompt}, all over the same n prompts in one order; ties count
    as half a win for both, None (the judge could not tell) as nothing. Half a win is added to both sides of a compared
    pair, so that an undefeated system stays finite; for two systems that is log((wins + 1/2) / (losses + 1/2)), the
    least biased log odds (Haldane 1956). The interval is the bootstrap over prompts, which keeps the outcomes of one
    prompt together; where no resample could differ (an undefeated system), 1.96 standard errors of the likelihood.
    ValueError for a system that no comparisons link to the baseline, and for contests of different lengths.
    """
    systems = list(dict.fromkeys([baseline, *(name for pair in contests for name in pair)]))
    lengths = {len(outcomes) for outcomes in contests.values()}
    if len(lengths) != 1 or not min(lengths):
        raise ValueError(f"contests of {sorted(lengths)} prompts: all are over the same prompts, and there is one")
    told, won = _tables(list(contests.values()))
    pairs = [(systems.index(one), systems.index(other)) for one, other in contests]
    _require_linked(systems, [pair for pair, count in zip(pairs, told.sum(dim=0).tolist(), strict=True) if count])

    def strengths(counts: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        return _newton(_wins(counts @ won, counts @ told, pairs, len(systems)), start)

    n = len(told)
    zero = torch.zeros(1, len(systems) - 1, dtype=torch.float64)
    fit, covariance = strengths(torch.ones(1, n, dtype=torch.float64), zero)
    resampled = bootstrap(n, lambda counts: strengths(counts, fit)[0], FIT_RESAMPLES)
    compared = (told.sum(dim=0).tolist(), pairs)
    found = {baseline: Rating(0.0, 0.0, 0.0, _comparisons(*compared, 0))}
    for place, name in enumerate(systems[1:]):
        value, error = fit[0, place].item(), covariance[0, place, place].sqrt().item()
        low, high = percentile_interval(resampled[:, place], n)
        if high - low < CONVERGED:
            low, high = value - Z_95 * error, value + Z_95 * error
        found[name] = Rating(value, low, high, _comparisons(*compared, place + 1))
    return found


def _tables(contests: Sequence[Outcomes]) -> tuple[Tensor, Tensor]:
    """Whether each outcome was told, and the first's share of the win: (n, pairs) each."""
    told = [[float(outcome is not None) for outcome in outcomes] for outcomes in contests]
    won = [[outcome or 0.0 for outcome in outcomes] for outcomes in contests]
    return torch.tensor(told, dtype=torch.float64).T, torch.tensor(won, dtype=torch.float64).T


def _wins(won: Tensor, told: Tensor, pairs: Sequence[tuple[int, int]], count: int) -> Tensor:
    """wins[:, i, j] of i over j, the prior's included: won, told (b, pairs) -> (b, systems, systems)."""
    wins = torch.zeros(len(won), count, count, dtype=torch.float64)
    for place, (one, other) in enumerate(pairs):
        wins[:, one, other] += won[:, place] + PRIOR
        wins[:, other, one] += told[:, place] - won[:, place] + PRIOR
    return wins


def _newton(wins: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest strengths (b, systems - 1), the first's being 0, and their covariance, of wins (b, S, S)."""
    games = wins + wins.transpose(1, 2)
    found = start.expand(len(wins), -1)
    for _ in range(NEWTON_STEPS):
        whole = torch.cat([torch.zeros(len(found), 1, dtype=torch.float64), found], dim=1)
        likely = torch.sigmoid(whole.unsqueeze(2) - whole.unsqueeze(1))
        gradient = (wins - games * likely).sum(dim=2)[:, 1:]
        weights = games * likely * (1 - likely)
        information = (torch.diag_embed(weights.sum(dim=2)) - weights)[:, 1:, 1:]
        step = torch.linalg.solve(information, gradient).clamp(-LARGEST_STEP, LARGEST_STEP)
        found = found + step
        if found.numel() == 0 or float(step.abs().max()) < CONVERGED:
            break
    return found, torch.linalg.inv(information)


def _comparisons(told: Sequence[float], pairs: Sequence[tuple[int, int]], place: int) -> int:
    return int(sum(count for count, pair in zip(told, pairs, strict=True) if place in pair))


def _require_linked(systems: Sequence[str], pairs: Sequence[tuple[int, int]]) -> None:
    linked, grown = {0}, True
    while grown:
        more = {place for pair in pairs for place in pair if linked & set(pair)} | linked
        grown, linked = more != linked, more
    if apart := [name for place, name in enumerate(systems) if place not in linked]:
        raise ValueError(f"no comparison links {', '.join(apart)} to {systems[0]}: their ratings cannot be told")
