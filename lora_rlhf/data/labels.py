"""Arithmetic on people's rankings: how far labelers agree, duplicate responses."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from lora_rlhf.data.refusals import BadRow, RefusedRows
from lora_rlhf.data.schema import Ranking


class Agreement(NamedTuple):
    """`rate` in 0..1 over `num_pairs` pairs of responses; None where there is no pair to compare."""

    rate: float | None
    num_pairs: int


def group_by_prompt(rankings: Iterable[Ranking]) -> dict[str, list[Ranking]]:
    """Rankings under their prompt's key, in the order met."""
    groups: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        groups.setdefault(ranking.prompt.key, []).append(ranking)
    return groups


def agreement(rankings_by_prompt: Mapping[str, Sequence[Ranking]]) -> Agreement:
    """How often two labelers order two responses alike (InstructGPT reports 72.6 %, arXiv 2203.02155, section 3.4).

    Counts each pair of responses that both rankings of a prompt hold and order strictly; responses are matched by their
    text. Two rankings by the same named labeler are not compared; rankings without a name count as different people.
    """
    num_pairs = num_agreed = 0
    for rankings in rankings_by_prompt.values():
        for one, other in combinations(rankings, 2):
            if one.labeler is not None and one.labeler == other.labeler:
                continue
            rank_one = dict(zip(one.responses, one.ranks, strict=True))
            rank_other = dict(zip(other.responses, other.ranks, strict=True))
            shared = [response for response in rank_one if response in rank_other]
            for a, b in combinations(shared, 2):
                order = (rank_one[a] - rank_one[b]) * (rank_other[a] - rank_other[b])
                num_pairs += order != 0
                num_agreed += order > 0
    return Agreement(num_agreed / num_pairs if num_pairs else None, num_pairs)


def drop_duplicate_responses(rankings: Iterable[Ranking]) -> tuple[list[Ranking], RefusedRows]:
    """Each ranking with every response once, at the best of its ranks; rankings left with one response are dropped.

    Responses are the same if their texts are, white space at the ends aside. Both kinds of loss are counted.
    """
    kept: list[Ranking] = []
    refused = RefusedRows()
    for ranking in rankings:
        best: dict[str, tuple[str, int]] = {}
        for response, rank in zip(ranking.responses, ranking.ranks, strict=True):
            known = best.get(response.strip())
            if known is not None:
                refused.add(ranking.prompt.origin, BadRow("duplicate response in a ranking", repr(response[:40])))
            best[response.strip()] = (response, rank) if known is None else (known[0], min(known[1], rank))
        if len(best) == len(ranking.responses):
            kept.append(ranking)
        elif len(best) < 2:
            refused.add(ranking.prompt.origin, BadRow("all responses of the ranking are the same"))
        else:
            responses, ranks = zip(*best.values(), strict=True)
            kept.append(Ranking(ranking.prompt, responses, ranks, ranking.labeler))
    return kept, refused
