"""A small run with a report, in the working folder."""

from pathlib import Path

import pytest

from tests.support.releases import make_run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run `first`, with base, SFT and policy in its report; the working folder is the one around it."""
    monkeypatch.chdir(tmp_path)
    return make_run(Path("."))
