"""Run folders that mean harm, through the commands that read runs: refused in a line, soon, with little memory."""

from pathlib import Path

import pytest

from tests.support.hostile_runs import Place, sweep


@pytest.mark.slow
def test_hostile_runs_end_in_a_line(tmp_path: Path) -> None:
    """No run takes 5 s or 500 MiB more than a good one, or has anything outside of it written."""
    place = Place(tmp_path)
    faults = [
        f"{command} of run {number}: {fault}\n{outcome.said}"
        for command, number, outcome, fault in sweep(place, range(2))
        if fault
    ]
    assert faults == []
