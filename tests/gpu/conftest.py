"""These tests run on the GPU that is there, and on a pretended one where there is none."""

from collections.abc import Iterator

import pytest
import torch

from tests.support.pretended_cuda import pretended


@pytest.fixture(autouse=True)
def gpu() -> Iterator[bool]:
    """Whether the GPU is a real one."""
    if torch.cuda.is_available():
        yield True
        return
    with pretended():
        yield False
