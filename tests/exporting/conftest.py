"""Runs on tiny models for every test of an export."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.exports import write_run


@pytest.fixture
def tiny_run(tiny_model: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """tiny_run(architecture, quantization, compute_dtype) -> the folder of a run on that tiny model."""

    def make(name: str = "llama", **settings: Any) -> Path:
        return write_run(tmp_path / "runs" / name, tiny_model(name), **settings)

    return make
