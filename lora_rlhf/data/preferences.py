"""Encoded rankings and votes as rows of TRL's columns: pairs for DPO, single answers for KTO."""

from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any, Literal

from lora_rlhf.data.encode import EncodedRanking

if TYPE_CHECKING:
    from datasets import Dataset

PairChoice = Literal["all", "best-worst", "adjacent"]
Rows = list[dict[str, Any]]


def choose_pairs(ranks: Sequence[int], choice: PairChoice) -> list[tuple[int, int]]:
    """(index of the better response, of the worse one) of the pairs of a ranking that are learned; no ties.

    all: every pair. best-worst: each best response with each worst one. adjacent: each response with those of the next
    rank.
    """
    order = sorted(set(ranks))
    by_choice = {"all": combinations(order, 2), "best-worst": [(order[0], order[-1])], "adjacent": pairwise(order)}
    return [
        (winner, loser)
        for better, worse in by_choice[choice]
        if better < worse
        for winner, rank in enumerate(ranks)
        if rank == better
        for loser, other in enumerate(ranks)
        if other == worse
    ]


def pair_rows(ranking: EncodedRanking, choice: PairChoice) -> Rows:
    """A row for each pair, in the columns of DPOTrainer's collator."""
    ids = ranking.response_ids
    return [
        {"prompt_ids": ranking.prompt_ids, "chosen_ids": ids[winner], "rejected_ids": ids[loser]}
        for winner, loser in choose_pairs(ranking.ranks, choice)
    ]


def split_into_votes(ranking: EncodedRanking) -> list[EncodedRanking]:
    """The best responses of a ranking as good, the worst as bad; none if all are tied. A vote stays as it is."""
    if len(ranking.ranks) == 1:
        return [ranking]
    best, worst = min(ranking.ranks), max(ranking.ranks)
    return [
        EncodedRanking(ranking.prompt_ids, [ids], [1 if rank == best else 2])
        for ids, rank in zip(ranking.response_ids, ranking.ranks, strict=True)
        if rank in (best, worst) and best < worst
    ]


def vote_rows(votes: Sequence[EncodedRanking]) -> Rows:
    """A row for each vote of a batch, in the columns of KTOTrainer's collator.

    Each prompt also gets the answer of the row before it, from which KTO estimates its KL, as TRL pairs them.
    """
    answers = [vote.response_ids[0] for vote in votes]
    return [
        {
            "prompt_ids": vote.prompt_ids,
            "completion_ids": answers[index],
            "KL_completion_ids": answers[index - 1],
            "label": vote.ranks[0] == 1,
        }
        for index, vote in enumerate(votes)
    ]


def to_dataset(rows: Rows) -> "Dataset":
    """The rows as a dataset in memory, without which TRL makes no trainer."""
    from datasets import Dataset

    return Dataset.from_list(rows)
