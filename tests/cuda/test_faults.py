"""Memory that runs out anywhere in a part of a stage: it is done again in smaller pieces, with the same result."""

import logging
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_rlhf.model.shared import SharedModel
from tests.cuda.conftest import Parts
from tests.support.pretended_cuda import Played

ROLES = ("sft", "reward", "policy", "value")
SHARES = (0.0, 0.35, 0.7, 1.0)  # of a part's allocations, after which the next one fails


@pytest.mark.slow
@pytest.mark.long
def test_memory_that_runs_out_anywhere(
    played: Played, parts: Parts, model: SharedModel, caplog: pytest.LogCaptureFixture
) -> None:
    before = {role: model.adapter_state(role) for role in ROLES}
    halved = Counter[str]()
    for name, work in parts.works.items():

        def once(fails_after: int | None, work: Any = work) -> Any:
            parts.reset_sizes()
            for role, state in before.items():
                model.load_adapter_state(role, state)
            played.allocations, played.allocations_left = 0, fails_after
            try:
                return work()
            finally:
                played.allocations_left = None

        once(None)  # what happens once, such as the state of an optimizer
        expected, count = once(None), played.allocations
        for share in SHARES:
            caplog.clear()
            try:
                result = once(int(share * (count - 1)))
            except torch.OutOfMemoryError:  # of ids, or in the optimizer's own step: there are no smaller pieces
                continue
            finally:
                assert model.active_role is None
            warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
            assert len(warnings) == 1 and "out of memory in " in warnings[0], (name, share, warnings)
            halved[name] += 1
            assert_same(name, result, expected)
    assert all(halved[name] >= 2 for name in parts.works), halved


def assert_same(name: str, result: Any, expected: Any) -> None:
    """Responses are the same; figures and judgements but for the order of summation."""
    if name.startswith("act"):
        assert result == expected
        return
    for key, value in (expected if isinstance(expected, dict) else vars(expected)).items():
        other = result[key] if isinstance(result, dict) else getattr(result, key)
        if isinstance(value, Tensor):
            torch.testing.assert_close(other, value, rtol=1e-3, atol=1e-4, msg=f"{name}: {key}")
        elif isinstance(value, float):
            assert other == pytest.approx(value, rel=1e-3, abs=1e-4), f"{name}: {key}"
