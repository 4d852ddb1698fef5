"""How good a reward model is on rankings that it was not trained on."""

from collections.abc import Sequence

from torch import Tensor

from lora_rlhf.data.encode import EncodedRanking
from lora_rlhf.stats.ordering import OrderingReport, ordering_report


def held_out_report(rankings: Sequence[EncodedRanking], scores: list[Tensor]) -> OrderingReport:
    """`ordering_report` of rankings and of each its scores (K,); lengths in tokens."""
    lengths = [[len(ids) for ids in ranking.response_ids] for ranking in rankings]
    return ordering_report([ranking.ranks for ranking in rankings], scores, lengths)
