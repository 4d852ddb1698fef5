"""Run folders that mean harm, through the commands that read runs: refused in a line, soon, with little memory."""

from pathlib import Path

import pytest

from tests.support.hostile_runs import Place, sweep


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "numbers",
    [range(2), *(pytest.param(range(first, first + 40), marks=pytest.mark.long) for first in range(0, 200, 40))],
)
def test_hostile_runs_end_in_a_line(numbers: range, tmp_path: Path) -> None:
    """No run takes 5 s or 500 MiB more than a good one, or has anything outside of it written."""
    place = Place(tmp_path)
    faults = [
        f"{command} of run {number}: {fault}\n{outcome.said}"
        for command, number, outcome, fault in sweep(place, numbers)
        if fault
    ]
    assert faults == []
