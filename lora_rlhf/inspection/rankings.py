"""What the rankings of one file are: their sizes, ties and labelers, whether longer responses win, who agrees."""

import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from lora_rlhf.data.labels import agreement, fingerprint
from lora_rlhf.data.schema import Prompt, Ranking
from lora_rlhf.inspection.duplicates import MOST

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % point
MOST_NAMES = 10_000  # different labelers that are told apart
MOST_COMPARED = 10_000  # prompts with several rankings that agreement is measured on
MOST_RANKINGS = 20  # rankings of one prompt that are compared with one another


class RankingFigures:
    """Rankings of one file, summed up as they come; of each, hashes are kept to compare labelers."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most  # responses whose hashes are kept
        self.count = self.all_tied = self.pairs = self.ties = 0
        self.equal = 0  # pairs that are no ties, of responses of one length
        self.sizes: Counter[int] = Counter()
        self.labelers: set[str] = set()
        # of longer winners w and pairs p of each ranking: the sums of w, w * w, w * p, p * p
        self._moments = [0.0, 0.0, 0.0, 0.0]
        self._threshold = 1 << 64
        self._prompts, self._labelers, self._sizes = array("Q"), array("Q"), array("Q")
        self._responses, self._ranks = array("Q"), array("Q")

    def add(self, ranking: Ranking, key: int, responses: Sequence[int]) -> None:
        """Counts one ranking, with the hashes of its prompt and of its responses."""
        pairs, longer, equal = _longer_wins(ranking)
        size = len(ranking.responses)
        self.count += 1
        self.sizes[size] += 1
        self.pairs += pairs
        self.ties += size * (size - 1) // 2 - pairs
        self.all_tied += not pairs
        self.equal += equal
        moments = self._moments
        moments[0] += longer
        moments[1] += longer * longer
        moments[2] += longer * pairs
        moments[3] += pairs * pairs
        if ranking.labeler is not None and len(self.labelers) < MOST_NAMES:
            self.labelers.add(ranking.labeler)
        if key < self._threshold:
            self._keep(ranking, key, responses)

    def merge(self, other: "RankingFigures") -> None:
        """Adds what another part of the file holds."""
        for name in ("count", "all_tied", "pairs", "ties", "equal"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.sizes.update(other.sizes)
        self.labelers |= other.labelers
        self._moments = [sum(pair) for pair in zip(self._moments, other._moments, strict=True)]
        for values, other_values in zip(self._kept(), other._kept(), strict=True):
            values.extend(other_values)
        self._threshold = min(self._threshold, other._threshold)
        self._thin()
        self._shrink()

    def _kept(self) -> list[array]:
        return [self._prompts, self._labelers, self._sizes, self._responses, self._ranks]

    def _keep(self, ranking: Ranking, key: int, responses: Sequence[int]) -> None:
        self._prompts.append(key)
        self._labelers.append(0 if ranking.labeler is None else fingerprint(ranking.labeler))
        self._sizes.append(len(ranking.responses))
        self._responses.extend(responses)
        self._ranks.extend(ranking.ranks if max(ranking.ranks) < 1 << 64 else _dense(ranking.ranks))
        self._shrink()

    def _shrink(self) -> None:
        while len(self._responses) > self.most and self._threshold > 1:
            self._threshold //= 2
            self._thin()

    def _thin(self) -> None:
        """Forgets the prompts whose hash is not below the threshold: all rankings of a prompt stay or go together."""
        if self._threshold == 1 << 64:
            return
        kept = np.frombuffer(self._prompts, np.uint64) < np.uint64(self._threshold)
        of_responses = np.repeat(kept, np.frombuffer(self._sizes, np.uint64).astype(np.int64))
        chosen_of = [kept, kept, kept, of_responses, of_responses]
        for values, chosen in zip(self._kept(), chosen_of, strict=True):
            values[:] = array("Q", np.frombuffer(values, np.uint64)[chosen].tobytes())

    def summary(self) -> dict[str, Any]:
        """Figures for the report; shares are of 1, `longer_wins` and `agreement` None where nothing can be compared."""
        measured = agreement(self._repeated())
        return {
            "count": self.count,
            "responses": {str(size): count for size, count in sorted(self.sizes.items())},
            "pairs": self.pairs,
            "ties": self.ties,
            "all_tied": self.all_tied,
            "longer_wins": self._longer_wins_interval(),
            "labelers": len(self.labelers),
            "agreement": None if measured.rate is None else {"rate": measured.rate, "pairs": measured.num_pairs},
        }

    def _longer_wins_interval(self) -> dict[str, float] | None:
        """How often the longer response wins, with a 95 % interval; the pairs of `equal` length count half.

        Rankings count as independent, not pairs: the pairs of one ranking share its responses. Wilson's interval for
        as many trials as have the ratio estimate's variance.
        """
        if not self.pairs:
            return None
        wins, wins_squared, wins_pairs, pairs_squared = self._moments
        rate = wins / self.pairs
        spread = max(0.0, wins_squared - 2 * rate * wins_pairs + rate * rate * pairs_squared)
        variance = spread * self.count / max(1, self.count - 1) / self.pairs**2
        trials = rate * (1 - rate) / variance if variance > 0 else float(self.count - self.all_tied)
        return {"rate": rate, **_wilson(rate, min(trials, float(self.pairs))), "equal": self.equal}

    def _repeated(self) -> Iterator[Ranking]:
        """Rankings of prompts that were ranked more than once, with hashes in the place of texts."""
        prompts = np.frombuffer(self._prompts, np.uint64)
        sizes = np.frombuffer(self._sizes, np.uint64).astype(np.int64)
        ends = np.cumsum(sizes)
        values, inverse, counts = np.unique(prompts, return_inverse=True, return_counts=True)
        chosen = np.flatnonzero(counts > 1)[:MOST_COMPARED]
        seen: Counter[int] = Counter()
        for row in np.flatnonzero(np.isin(inverse, chosen)):
            prompt = int(values[inverse[row]])
            seen[prompt] += 1
            if seen[prompt] > MOST_RANKINGS:
                continue
            start, end = int(ends[row] - sizes[row]), int(ends[row])
            labeler = str(self._labelers[row]) if self._labelers[row] else None
            texts = tuple(map(str, self._responses[start:end]))
            yield Ranking(Prompt.of(str(prompt)), texts, tuple(self._ranks[start:end]), labeler)


def _longer_wins(ranking: Ranking) -> tuple[int, float, int]:
    """(pairs that are not ties, those of them that the longer response wins, equal lengths as half, equal lengths)."""
    pairs, wins, equal = 0, 0.0, 0
    lengths = map(len, ranking.responses)
    for (rank, length), (other_rank, other_length) in combinations(zip(ranking.ranks, lengths, strict=True), 2):
        if rank != other_rank:
            pairs += 1
            equal += length == other_length
            wins += 0.5 if length == other_length else (rank < other_rank) == (length > other_length)
    return pairs, wins, equal


def label_of(ranking: Ranking) -> list[int]:
    """What makes two rankings of the same responses different rows."""
    return [*ranking.ranks, 0 if ranking.labeler is None else fingerprint(ranking.labeler)]


def _dense(ranks: Sequence[int]) -> list[int]:
    dense = {rank: number for number, rank in enumerate(sorted(set(ranks)), start=1)}
    return [dense[rank] for rank in ranks]


def _wilson(rate: float, trials: float) -> dict[str, float]:
    centre = (rate + Z_95**2 / (2 * trials)) / (1 + Z_95**2 / trials)
    margin = Z_95 / (1 + Z_95**2 / trials) * math.sqrt(rate * (1 - rate) / trials + Z_95**2 / (4 * trials**2))
    # at a rate of 0 or 1 the near end is that rate exactly, which rounding would miss
    return {"low": max(0.0, min(rate, centre - margin)), "high": min(1.0, max(rate, centre + margin))}
