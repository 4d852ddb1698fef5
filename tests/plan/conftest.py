"""What the plan's tests share: peaks of real tensors, and models examined once."""

from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from lora_rlhf.plan.config import PlanConfig
from lora_rlhf.plan.subject import MeasuredModel, measure_model


@pytest.fixture(scope="session")
def tinyworld() -> MeasuredModel:
    """The embedded model, as a GPU would hold it, with prompts of 24 tokens and responses of 8."""
    return measure_model(PlanConfig(model="tinyworld", max_prompt_tokens=24, max_response_tokens=8))


@pytest.fixture
def measured() -> Callable[[Callable[[], object]], int]:
    """measured(work) -> the most bytes that work has had from PyTorch's CPU allocator, counted by its profiler."""

    def measure(work: Callable[[], object]) -> int:
        work()  # what is made once and kept is not counted
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as profiler:
            work()
        assert profiler.profiler is not None
        events = profiler.profiler.kineto_results.events()
        sizes = [size for _, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")]
        return int(torch.tensor(sizes, dtype=torch.long).cumsum(0).max())

    return measure
