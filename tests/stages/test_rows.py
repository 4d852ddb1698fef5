"""A split that would leave one side empty is refused with a way out that works."""

import re

import pytest

from lora_rlhf.data.schema import split_position
from lora_rlhf.data.spool import Spool
from lora_rlhf.stages.rows import Split
from lora_rlhf.system.errors import UserError


def split_of_rows(openings: list[str], fraction: float) -> Split[str]:
    split = Split(fraction, Spool(str, str), Spool(str, str))
    for opening in openings:
        split.add(opening, opening)
    return split


def openings(*low_and_high: tuple[float, float]) -> list[str]:
    """One opening for each range of positions."""
    candidates = [f"user: {number}" for number in range(3000)]
    return [next(c for c in candidates if low < split_position(c) < high) for low, high in low_and_high]


def test_the_fraction_that_is_offered_holds_some_out_and_trains_on_the_others() -> None:
    rows = openings((0.281, 0.289), (0.60, 0.61), (0.9, 0.95))
    with pytest.raises(UserError, match=r"f\.jsonl: validation_fraction 0\.05 holds out none of its 3 rows") as error:
        split_of_rows(rows, 0.05).require_both("f.jsonl")
    offered = float(re.search(r"--validation_fraction ([\d.]+) would, and 0 trains on all", str(error.value))[1])
    assert offered == 0.29
    split = split_of_rows(rows, offered)
    split.require_both("f.jsonl")
    assert (len(split.validation), len(split.train)) == (1, 2)


@pytest.mark.parametrize(
    "rows",
    [
        openings((0.281, 0.289)),
        openings((0.281, 0.289)) * 3,  # one prompt, three times
        openings((0.281, 0.284), (0.285, 0.289)),  # no hundredth between them
        openings((0.991, 0.999)),
    ],
)
def test_where_nothing_can_be_held_out_only_0_is_offered(rows: list[str]) -> None:
    with pytest.raises(UserError, match="too few to hold some out") as error:
        split_of_rows(rows, 0.05).require_both("f.jsonl")
    assert re.findall(r"--validation_fraction ([\d.]+)", str(error.value)) == ["0"]
    assert (f"{len(rows)} row," if len(rows) == 1 else f"{len(rows)} rows,") in str(error.value)
    split = split_of_rows(rows, 0.0)
    split.require_both("f.jsonl")
    assert len(split.train) == len(rows)


def test_a_split_with_both_sides_is_accepted() -> None:
    split_of_rows(openings((0.01, 0.04), (0.5, 0.6)), 0.05).require_both("f.jsonl")
