"""Each optimizer moves as AdamW does, and what it remembers can be put back bit for bit."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from lora_rlhf.model.optimizers import copy_moments, load_moments, make_optimizer
from lora_rlhf.system.errors import UserError

RATE, EPS = 1e-2, 1e-5


def parameters() -> list[nn.Parameter]:
    """One below and one above the size from which bitsandbytes takes 8 bits."""
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((3, 5), (64, 128))]


def step(optimizer: torch.optim.Optimizer, trained: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in trained:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def adamw_step(gradient: float, rate: float) -> float:
    """The first move by Adam's definition: both moments corrected for their start at 0."""
    return -rate * gradient / (math.sqrt(gradient**2) + EPS)


@pytest.mark.parametrize(("name", "tolerance"), [("adamw", 1e-6), ("adamw_8bit", 1e-3)])
def test_first_move_is_adam_s_without_weight_decay(name: Any, tolerance: float) -> None:
    trained = parameters()
    before = [parameter.detach().clone() for parameter in trained]
    step(make_optimizer(name, trained, RATE, EPS), trained, seed=1)
    for parameter, old in zip(trained, before, strict=True):
        moved, gradient = (parameter.detach() - old).flatten().tolist(), parameter.grad.flatten().tolist()
        expected = [adamw_step(value, RATE) for value in gradient]
        assert moved == pytest.approx(expected, abs=tolerance * RATE + 1e-6)


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_moments_that_are_put_back_lead_to_the_same_bits(name: Any) -> None:
    trained = parameters()
    optimizer = make_optimizer(name, trained, RATE, EPS)
    for seed in range(3):
        step(optimizer, trained, seed)
    saved = [copy_moments(optimizer, parameter) for parameter in trained]
    middle = [parameter.detach().clone() for parameter in trained]
    step(optimizer, trained, 3)

    again = [nn.Parameter(tensor) for tensor in middle]
    fresh = make_optimizer(name, again, RATE, EPS)
    for parameter, state in zip(again, saved, strict=True):
        load_moments(fresh, parameter, state)
    step(fresh, again, 3)
    for parameter, repeated in zip(trained, again, strict=True):
        assert torch.equal(parameter, repeated)


def test_8_bits_are_8_bits_from_the_start() -> None:
    small, large = parameters()
    optimizer = make_optimizer("adamw_8bit", [small, large], RATE, EPS)
    assert copy_moments(optimizer, large)["state1"].dtype == torch.uint8
    assert copy_moments(optimizer, small)["state1"].dtype == torch.float32  # nothing to save there


@pytest.mark.parametrize("name", ["paged_adamw", "paged_adamw_8bit"])
def test_a_paged_one_needs_a_gpu(name: Any) -> None:
    with pytest.raises(UserError, match=f"optimizer is {name}, .* runs on cpu; take adamw or adamw_8bit"):
        make_optimizer(name, parameters(), RATE, EPS)
