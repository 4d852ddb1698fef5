"""float16: losses are scaled so that small gradients survive, and an overflow lowers the scale."""

import logging
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from lora_rlhf.configs.stages import SFTConfig
from lora_rlhf.model.forward import text_logprobs
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stages.auto_batch import AutoBatch
from lora_rlhf.stages.trainer import FLOAT16_LOSS_SCALE, NotFinite, RoleOptimizer

Make = Callable[..., SharedModel]
IDS = torch.randint(3, 300, (4, 24), generator=torch.Generator().manual_seed(0))
CONFIG = SFTConfig(run="run", model="model", demonstrations="rows.jsonl")


def optimizer_of(model: SharedModel) -> RoleOptimizer:
    return RoleOptimizer(CONFIG, model, "policy", 1e-4, AutoBatch("micro_batch_size", 4, "advice"))


def accumulate(model: SharedModel, weight: float, size: int) -> dict[str, float]:
    """A loss whose gradient is as small as `weight` says."""
    logprobs = text_logprobs(model, IDS, torch.ones_like(IDS, dtype=torch.bool))
    loss = -weight * logprobs.mean()
    model.backward(loss)
    return {"loss": float(loss.detach())}


def gradient(model: SharedModel, weight: float, scale: float) -> Tensor:
    """The direction in which a step goes."""
    optimizer = optimizer_of(model)
    optimizer._loss_scale = scale
    optimizer.step(partial(accumulate, model, weight))
    gradients = [parameter.grad for _, parameter in model.named_parameters_of("policy") if parameter.grad is not None]
    flat = torch.cat([one.flatten() for one in gradients])
    return flat / flat.norm()


def test_small_gradients_survive_in_float16(shared_model: Make) -> None:
    """The loss is 1e-5 of a mean log-prob, as small as its share of a large batch of a wide model."""
    expected = gradient(shared_model(quantization="none", dtype="float32"), 1e-5, 1.0)
    scaled, unscaled = (
        gradient(shared_model(quantization="none", dtype="float16"), 1e-5, scale) for scale in (FLOAT16_LOSS_SCALE, 1.0)
    )
    assert float(expected @ scaled) > 0.999
    assert not float(expected @ unscaled) > 0.99  # not a number where all of it rounded to 0


def test_the_scale_changes_no_digit_of_a_float32_gradient(shared_model: Make) -> None:
    assert torch.equal(gradient(shared_model(), 1.0, 1.0), gradient(shared_model(), 1.0, 2.0**6))
    assert optimizer_of(shared_model())._loss_scale == 1


def test_an_overflow_lowers_the_scale_and_the_step_is_taken(
    shared_model: Make, caplog: pytest.LogCaptureFixture
) -> None:
    model = shared_model(quantization="none", dtype="float16")
    optimizer = optimizer_of(model)
    assert "policy.loss_scale" in optimizer.state() and optimizer.state()["policy.loss_scale"] == FLOAT16_LOSS_SCALE
    with caplog.at_level(logging.INFO, logger="lora_rlhf"):
        figures = optimizer.step(partial(accumulate, model, 2.0**10))
    lowered = float(optimizer.state()["policy.loss_scale"])
    assert 1 < lowered < FLOAT16_LOSS_SCALE and torch.tensor(figures["grad_norm"]).isfinite()
    assert f"the loss scale of policy is now {lowered:g}" in caplog.text
    assert model.loss_scale == 1
    going_on = optimizer_of(model)
    going_on.load(optimizer.state())
    assert going_on._loss_scale == lowered


def test_a_gradient_that_overflows_at_any_scale_is_not_applied(shared_model: Make) -> None:
    model = shared_model(quantization="none", dtype="float16")
    before, optimizer = model.adapter_state("policy"), optimizer_of(model)
    with pytest.raises(NotFinite, match="gradient"):
        optimizer.step(partial(accumulate, model, 1e9))
    assert all(torch.equal(before[name], value) for name, value in model.adapter_state("policy").items())


def test_a_loss_that_is_not_finite_is_no_matter_of_scale(shared_model: Make) -> None:
    model = shared_model(quantization="none", dtype="float16")
    optimizer = optimizer_of(model)
    with pytest.raises(NotFinite, match="loss"):
        optimizer.step(partial(accumulate, model, float("inf")))
    assert optimizer._loss_scale == FLOAT16_LOSS_SCALE
