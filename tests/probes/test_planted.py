"""Each planted failure raises its own flag of the audit and no other's; the honest policy raises none."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lora_rlhf.evaluation.report_model import read_report
from tests.support.planted_runs import FLAG_OF

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(900),  # the first test trains: a minute, and several on a busy machine
    pytest.mark.xdist_group("planted"),  # while one worker trains, the others go on
]


@pytest.mark.parametrize("name", FLAG_OF)
def test_each_planted_failure_raises_its_own_flag_and_no_other(
    name: str, planted_report: Callable[[str], Path]
) -> None:
    audit = read_report(planted_report(name)).audit
    assert audit is not None
    raised = {flag: audit.flags[flag].why for flag in FLAG_OF.values() if flag and audit.flags[flag].raised}
    assert list(raised) == ([FLAG_OF[name]] if FLAG_OF[name] else []), raised
