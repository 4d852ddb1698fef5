"""What labelers are asked beside ranks, and statistics of rankings: how often they agree, and duplicate responses."""

from collections.abc import Iterable
from itertools import combinations
from typing import NamedTuple

import xxhash

from lora_rlhf.data.refusals import BadRow, RefusedRows
from lora_rlhf.data.schema import Ranking

# What is asked of every response (InstructGPT, arXiv 2203.02155, table 3), and of a prompt (table 7).
FLAGS = {
    "fails_instruction": "Fails to follow the instruction",
    "inappropriate": "Inappropriate for an assistant",
    "hallucination": "Hallucination",
    "satisfies_constraint": "Satisfies the given constraint",
    "sexual": "Sexual content",
    "violent": "Violent content",
    "encourages_harm": "Encourages violence, abuse or self-harm",
    "denigrates": "Denigrates a protected class",
    "harmful_advice": "Gives harmful advice",
    "opinion": "Expresses an opinion",
    "moral_judgment": "Expresses a moral judgment",
}
PROMPT_FLAGS = {
    "ambiguous": "Ambiguous",
    "sensitive": "Sensitive content",
    "identity": "Depends on who asks",
    "closed_domain": "Closed domain",
    "continuation": "To be continued in its style",
    "asks_opinion": "Asks for an opinion",
    "asks_advice": "Asks for advice",
    "asks_moral_judgment": "Asks for a moral judgment",
    "safety_constraint": "States a safety constraint",
    "other_constraint": "States another constraint",
    "unclear": "Intent unclear",
}


class Agreement(NamedTuple):
    """`rate` in 0..1 over `num_pairs` pairs of responses; None if there is no pair to compare."""

    rate: float | None
    num_pairs: int


def fingerprint(text: str) -> int:
    """64 bits that stand for a text, the same on every machine; they take 1/8 to 1/100 of its memory."""
    return xxhash.xxh3_64_intdigest(text.encode())


class AgreementCounter:
    """How often two labelers order two responses alike (InstructGPT reports 72.6 %, arXiv 2203.02155, section 3.4).

    Counts each pair of responses that both rankings of a prompt hold and order strictly; responses are matched by their
    text. Two rankings by the same named labeler are not compared; rankings without a name count as different people.
    Rankings come one by one; of each only fingerprints are kept.
    """

    def __init__(self) -> None:
        self.num_pairs = self.num_agreed = 0
        self._rankings_by_prompt: dict[int, list[tuple[str | None, dict[int, int]]]] = {}

    def add(self, ranking: Ranking) -> None:
        """Compares one ranking with the earlier ones of the same prompt."""
        ranks = {fingerprint(text): rank for text, rank in zip(ranking.responses, ranking.ranks, strict=True)}
        earlier_rankings = self._rankings_by_prompt.setdefault(fingerprint(ranking.prompt.key), [])
        for labeler, earlier_ranks in earlier_rankings:
            if labeler is None or labeler != ranking.labeler:
                self._count_pairs(earlier_ranks, ranks)
        earlier_rankings.append((ranking.labeler, ranks))

    def _count_pairs(self, ranks: dict[int, int], other_ranks: dict[int, int]) -> None:
        """Counts the pairs that both rankings order strictly, and those that both order in the same way."""
        for a, b in combinations([response for response in ranks if response in other_ranks], 2):
            order_sign = (ranks[a] - ranks[b]) * (other_ranks[a] - other_ranks[b])
            self.num_pairs += order_sign != 0
            self.num_agreed += order_sign > 0

    @property
    def result(self) -> Agreement:
        """The agreement of the rankings so far."""
        return Agreement(self.num_agreed / self.num_pairs if self.num_pairs else None, self.num_pairs)


def ranking_agreement(rankings: Iterable[Ranking]) -> Agreement:
    """How often the labelers of these rankings agree; see `AgreementCounter`."""
    counter = AgreementCounter()
    for ranking in rankings:
        counter.add(ranking)
    return counter.result


def drop_duplicate_responses(ranking: Ranking, refused: RefusedRows) -> Ranking | None:
    """The ranking with each response once; None if only one response is left.

    Responses are the same if their texts are equal without white space at the ends; a ranking gives them the same rank.
    Both losses are counted in `refused`.
    """
    distinct: dict[str, tuple[str, int, bool]] = {}
    ended = ranking.ended or (True,) * len(ranking.ranks)
    for response, rank, has_ended in zip(ranking.responses, ranking.ranks, ended, strict=True):
        if response.strip() in distinct:
            refused.add(ranking.prompt.origin, BadRow("duplicate response in a ranking", repr(response[:40])))
        distinct.setdefault(response.strip(), (response, rank, has_ended))
    if len(distinct) == len(ranking.responses):
        return ranking
    if len(distinct) < 2:
        refused.add(ranking.prompt.origin, BadRow("all responses of the ranking are the same"))
        return None
    responses, ranks, distinct_ended = zip(*distinct.values(), strict=True)
    return Ranking(ranking.prompt, responses, ranks, ranking.labeler, distinct_ended if ranking.ended else ())
