"""Bradley-Terry ratings: one strength for each of several systems, from who won against whom."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lora_rlhf.stats.intervals import Z_95, bootstrap_statistic, percentile_interval
from lora_rlhf.stats.newton import CONVERGED, FIT_RESAMPLES, solve_newton
from lora_rlhf.stats.win_rates import Outcomes

PRIOR = 0.5  # wins that either side of a compared pair is given beforehand


class Rating(NamedTuple):
    """log odds of beating the baseline, with their 95 % interval, over `n` comparisons of the system."""

    rating: float
    low: float
    high: float
    n: int


def bradley_terry_ratings(contests: Mapping[tuple[str, str], Outcomes], baseline: str) -> dict[str, Rating]:
    """{system: rating}: P(a beats b) = sigmoid(rating a - rating b) (Bradley and Terry 1952), the baseline's is 0.

    contests: {(a, b): an outcome of a against b for each prompt}, all over the same n prompts in one order; ties count
    as half a win for both, None (no verdict) does not count. Half a win is added to both sides of a compared pair, so
    that an undefeated system stays finite; for two systems that is log((wins + 1/2) / (losses + 1/2)), the least biased
    log odds (Haldane 1956). The interval is the bootstrap over prompts, which keeps the outcomes of one prompt
    together; if all resamples are equal (an undefeated system), it is 1.96 standard errors of the likelihood.
    ValueError for a system that no comparisons link to the baseline, and for contests of different lengths.
    """
    systems = list(dict.fromkeys([baseline, *(name for pair in contests for name in pair)]))
    lengths = {len(outcomes) for outcomes in contests.values()}
    if len(lengths) != 1 or not min(lengths):
        raise ValueError(f"contests of {sorted(lengths)} prompts: all are over the same prompts, at least one")
    is_judged, win_shares = _verdict_tables(list(contests.values()))
    pairs = [(systems.index(a), systems.index(b)) for a, b in contests]
    num_games = [int(count) for count in is_judged.sum(dim=0).tolist()]  # of each pair
    _require_linked(systems, [pair for pair, count in zip(pairs, num_games, strict=True) if count])

    def resampled_wins(counts: Tensor) -> Tensor:
        return _win_counts(counts @ win_shares, counts @ is_judged, pairs, len(systems))

    n = len(is_judged)
    observed_wins = resampled_wins(torch.ones(1, n, dtype=torch.float64))
    strengths = _fit_strengths(observed_wins, torch.zeros(1, len(systems) - 1, dtype=torch.float64))
    standard_errors = (
        torch.linalg.inv(_fisher_information(observed_wins, _win_probabilities(strengths)))
        .diagonal(dim1=1, dim2=2)
        .sqrt()
    )
    resampled_strengths = bootstrap_statistic(
        n, lambda counts: _fit_strengths(resampled_wins(counts), strengths), FIT_RESAMPLES
    )
    ratings = {}
    for index, name in enumerate(systems):
        comparisons = sum(count for count, pair in zip(num_games, pairs, strict=True) if index in pair)
        if name == baseline:
            ratings[name] = Rating(0.0, 0.0, 0.0, comparisons)
            continue
        rating, standard_error = strengths[0, index - 1].item(), standard_errors[0, index - 1].item()
        low, high = percentile_interval(resampled_strengths[:, index - 1], n)
        if high - low < CONVERGED:
            low, high = rating - Z_95 * standard_error, rating + Z_95 * standard_error
        ratings[name] = Rating(rating, low, high, comparisons)
    return ratings


def _verdict_tables(contests: Sequence[Outcomes]) -> tuple[Tensor, Tensor]:
    """Whether each outcome has a verdict, and the first system's share of the win: (n, pairs) each."""
    is_judged = [[float(outcome is not None) for outcome in outcomes] for outcomes in contests]
    win_shares = [[outcome or 0.0 for outcome in outcomes] for outcomes in contests]
    return torch.tensor(is_judged, dtype=torch.float64).T, torch.tensor(win_shares, dtype=torch.float64).T


def _win_counts(win_shares: Tensor, is_judged: Tensor, pairs: Sequence[tuple[int, int]], num_systems: int) -> Tensor:
    """wins[:, i, j] of i over j, the prior's included: won, judged (b, pairs) -> (b, systems, systems)."""
    wins = torch.zeros(len(win_shares), num_systems, num_systems, dtype=torch.float64)
    for column, (first, second) in enumerate(pairs):
        wins[:, first, second] += win_shares[:, column] + PRIOR
        wins[:, second, first] += is_judged[:, column] - win_shares[:, column] + PRIOR
    return wins


def _fit_strengths(wins: Tensor, start: Tensor) -> Tensor:
    """The likeliest strengths (b, systems - 1), the first system's being 0, of wins (b, systems, systems)."""
    num_games = wins + wins.transpose(1, 2)

    def step(strengths: Tensor) -> Tensor:
        win_probabilities = _win_probabilities(strengths)
        gradient = (wins - num_games * win_probabilities).sum(dim=2)[:, 1:]
        return torch.linalg.solve(_fisher_information(wins, win_probabilities), gradient)

    return solve_newton(start.expand(len(wins), -1), step)


def _win_probabilities(strengths: Tensor) -> Tensor:
    """[:, i, j]: the probability that i beats j: strengths (b, systems - 1) -> (b, systems, systems)."""
    strengths = torch.cat([torch.zeros(len(strengths), 1, dtype=torch.float64), strengths], dim=1)
    return torch.sigmoid(strengths.unsqueeze(2) - strengths.unsqueeze(1))


def _fisher_information(wins: Tensor, win_probabilities: Tensor) -> Tensor:
    """Fisher information (b, systems - 1, systems - 1) of all strengths but the first, which is fixed at 0."""
    weights = (wins + wins.transpose(1, 2)) * win_probabilities * (1 - win_probabilities)
    return (torch.diag_embed(weights.sum(dim=2)) - weights)[:, 1:, 1:]


def _require_linked(systems: Sequence[str], pairs: Sequence[tuple[int, int]]) -> None:
    """ValueError for a system that no chain of comparisons links to the first one."""
    linked_indices, has_grown = {0}, True
    while has_grown:
        reached_indices = linked_indices.union(*(pair for pair in pairs if linked_indices & set(pair)))
        has_grown, linked_indices = reached_indices != linked_indices, reached_indices
    if unlinked_names := [name for index, name in enumerate(systems) if index not in linked_indices]:
        raise ValueError(f"no comparison links {', '.join(unlinked_names)} to {systems[0]}: they have no ratings")
