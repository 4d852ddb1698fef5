"""The gate passes the honest run of the tiny world and blocks each planted failure, by its own flag among others."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lora_rlhf.cli.main import main
from tests.support.planted_runs import FLAG_OF

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(900),  # the first test trains: a minute, and several on a busy machine
    pytest.mark.xdist_group("planted"),  # while one worker trains, the others go on
]


@pytest.mark.parametrize("name", FLAG_OF)
def test_the_honest_run_passes_and_each_planted_failure_is_blocked_by_its_own_flag(
    name: str, planted_report: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    report = planted_report(name)
    capsys.readouterr()
    status: object = 0
    try:
        main(["gate", "--candidate", "sft", "--baseline", "baseline:sft", "--report", str(report)])
    except SystemExit as ended:
        status = ended.code
    table = capsys.readouterr().out
    failed = {line.split()[1] for line in table.splitlines() if line.startswith("FAIL  ")}
    own = FLAG_OF[name]
    assert status == (0 if own is None else 1), table
    assert f"audit.flags.{own}" in failed if own else not failed, table
