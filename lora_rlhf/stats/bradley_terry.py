"""Bradley-Terry ratings: one strength for each of several systems, from who won against whom."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lora_rlhf.stats.intervals import Z_95, bootstrap, percentile_interval
from lora_rlhf.stats.newton import CONVERGED, FIT_RESAMPLES, newton
from lora_rlhf.stats.win_rates import Outcomes

PRIOR = 0.5  # wins that either side of a compared pair is given beforehand


class Rating(NamedTuple):
    """log odds of beating the baseline, with their 95 % interval, over `n` comparisons of the system."""

    rating: float
    low: float
    high: float
    n: int


def bradley_terry(contests: Mapping[tuple[str, str], Outcomes], baseline: str) -> dict[str, Rating]:
    """{system: rating}: P(a beats b) = sigmoid(rating a - rating b) (Bradley and Terry 1952), the baseline's is 0.

    contests: {(a, b): an outcome of a against b for each prompt}, all over the same n prompts in one order; ties count
    as half a win for both, None (no verdict) does not count. Half a win is added to both sides of a compared pair, so
    that an undefeated system stays finite; for two systems that is log((wins + 1/2) / (losses + 1/2)), the least biased
    log odds (Haldane 1956). The interval is the bootstrap over prompts, which keeps the outcomes of one prompt
    together; where no resample could differ (an undefeated system), 1.96 standard errors of the likelihood.
    ValueError for a system that no comparisons link to the baseline, and for contests of different lengths.
    """
    systems = list(dict.fromkeys([baseline, *(name for pair in contests for name in pair)]))
    lengths = {len(outcomes) for outcomes in contests.values()}
    if len(lengths) != 1 or not min(lengths):
        raise ValueError(f"contests of {sorted(lengths)} prompts: all are over the same prompts, at least one")
    judged, won = _tables(list(contests.values()))
    pairs = [(systems.index(a), systems.index(b)) for a, b in contests]
    games = [int(count) for count in judged.sum(dim=0).tolist()]  # of each pair
    _require_linked(systems, [pair for pair, count in zip(pairs, games, strict=True) if count])

    def wins(counts: Tensor) -> Tensor:
        return _wins(counts @ won, counts @ judged, pairs, len(systems))

    n = len(judged)
    observed = wins(torch.ones(1, n, dtype=torch.float64))
    fit = _fit(observed, torch.zeros(1, len(systems) - 1, dtype=torch.float64))
    errors = torch.linalg.inv(_information(observed, _win_probabilities(fit))).diagonal(dim1=1, dim2=2).sqrt()
    resampled = bootstrap(n, lambda counts: _fit(wins(counts), fit), FIT_RESAMPLES)
    ratings = {}
    for index, name in enumerate(systems):
        comparisons = sum(count for count, pair in zip(games, pairs, strict=True) if index in pair)
        if name == baseline:
            ratings[name] = Rating(0.0, 0.0, 0.0, comparisons)
            continue
        rating, error = fit[0, index - 1].item(), errors[0, index - 1].item()
        low, high = percentile_interval(resampled[:, index - 1], n)
        if high - low < CONVERGED:
            low, high = rating - Z_95 * error, rating + Z_95 * error
        ratings[name] = Rating(rating, low, high, comparisons)
    return ratings


def _tables(contests: Sequence[Outcomes]) -> tuple[Tensor, Tensor]:
    """Whether each outcome has a verdict, and the first system's share of the win: (n, pairs) each."""
    judged = [[float(outcome is not None) for outcome in outcomes] for outcomes in contests]
    won = [[outcome or 0.0 for outcome in outcomes] for outcomes in contests]
    return torch.tensor(judged, dtype=torch.float64).T, torch.tensor(won, dtype=torch.float64).T


def _wins(won: Tensor, judged: Tensor, pairs: Sequence[tuple[int, int]], count: int) -> Tensor:
    """wins[:, i, j] of i over j, the prior's included: won, judged (b, pairs) -> (b, systems, systems)."""
    wins = torch.zeros(len(won), count, count, dtype=torch.float64)
    for column, (first, second) in enumerate(pairs):
        wins[:, first, second] += won[:, column] + PRIOR
        wins[:, second, first] += judged[:, column] - won[:, column] + PRIOR
    return wins


def _fit(wins: Tensor, start: Tensor) -> Tensor:
    """The likeliest strengths (b, systems - 1), the first system's being 0, of wins (b, systems, systems)."""
    games = wins + wins.transpose(1, 2)

    def step(strengths: Tensor) -> Tensor:
        likely = _win_probabilities(strengths)
        gradient = (wins - games * likely).sum(dim=2)[:, 1:]
        return torch.linalg.solve(_information(wins, likely), gradient)

    return newton(start.expand(len(wins), -1), step)


def _win_probabilities(strengths: Tensor) -> Tensor:
    """[:, i, j]: the probability that i beats j: strengths (b, systems - 1) -> (b, systems, systems)."""
    strengths = torch.cat([torch.zeros(len(strengths), 1, dtype=torch.float64), strengths], dim=1)
    return torch.sigmoid(strengths.unsqueeze(2) - strengths.unsqueeze(1))


def _information(wins: Tensor, likely: Tensor) -> Tensor:
    """Fisher information (b, systems - 1, systems - 1) of all strengths but the first, which is fixed at 0."""
    weights = (wins + wins.transpose(1, 2)) * likely * (1 - likely)
    return (torch.diag_embed(weights.sum(dim=2)) - weights)[:, 1:, 1:]


def _require_linked(systems: Sequence[str], pairs: Sequence[tuple[int, int]]) -> None:
    linked, grew = {0}, True
    while grew:
        reached = linked.union(*(pair for pair in pairs if linked & set(pair)))
        grew, linked = reached != linked, reached
    if unlinked := [name for index, name in enumerate(systems) if index not in linked]:
        raise ValueError(f"no comparison links {', '.join(unlinked)} to {systems[0]}: they have no ratings")
