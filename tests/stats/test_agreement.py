"""Krippendorff's alpha: worked examples from the literature, the `krippendorff` package, and what counts as a unit."""

import math
import random
from typing import Any

import krippendorff as package
import pytest

from lora_rlhf.data.schema import Prompt, Ranking
from lora_rlhf.stats.agreement import (
    Distance,
    alpha_of_rankings,
    alpha_of_ratings,
    interval_distance,
    krippendorff_alpha,
    ordinal_distance,
)

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), example C: 4 observers, 12 units, values missing.
EXAMPLE = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


def units_of(table: list[list[int | None]]) -> list[list[float]]:
    return [[float(value) for value in column if value is not None] for column in zip(*table, strict=True)]


@pytest.mark.parametrize(("distance", "published"), [(ordinal_distance, 0.815), (interval_distance, 0.849)])
def test_the_published_example(distance: Distance, published: float) -> None:
    alpha, units, values = krippendorff_alpha(units_of(EXAMPLE), distance)
    assert alpha == pytest.approx(published, abs=5e-4)
    assert (units, values) == (11, 40)  # the last unit has one value and says nothing


@pytest.mark.parametrize(("name", "distance"), [("ordinal", ordinal_distance), ("interval", interval_distance)])
@pytest.mark.parametrize("seed", range(5))
def test_the_package_finds_the_same(name: Any, distance: Distance, seed: int) -> None:
    rng = random.Random(seed)
    table = [[rng.choice([1, 2, 2, 3, 5, 7, None]) for _ in range(30)] for _ in range(4)]
    data = [[math.nan if value is None else value for value in row] for row in table]
    expected = package.alpha(reliability_data=data, level_of_measurement=name)
    assert krippendorff_alpha(units_of(table), distance).alpha == pytest.approx(expected, abs=1e-12)


def test_two_observers_by_hand() -> None:
    # 2 x 3 values (1, 1), (1, 2), (2, 2): 1 of 3 units differs; of 6 values 3 are 1 and 3 are 2.
    # observed = 2 * 1 / 6 values = 1/3; expected = 3 * 3 * 2 / (6 * 5) = 3/5; alpha = 1 - (1/3) / (3/5) = 4/9
    assert krippendorff_alpha([[1, 1], [1, 2], [2, 2]], interval_distance).alpha == pytest.approx(4 / 9, abs=1e-12)


def test_nothing_to_disagree_about_has_no_alpha() -> None:
    assert krippendorff_alpha([], interval_distance) == (None, 0, 0)
    assert krippendorff_alpha([[1.0], [2.0]], interval_distance) == (None, 0, 0)
    assert krippendorff_alpha([[1.0, 1.0], [1.0, 1.0]], interval_distance) == (None, 2, 4)


def ranked(labeler: str | None, ranks: tuple[int, ...], responses: str = "abc", **meta: object) -> Ranking:
    return Ranking(
        Prompt.of("q") if not meta else Prompt(Prompt.of("q").messages, dict(meta)), tuple(responses), ranks, labeler
    )


def test_preferences_of_pairs_are_matched_by_their_texts() -> None:
    # Ann: a > b > c. Ben sees them the other way round and means the same.
    assert alpha_of_rankings([ranked("Ann", (1, 2, 3)), ranked("Ben", (3, 2, 1), "cba")]).alpha == 1.0
    opposed = alpha_of_rankings([ranked("Ann", (1, 2, 3)), ranked("Ben", (3, 2, 1))])
    assert opposed.alpha is not None and opposed.alpha < -0.5
    assert (opposed.units, opposed.values) == (3, 6)


def test_a_tie_is_half_a_disagreement() -> None:
    def alpha(ben: tuple[int, ...]) -> float:
        value = alpha_of_rankings([ranked("Ann", (1, 2, 3)), ranked("Ben", ben)]).alpha
        assert value is not None
        return value

    assert alpha((1, 2, 3)) > alpha((1, 1, 2)) > alpha((2, 1, 3))


def test_one_person_does_not_agree_with_herself() -> None:
    assert alpha_of_rankings([ranked("Ann", (1, 2, 3)), ranked("Ann", (1, 2, 3))]).units == 0
    assert alpha_of_rankings([ranked(None, (1, 2, 3)), ranked(None, (1, 2, 3))]).units == 3


def test_ratings_are_one_unit_a_response() -> None:
    rows = [
        ranked("Ann", (1, 2, 3), ratings=[7, 4, 1]),
        ranked("Ben", (1, 2, 3), ratings=[6, None, 1]),
        ranked("Cleo", (1, 2, 3), ratings="7 4 1"),
        ranked("Dan", (1, 2, 3)),
    ]
    alpha, units, values = alpha_of_ratings(rows)
    expected = package.alpha(reliability_data=[[7.0, 4.0, 1.0], [6.0, math.nan, 1.0]], level_of_measurement="ordinal")
    assert alpha == pytest.approx(expected, abs=1e-12)
    assert (units, values) == (2, 4)
