"""Memory that runs out, in every kind of work: the run goes on in smaller pieces, to the same results."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_rlhf.configs.stages import PPOConfig, RewardConfig, SFTConfig
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stages import ppo, ppo_update, reward, sampler, scorer, sft
from lora_rlhf.stages.auto_batch import AutoBatch, is_out_of_memory
from lora_rlhf.stages.ppo_loop import PPOLoop
from lora_rlhf.system.errors import Stopped
from tests.support.stages import LIMITS, Models, rows_of


def batch_of(size: int = 8) -> AutoBatch:
    return AutoBatch("micro_batch_size", size, "buy memory")


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_what_does_not_fit_is_tried_in_halves(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    tried, batch = [], batch_of()

    def work(size: int) -> str:
        tried.append(size)
        if size > 2:
            raise error
        return "done"

    assert is_out_of_memory(error)
    with caplog.at_level(logging.WARNING):
        assert batch.run(work, "the update") == "done"
    assert tried == [8, 4, 2] and batch.size == 2
    assert "out of memory in the update: going on with micro_batch_size 4 (same results)" in caplog.text


@pytest.mark.slow
def test_one_that_does_not_fit_ends_the_run_with_the_flag_to_change() -> None:
    def work(size: int) -> None:
        raise torch.OutOfMemoryError(f"size {size}")

    with pytest.raises(Stopped, match="out of memory in scoring with micro_batch_size 1: buy memory\nsize 1") as caught:
        batch_of().run(work, "scoring")
    assert caught.value.status == 1


def test_other_errors_are_not_swallowed() -> None:
    def work(size: int) -> None:
        raise RuntimeError("expected scalar type Float but found Half")

    with pytest.raises(RuntimeError, match="expected scalar"):
        batch_of().run(work, "scoring")


# In whole stages


@pytest.fixture
def train(tiny_model: Models, data: Path, parents: Path, tmp_path: Path) -> Callable[..., SharedModel]:
    """train(stage, run, **changes of ppo's settings) -> the model after a short run of that stage."""

    def make(stage: str, run: str, **changes: Any) -> SharedModel:
        usual: dict[str, Any] = {"run": str(tmp_path / run), **LIMITS, "micro_batch_size": 8}
        if stage == "sft":
            sources: dict[str, Any] = {
                "model": str(tiny_model("llama")),
                "demonstrations": str(data / "demonstrations.jsonl"),
            }
            return sft.train(SFTConfig(**usual, **sources, epochs=1, batch_size=8, validation_fraction=0.1))
        usual |= {"sft": str(parents / "sft")}
        if stage == "reward":
            return reward.train(RewardConfig(**usual, rankings=str(data / "rankings.jsonl")))
        settings = {
            "iterations": 3,
            "batch_size": 8,
            "minibatch_size": 8,
            "num_epochs": 1,
            "generation_batch_size": 8,
            "engine": "plain",
            **changes,
        }
        text = {"pretraining_text": str(data / "text.jsonl"), "ptx_block_tokens": 16}
        sources = {"reward": str(parents / "reward"), "prompts": str(data / "prompts.jsonl")}
        return ppo.train(PPOConfig(accept_chance_reward=True, **(usual | settings | text | sources)))

    return make


def fails_above(
    function: Callable[..., Any], rows: Callable[..., int], limit: int, after: int, training: bool | None
) -> Callable[..., Any]:
    """`function`, which runs out of memory with more than `limit` rows, once it was called `after` times.

    Of its calls those count that are made in training, or those that are not; None: all.
    """
    calls = []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if training is not None and torch.is_grad_enabled() != training:
            return result
        calls.append(1)
        if len(calls) > after and rows(*args, **kwargs) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        return result

    return wrapped


def batch_rows(_model: SharedModel, batch: Any, *_: Any, **_settings: Any) -> int:
    return len(batch)


# (stage, role, module, function, how many rows it is given, what the log says ran out)
PLACES = [
    ("ppo", sampler, "generate_seeded", lambda model, prompts, seeds, batch_size, **_: batch_size, "sampling"),
    ("ppo", scorer, "response_scores", batch_rows, "scoring"),
    ("ppo", ppo, "response_values", batch_rows, "scoring"),
    ("ppo", ppo_update, "response_logprobs", batch_rows, "the update of policy"),
    ("ppo", ppo_update, "text_logprobs", batch_rows, "the update of policy"),
    ("ppo", ppo_update, "response_values", batch_rows, "the update of value"),
    ("reward", reward, "response_scores", batch_rows, "the update of reward"),
    ("reward", scorer, "response_scores", batch_rows, "scoring"),
    ("sft", sft, "counted_logprobs", lambda model, labels, *_, **__: len(labels), "the update of sft"),
]


IN_THE_SUITE = (0, 1, 3, 8)  # a rollout, scores, and the updates of two stages


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "module", "name", "rows", "what"),
    [
        pytest.param(*place, id=f"{place[4]}: {place[2]}", marks=[] if index in IN_THE_SUITE else pytest.mark.long)
        for index, place in enumerate(PLACES)
    ],
)
@pytest.mark.parametrize("after", [pytest.param(0, marks=pytest.mark.long), 2], ids=["at once", "later"])
def test_a_run_that_ran_out_of_memory_has_the_same_result(
    train: Callable[..., SharedModel],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    stage: str,
    module: Any,
    name: str,
    rows: Callable[..., int],
    what: str,
    after: int,
) -> None:
    """Equal but for the order of summation: within 1e-5 of the largest weight, and the same tokens sampled."""
    # by default values have no pass of their own, once the policy has moved
    changes = {"old_logprobs": "scored"} if (name, what) == ("response_values", "scoring") else {}
    whole = train(stage, "whole", **changes)
    with monkeypatch.context() as patch:
        training = None if what == "sampling" else what.startswith("the update")
        patch.setattr(module, name, fails_above(getattr(module, name), rows, 3, after, training))
        halved = train(stage, "halved", **changes)
    assert f"out of memory in {what}: going on with" in caplog.text
    for role in {"sft": ["sft"], "reward": ["reward"], "ppo": ["policy", "value"]}[stage]:
        expected, found = whole.adapter_state(role), halved.adapter_state(role)
        largest = max(float(value.abs().max()) for value in expected.values())
        for key, value in expected.items():
            assert float((value - found[key]).abs().max()) <= 1e-5 * max(1.0, largest), key
    if stage == "ppo":
        lengths = [[row["rollout/length"] for row in rows_of(tmp_path / run, "ppo")] for run in ("whole", "halved")]
        assert lengths[0] == lengths[1]


@pytest.mark.slow
def test_a_run_that_cannot_fit_fails_before_its_first_step(
    train: Callable[..., SharedModel], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The rehearsal has the longest prompt, the longest response and a full micro-batch."""
    seen: list[tuple[int, int]] = []

    def too_large(_model: SharedModel, batch: Any, *_: Any, **_settings: Any) -> Tensor:
        seen.append((len(batch), int(batch.response_mask.sum(dim=1).max())))
        raise torch.OutOfMemoryError("CUDA out of memory (injected)")

    monkeypatch.setattr(ppo_update, "response_logprobs", too_large)
    with pytest.raises(Stopped, match=r"out of memory in the update of policy with micro_batch_size 1: .*--gradient_"):
        train("ppo", "run")
    assert seen == [(8, 24), (4, 24), (2, 24), (1, 24)]
    assert not (tmp_path / "run" / "ppo" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_the_rehearsal_leaves_no_trace(train: Callable[..., SharedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train("ppo", "with").adapter_state("policy")
    monkeypatch.setattr(PPOLoop, "_rehearse", lambda *_: None)
    found = train("ppo", "without").adapter_state("policy")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
