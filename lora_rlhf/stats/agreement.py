"""How far labelers agree beyond chance: Krippendorff's alpha over their rankings and over their ratings."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from lora_rlhf.data.labels import fingerprint
from lora_rlhf.data.schema import Ranking

# {value: how often it was given} -> the squared distance of two values
Distance = Callable[[Mapping[float, int]], Callable[[float, float], float]]


class Alpha(NamedTuple):
    """1: all agree; 0: as chance would have it; below: less. None where there is nothing to disagree about.

    Over the `units` that two labelers or more gave a value, `values` in all.
    """

    alpha: float | None
    units: int
    values: int


def nominal(_: Mapping[float, int]) -> Callable[[float, float], float]:
    """Values are alike or not."""
    return lambda one, other: float(one != other)


def interval(_: Mapping[float, int]) -> Callable[[float, float], float]:
    """Values are numbers: the squared difference."""
    return lambda one, other: (one - other) ** 2


def ordinal(counts: Mapping[float, int]) -> Callable[[float, float], float]:
    """Values have an order alone: as far apart as values lie between them, the ends counted half."""
    before, places = 0, {}
    for value in sorted(counts):
        places[value] = before + counts[value] / 2
        before += counts[value]
    return lambda one, other: (places[one] - places[other]) ** 2


def krippendorff(units: Iterable[Sequence[float]], distance: Distance) -> Alpha:
    """Alpha = 1 - observed / expected disagreement (Krippendorff, Content Analysis, 2004, section 11.3).

    units: the values that labelers gave one thing; how many gave one may differ, and a unit with a single value says
    nothing. alpha is None below two units' worth of values, and where all values are the same.
    """
    kept = [values for values in map(tuple, units) if len(values) > 1]
    counts = Counter(value for values in kept for value in values)
    total = sum(counts.values())
    if len(counts) < 2:
        return Alpha(None, len(kept), total)
    apart = distance(counts)
    observed = sum(_apart(Counter(values), apart) / (len(values) - 1) for values in kept)
    expected = _apart(counts, apart) / (total - 1)
    return Alpha(1 - observed / expected, len(kept), total)


def _apart(counts: Mapping[float, int], apart: Callable[[float, float], float]) -> float:
    """Sum of the distances of all ordered pairs of these values."""
    return sum(2 * counts[one] * counts[other] * apart(one, other) for one, other in combinations(counts, 2))


def alpha_of_rankings(rankings: Iterable[Ranking]) -> Alpha:
    """Alpha of the pairwise preferences that these rankings hold.

    A unit is a pair of responses of one prompt; its values are 1 (the one is better), 0 (a tie) and -1 (the other is).
    Which is "the one" is told by the texts' fingerprints, not by their places, so both ways are as frequent. The
    distance is that of numbers: a tie lies half-way between the two opposites.
    """
    units: dict[tuple[int, int, int], dict[Hashable, float]] = {}
    for place, ranking in enumerate(rankings):
        key = fingerprint(ranking.prompt.key)
        ranks = {fingerprint(text): rank for text, rank in zip(ranking.responses, ranking.ranks, strict=True)}
        for one, other in combinations(sorted(ranks), 2):
            gap = ranks[other] - ranks[one]
            # without a name, everybody is somebody else; who ranked the same twice is heard once, with the later one
            units.setdefault((key, one, other), {})[ranking.labeler or place] = float((gap > 0) - (gap < 0))
    return krippendorff((list(values.values()) for values in units.values()), interval)


def alpha_of_ratings(rankings: Iterable[Ranking], column: str = "ratings") -> Alpha:
    """Alpha of the ratings of single responses, which stand beside the rankings in a column: one each, or null.

    A unit is a response of a prompt; the distance is the ordinal one, since nobody knows whether 6 and 7 are as far
    apart as 3 and 4. Rows whose column holds something else are left out.
    """
    units: dict[tuple[int, int], dict[Hashable, float]] = {}
    for place, ranking in enumerate(rankings):
        given = ranking.prompt.meta.get(column)
        if not isinstance(given, list) or len(given) != len(ranking.responses):
            continue
        key = fingerprint(ranking.prompt.key)
        for text, rating in zip(ranking.responses, given, strict=True):
            if isinstance(rating, int | float) and not isinstance(rating, bool):
                units.setdefault((key, fingerprint(text)), {})[ranking.labeler or place] = float(rating)
    return krippendorff((list(values.values()) for values in units.values()), ordinal)
