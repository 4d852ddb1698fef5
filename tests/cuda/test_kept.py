"""Slots, captured steps and merged weights live from rollout to rollout where there is room, and answer the same."""

import logging

import pytest

from lora_rlhf.model.shared import SharedModel
from tests.cuda.conftest import Parts
from tests.support.pretended_cuda import Played


@pytest.mark.slow
def test_the_second_iteration_captures_nothing(
    played: Played,
    parts: Parts,
    model: SharedModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    act = {name: work for name, work in parts.works.items() if "static" in name}
    captures = {}
    for name, rollout in act.items():
        rollout()
        parts.works["policy"]()  # the adapter that the captured steps read changes in place
        before = played.graphs
        again = rollout()
        captures[name] = played.graphs - before
        assert again == parts.works["act, plain"](), name
    assert captures == dict.fromkeys(act, 0)

    # memory that runs out in training is that of what is kept: it goes, and the size stays
    played.allocations_left = 100
    with caplog.at_level(logging.WARNING, logger="lora_rlhf"):
        parts.works["policy"]()
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory in the update of policy: nothing is kept for the next rollout from now on"
    ]
    assert {batch.size for batch in parts.batches} == {4}
    before = played.graphs
    assert act["act, static"]() == parts.works["act, plain"]()
    assert played.graphs > before
