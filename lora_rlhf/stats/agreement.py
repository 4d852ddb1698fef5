"""How far labelers agree beyond chance: Krippendorff's alpha over their rankings and over their ratings."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from lora_rlhf.data.labels import fingerprint
from lora_rlhf.data.schema import Ranking

# {value: how often it was given} -> the squared distance of two values
Distance = Callable[[Mapping[float, int]], Callable[[float, float], float]]


class Alpha(NamedTuple):
    """1: all agree; 0: agreement by chance; below 0: less than by chance. None if there is nothing to disagree about.

    `units`: those with a value from two labelers or more; `values`: of these units, in all.
    """

    alpha: float | None
    units: int
    values: int


def interval_distance(_: Mapping[float, int]) -> Callable[[float, float], float]:
    """Returns the distance of values that are numbers: the squared difference."""
    return lambda a, b: (a - b) ** 2


def ordinal_distance(counts: Mapping[float, int]) -> Callable[[float, float], float]:
    """Returns the distance of values that have an order alone: the squared number of values between them.

    Of the values at the two ends, half are counted.
    """
    below, positions = 0, {}
    for value in sorted(counts):
        positions[value] = below + counts[value] / 2
        below += counts[value]
    return lambda a, b: (positions[a] - positions[b]) ** 2


def krippendorff_alpha(units: Iterable[Sequence[float]], distance: Distance) -> Alpha:
    """Alpha = 1 - observed / expected disagreement (Krippendorff, Content Analysis, 2004, section 11.3).

    units: the values that labelers gave to each thing. Their number may differ; a unit with a single value is ignored.
    alpha is None without two different values.
    """
    values_by_unit = [values for values in map(tuple, units) if len(values) > 1]
    counts = Counter(value for values in values_by_unit for value in values)
    total = sum(counts.values())
    if len(counts) < 2:
        return Alpha(None, len(values_by_unit), total)
    squared_distance = distance(counts)
    observed_disagreement = sum(
        _disagreement(Counter(values), squared_distance) / (len(values) - 1) for values in values_by_unit
    )
    expected_disagreement = _disagreement(counts, squared_distance) / (total - 1)
    return Alpha(1 - observed_disagreement / expected_disagreement, len(values_by_unit), total)


def _disagreement(counts: Mapping[float, int], squared_distance: Callable[[float, float], float]) -> float:
    """Sum of the squared distances of all ordered pairs of these values."""
    return sum(2 * counts[a] * counts[b] * squared_distance(a, b) for a, b in combinations(counts, 2))


def alpha_of_rankings(rankings: Iterable[Ranking]) -> Alpha:
    """Alpha of the pairwise preferences that these rankings hold.

    A unit is a pair of responses of one prompt; its values are 1 (the first is better), 0 (a tie) and -1 (the second
    is). The texts' fingerprints decide which is the first, not their order in a row, so 1 and -1 are equally frequent.
    The distance is that of numbers: a tie is half-way between the two opposites.
    """
    units: dict[tuple[int, int, int], dict[Hashable, float]] = {}
    for row, ranking in enumerate(rankings):
        for pair, preference in _preferences(ranking):
            # A row without a name is a labeler of its own. Of one who ranked the same twice, the later row counts.
            units.setdefault(pair, {})[ranking.labeler or row] = preference
    return krippendorff_alpha((list(values.values()) for values in units.values()), interval_distance)


def _preferences(ranking: Ranking) -> Iterator[tuple[tuple[int, int, int], float]]:
    """(prompt, first, second) of each pair, as fingerprints, with 1 (the first is better), 0 (a tie) or -1."""
    prompt = fingerprint(ranking.prompt.key)
    ranks = {fingerprint(text.strip()): rank for text, rank in zip(ranking.responses, ranking.ranks, strict=True)}
    for first, second in combinations(sorted(ranks), 2):
        gap = ranks[second] - ranks[first]
        yield (prompt, first, second), float((gap > 0) - (gap < 0))


class PairAgreement(NamedTuple):
    """How far one labeler agrees with others, over the pairs of responses that both ordered.

    rate: in 0..1, of the `strict_pairs` that neither calls a tie. kappa, alpha: over all `pairs`, ties included, a pair
    counted once for each of the others who ordered it. None where there is nothing to compare.
    """

    rate: float | None
    strict_pairs: int
    kappa: float | None
    alpha: float | None
    pairs: int


def agreement_with(own: Iterable[Ranking], others: Iterable[Ranking]) -> PairAgreement:
    """How far the rankings of one labeler agree with those of others. The texts of prompts and responses are matched.

    kappa = (observed - chance) / (1 - chance) (Cohen, 1960) over better, tie and worse. alpha: of `krippendorff_alpha`
    with the distance of `alpha_of_rankings`. Which response of a pair comes first is arbitrary: both count each pair
    both ways round.
    """
    preference_by_pair = dict(item for ranking in own for item in _preferences(ranking))
    votes = [
        (preference_by_pair[pair], other)
        for ranking in others
        for pair, other in _preferences(ranking)
        if pair in preference_by_pair
    ]
    strict = [one * other for one, other in votes if one * other != 0]
    rate = strict.count(1.0) / len(strict) if strict else None
    both_ways = [*votes, *((-one, -other) for one, other in votes)]
    alpha = krippendorff_alpha(both_ways, interval_distance).alpha
    kappa = None
    if votes:
        observed = sum(one == other for one, other in votes) / len(votes)
        decided, other_decided = (sum(vote[side] != 0 for vote in votes) / len(votes) for side in (0, 1))
        chance = decided * other_decided / 2 + (1 - decided) * (1 - other_decided)
        kappa = (observed - chance) / (1 - chance) if chance < 1 else None
    return PairAgreement(rate, len(strict), kappa, alpha, len(votes))


def alpha_of_ratings(rankings: Iterable[Ranking], column: str = "ratings") -> Alpha:
    """Alpha of the ratings of single responses, from a column beside the rankings: a number or null for each response.

    A unit is a response of a prompt; the distance is the ordinal one, since nobody knows whether 6 and 7 are as far
    apart as 3 and 4. Rows whose column has another form are left out.
    """
    units: dict[tuple[int, int], dict[Hashable, float]] = {}
    for row, ranking in enumerate(rankings):
        ratings = ranking.prompt.meta.get(column)
        if not isinstance(ratings, list) or len(ratings) != len(ranking.responses):
            continue
        prompt = fingerprint(ranking.prompt.key)
        for text, rating in zip(ranking.responses, ratings, strict=True):
            if isinstance(rating, int | float) and not isinstance(rating, bool):
                units.setdefault((prompt, fingerprint(text)), {})[ranking.labeler or row] = float(rating)
    return krippendorff_alpha((list(values.values()) for values in units.values()), ordinal_distance)
