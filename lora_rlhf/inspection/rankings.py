"""Figures on the rankings of one file: sizes, ties, labelers, whether longer responses win, and agreement."""

import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from lora_rlhf.data.labels import fingerprint, ranking_agreement
from lora_rlhf.data.schema import Prompt, Ranking
from lora_rlhf.inspection.duplicates import MOST_HASHES

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % point
MOST_NAMES = 10_000  # different labelers that are told apart
MOST_COMPARED = 10_000  # prompts with several rankings that agreement is measured on
MOST_RANKINGS = 20  # rankings of one prompt that are compared with one another


class RankingFigures:
    """Sums over the rankings of one file. Of each ranking, hashes are kept to compare labelers."""

    def __init__(self, most_responses: int = MOST_HASHES) -> None:
        self.most_responses = most_responses  # whose hashes are kept
        self.count = self.all_tied = self.pairs = self.ties = 0
        self.num_cut = self.num_known_ends = 0  # responses that did not end, of those that say whether they did
        self.num_equal_lengths = 0  # pairs with different ranks whose responses are equally long
        self.sizes: Counter[int] = Counter()
        self.labelers: set[str] = set()
        # of longer winners w and pairs p of each ranking: the sums of w, w * w, w * p, p * p
        self._moments = [0.0, 0.0, 0.0, 0.0]
        self._threshold = 1 << 64
        self._prompts, self._labelers, self._sizes = array("Q"), array("Q"), array("Q")
        self._responses, self._ranks = array("Q"), array("Q")

    def add(self, ranking: Ranking, prompt_hash: int, response_hashes: Sequence[int]) -> None:
        """Counts one ranking, with the hashes of its prompt and of its responses."""
        pairs, longer_wins, equal_lengths = _count_longer_wins(ranking)
        size = len(ranking.responses)
        self.count += 1
        self.sizes[size] += 1
        self.pairs += pairs
        self.ties += size * (size - 1) // 2 - pairs
        self.all_tied += not pairs
        self.num_equal_lengths += equal_lengths
        self.num_cut += ranking.ended.count(False)
        self.num_known_ends += len(ranking.ended)
        moments = self._moments
        moments[0] += longer_wins
        moments[1] += longer_wins * longer_wins
        moments[2] += longer_wins * pairs
        moments[3] += pairs * pairs
        if ranking.labeler is not None and len(self.labelers) < MOST_NAMES:
            self.labelers.add(ranking.labeler)
        if prompt_hash < self._threshold:
            self._add_hashes(ranking, prompt_hash, response_hashes)

    def merge(self, other_figures: "RankingFigures") -> None:
        """Adds the rankings of another part of the file."""
        for name in ("count", "all_tied", "pairs", "ties", "num_equal_lengths", "num_cut", "num_known_ends"):
            setattr(self, name, getattr(self, name) + getattr(other_figures, name))
        self.sizes.update(other_figures.sizes)
        self.labelers |= other_figures.labelers
        self._moments = [sum(pair) for pair in zip(self._moments, other_figures._moments, strict=True)]
        for values, other_values in zip(self._hash_arrays(), other_figures._hash_arrays(), strict=True):
            values.extend(other_values)
        self._threshold = min(self._threshold, other_figures._threshold)
        self._drop_above_threshold()
        self._drop_excess()

    def _hash_arrays(self) -> list[array]:
        return [self._prompts, self._labelers, self._sizes, self._responses, self._ranks]

    def _add_hashes(self, ranking: Ranking, prompt_hash: int, response_hashes: Sequence[int]) -> None:
        """Keeps the hashes of a ranking. Ranks that do not fit into 64 bits are replaced by their order."""
        self._prompts.append(prompt_hash)
        self._labelers.append(0 if ranking.labeler is None else fingerprint(ranking.labeler))
        self._sizes.append(len(ranking.responses))
        self._responses.extend(response_hashes)
        self._ranks.extend(ranking.ranks if max(ranking.ranks) < 1 << 64 else _ranks_by_order(ranking.ranks))
        self._drop_excess()

    def _drop_excess(self) -> None:
        while len(self._responses) > self.most_responses and self._threshold > 1:
            self._threshold //= 2
            self._drop_above_threshold()

    def _drop_above_threshold(self) -> None:
        """Drops the rankings whose prompt's hash is not below the threshold: all rankings of a prompt, or none."""
        if self._threshold == 1 << 64:
            return
        is_kept = np.frombuffer(self._prompts, np.uint64) < np.uint64(self._threshold)
        is_response_kept = np.repeat(is_kept, np.frombuffer(self._sizes, np.uint64).astype(np.int64))
        masks = [is_kept, is_kept, is_kept, is_response_kept, is_response_kept]
        for values, mask in zip(self._hash_arrays(), masks, strict=True):
            values[:] = array("Q", np.frombuffer(values, np.uint64)[mask].tobytes())

    def summary(self) -> dict[str, Any]:
        """The figures for the report. `longer_wins` and `agreement` are None if there is nothing to compare."""
        measured_agreement = ranking_agreement(self._repeated_rankings())
        return {
            "count": self.count,
            "responses": {str(size): count for size, count in sorted(self.sizes.items())},
            "pairs": self.pairs,
            "ties": self.ties,
            "all_tied": self.all_tied,
            "cut": self.num_cut,
            "known_ends": self.num_known_ends,
            "longer_wins": self._longer_wins_interval(),
            "labelers": len(self.labelers),
            "agreement": None
            if measured_agreement.rate is None
            else {"rate": measured_agreement.rate, "pairs": measured_agreement.num_pairs},
        }

    def _longer_wins_interval(self) -> dict[str, float] | None:
        """The share of pairs that the longer response wins, with a 95 % interval.

        Pairs of equal length count half. Rankings count as independent, not pairs: the pairs of one ranking share its
        responses. The interval is Wilson's, for as many trials as have the variance of the ratio estimate.
        """
        if not self.pairs:
            return None
        wins, wins_squared, wins_pairs, pairs_squared = self._moments
        rate = wins / self.pairs
        spread = max(0.0, wins_squared - 2 * rate * wins_pairs + rate * rate * pairs_squared)
        variance = spread * self.count / max(1, self.count - 1) / self.pairs**2
        trials = rate * (1 - rate) / variance if variance > 0 else float(self.count - self.all_tied)
        return {"rate": rate, **_wilson_interval(rate, min(trials, float(self.pairs))), "equal": self.num_equal_lengths}

    def _repeated_rankings(self) -> Iterator[Ranking]:
        """Yields the rankings of prompts that were ranked more than once, with hashes instead of texts."""
        prompts = np.frombuffer(self._prompts, np.uint64)
        sizes = np.frombuffer(self._sizes, np.uint64).astype(np.int64)
        ends = np.cumsum(sizes)
        values, inverse, counts = np.unique(prompts, return_inverse=True, return_counts=True)
        repeated = np.flatnonzero(counts > 1)[:MOST_COMPARED]
        times_seen: Counter[int] = Counter()
        for row in np.flatnonzero(np.isin(inverse, repeated)):
            prompt = int(values[inverse[row]])
            times_seen[prompt] += 1
            if times_seen[prompt] > MOST_RANKINGS:
                continue
            start, end = int(ends[row] - sizes[row]), int(ends[row])
            labeler = str(self._labelers[row]) if self._labelers[row] else None
            texts = tuple(map(str, self._responses[start:end]))
            yield Ranking(Prompt.of(str(prompt)), texts, tuple(self._ranks[start:end]), labeler)


