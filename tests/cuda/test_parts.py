"""All parts of the stages on a played GPU, of six families: no tensor is elsewhere, and both engines draw the same."""

import math

import pytest

from lora_rlhf.model.engines import find_static_fault
from lora_rlhf.model.shared import SharedModel
from tests.cuda.conftest import Parts
from tests.support.pretended_cuda import Played


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mistral", "qwen2", "qwen3", "gemma2", "phi", "gpt2"], indirect=True)
def test_every_part_runs_on_the_second_gpu(model: SharedModel, parts: Parts, played: Played) -> None:
    has_static = find_static_fault(model.config, 140) is None
    results = {}
    for name, work in parts.works.items():
        if has_static or "static" not in name:
            results[name] = work()
    if has_static:
        assert results["act, static"] == results["act, plain"]
        assert played.graphs > 0 and played.replays > played.graphs
    assert bool(results["judge"].scores.isfinite().all())
    for name in ("policy", "value", "sft", "reward"):
        assert all(map(math.isfinite, results[name].values())), name