def _count_longer_wins(ranking: Ranking) -> tuple[int, float, int]:
    """Returns (pairs with different ranks, pairs that the longer response wins, pairs of equal length).

    A pair of equal length counts as half a win.
    """
    pairs, wins, equal_lengths = 0, 0.0, 0
    lengths = map(len, ranking.responses)
    for (rank, length), (other_rank, other_length) in combinations(zip(ranking.ranks, lengths, strict=True), 2):
        if rank != other_rank:
            pairs += 1
            equal_lengths += length == other_length
            wins += 0.5 if length == other_length else (rank < other_rank) == (length > other_length)
    return pairs, wins, equal_lengths


def label_values(ranking: Ranking) -> list[int]:
    """Ranks and the labeler's hash: two rankings of the same responses are equal rows if these are equal."""
    return [*ranking.ranks, 0 if ranking.labeler is None else fingerprint(ranking.labeler)]


def _ranks_by_order(ranks: Sequence[int]) -> list[int]:
    """The ranks as 1, 2, 3, ..., in the same order and with the same ties."""
    new_ranks = {rank: number for number, rank in enumerate(sorted(set(ranks)), start=1)}
    return [new_ranks[rank] for rank in ranks]


def _wilson_interval(rate: float, trials: float) -> dict[str, float]:
    """Wilson's 95 % interval of a rate over this many trials."""
    centre = (rate + Z_95**2 / (2 * trials)) / (1 + Z_95**2 / trials)
    margin = Z_95 / (1 + Z_95**2 / trials) * math.sqrt(rate * (1 - rate) / trials + Z_95**2 / (4 * trials**2))
    # at a rate of 0 or 1 one end of the interval is exactly that rate, which rounding would miss
    return {"low": max(0.0, min(rate, centre - margin)), "high": min(1.0, max(rate, centre + margin))}
