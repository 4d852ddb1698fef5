"""GAE on ragged batches, and the two critic-free advantages."""

import math
import random
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lora_rlhf.algo.advantages import MovingBaseline, dr_grpo, gae, grpo, has_spread, rloo, step_rewards
from tests.support import reference

WIDTH = 7


def ragged(seed: int, lengths: tuple[int, ...] = (4, 1, 7, 0, 3)) -> list[list[float]]:
    rng = random.Random(seed)
    return [[rng.gauss(0, 1) for _ in range(length)] for length in lengths]


REWARDS, VALUES = ragged(0), ragged(1)
MASK = torch.tensor(reference.prefix_mask(REWARDS, WIDTH))


def tensor(rows: list[list[float]], fill: float = 0.0) -> Tensor:
    return torch.tensor(reference.pad(rows, WIDTH, fill), dtype=torch.float64, requires_grad=True)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, WIDTH), min_size=1, max_size=4).map(tuple),
    gamma=st.sampled_from([1.0, 0.9, 0.0]),
    lam=st.sampled_from([1.0, 0.95, 0.3, 0.0]),
    seed=st.integers(0, 1000),
)
def test_gae_equals_the_sum_of_its_definition(lengths: tuple[int, ...], gamma: float, lam: float, seed: int) -> None:
    rewards, values = ragged(seed, lengths), ragged(seed + 1, lengths)
    mask = torch.tensor(reference.prefix_mask(rewards, WIDTH))
    results = gae(tensor(rewards, math.nan), tensor(values, math.nan), mask, gamma, lam)
    expected = zip(*(reference.gae(r, v, gamma, lam) for r, v in zip(rewards, values, strict=True)), strict=True)
    for result, rows in zip(results, expected, strict=True):
        torch.testing.assert_close(result, tensor(list(rows)), rtol=0, atol=1e-12)


def test_gae_by_hand() -> None:
    """deltas 0.5, -0.3, 1.0 - 0.2 = 0.8; with lam 0.5: 0.8, -0.3 + 0.4 = 0.1, 0.5 + 0.05 = 0.55."""
    rewards = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    values = torch.tensor([[0.0, 0.5, 0.2]], dtype=torch.float64)
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=1.0, lam=0.5)
    assert advantages.tolist() == [pytest.approx([0.55, 0.1, 0.8], abs=1e-12)]
    assert returns.tolist() == [pytest.approx([0.55, 0.6, 1.0], abs=1e-12)]


def test_the_defaults_are_gamma_1_and_lambda_0_95() -> None:
    rewards, values = tensor(REWARDS), tensor(VALUES)
    for default, explicit in zip(gae(rewards, values, MASK), gae(rewards, values, MASK, 1.0, 0.95), strict=True):
        assert torch.equal(default, explicit)


def test_at_gamma_and_lambda_1_the_return_is_what_is_still_to_come() -> None:
    _, returns = gae(tensor(REWARDS), tensor(VALUES), MASK, gamma=1.0, lam=1.0)
    to_come = [[math.fsum(row[t:]) for t in range(len(row))] for row in REWARDS]
    torch.testing.assert_close(returns, tensor(to_come), rtol=0, atol=1e-12)


def test_a_value_that_knows_the_future_leaves_no_advantage() -> None:
    to_come = tensor([[math.fsum(row[t:]) for t in range(len(row))] for row in REWARDS])
    advantages, _ = gae(tensor(REWARDS), to_come, MASK, gamma=1.0, lam=0.7)
    assert advantages.abs().max() < 1e-12


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_masked_cells_touch_neither_value_nor_gradient(poison: float) -> None:
    outcomes = []
    for fill in (0.0, poison):
        rewards, values = tensor(REWARDS, fill), tensor(VALUES, fill)
        advantages, returns = gae(rewards, values, MASK)
        (advantages.square().sum() + returns.sum()).backward()
        outcomes.append((advantages, returns, rewards.grad, values.grad))
    for clean, poisoned in zip(*outcomes, strict=True):
        assert torch.equal(clean, poisoned) and not clean[~MASK].any() and clean[MASK].any()


def test_permuting_rows_permutes_results() -> None:
    order = torch.tensor([3, 1, 4, 0, 2])
    permuted = gae(tensor(REWARDS)[order], tensor(VALUES)[order], MASK[order])
    for moved, plain in zip(permuted, gae(tensor(REWARDS), tensor(VALUES), MASK), strict=True):
        assert torch.equal(moved, plain[order])


def test_gradients_are_the_numerical_ones() -> None:
    assert torch.autograd.gradcheck(lambda r, v: gae(r, v, MASK, 0.9, 0.8), (tensor(REWARDS), tensor(VALUES)))


def test_a_left_padded_mask_is_an_error() -> None:
    with pytest.raises(ValueError, match="left-padded"):
        gae(tensor(REWARDS), tensor(VALUES), MASK.flip(1))


GROUPS = [[1.0, 3.0, -2.0], [0.5, 0.5, 4.0]]
SCORES = torch.tensor([score for group in GROUPS for score in group], dtype=torch.float64)


def test_critic_free_advantages_equal_the_reference() -> None:
    pairs: list[tuple[Any, Any]] = [
        (rloo, reference.rloo),
        (dr_grpo, reference.dr_grpo),
        (partial(grpo, eps=0.1), partial(reference.grpo, eps=0.1)),
    ]
    for function, definition in pairs:
        expected = [advantage for group in GROUPS for advantage in definition(group)]
        assert function(SCORES, 3).tolist() == pytest.approx(expected, abs=1e-12)


def test_critic_free_advantages_by_hand() -> None:
    pair = torch.tensor([1.0, 4.0], dtype=torch.float64)
    assert rloo(pair, 2).tolist() == [-3.0, 3.0]
    assert dr_grpo(pair, 2).tolist() == [-1.5, 1.5]
    assert grpo(pair, 2, eps=0.0).tolist() == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)], abs=1e-12)


@pytest.mark.parametrize("function", [rloo, grpo, dr_grpo])
def test_groups_are_islands(function) -> None:
    raised = SCORES.clone()
    raised[3:] += 100.0  # a whole group easier than the other: nothing changes
    torch.testing.assert_close(function(raised, 3), function(SCORES, 3), rtol=0, atol=1e-12)
    swapped = function(SCORES.view(2, 3).flip(0).reshape(-1), 3)
    assert torch.equal(swapped, function(SCORES, 3).view(2, 3).flip(0).reshape(-1))
    assert not function(torch.full((4,), 2.5), 2).any()  # a group that agrees teaches nothing
    assert torch.autograd.gradcheck(lambda scores: function(scores, 3), SCORES.clone().requires_grad_())


@pytest.mark.parametrize("function", [rloo, grpo, dr_grpo])
def test_groups_that_do_not_fit_are_an_error(function) -> None:
    with pytest.raises(ValueError, match=r"scores \(6\) must be a multiple of group_size \(4\)"):
        function(SCORES, 4)
    with pytest.raises(ValueError, match="at least 2"):
        function(SCORES, 1)


def test_reinforce_takes_the_mean_of_earlier_scores_off() -> None:
    batches = [[1.0, 3.0, -2.0], [0.5, 4.5, 4.0], [7.0, 1.0, 1.0], [0.0, 2.0, 4.0]]
    baseline = MovingBaseline(decay=0.7)
    for batch, expected in zip(batches, reference.reinforce(batches, 0.7), strict=True):
        scores = torch.tensor(batch, dtype=torch.float64)
        assert baseline.advantages(scores).tolist() == pytest.approx(expected, abs=1e-12)
        baseline.update(scores)
    assert MovingBaseline().decay == 0.9


def test_groups_without_spread() -> None:
    scores = torch.tensor([1.0, 1.0, 0.0, 1.0, -1.0, -1.0])
    assert has_spread(scores, 2).tolist() == [False, False, True, True, False, False]
    assert has_spread(scores, 3).tolist() == [True] * 6
    with pytest.raises(ValueError, match="at least 2"):
        has_spread(scores, 1)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("product", [0.0, 0.5, 0.0, 0.5 * 0.8 - 0.5, 0.5 * 0.8 * 0.25 - 0.5 * 0.8, 0.0]),
        ("minimum", [0.0, 0.5, 0.0, 0.0, 0.25 - 0.5, 0.0]),
        ("last", [0.0, 0.0, 0.0, 0.0, 0.25, 0.0]),
    ],
)
def test_steps_are_paid_by_the_difference_that_they_make(form: str, expected: list[float]) -> None:
    nan = math.nan
    probabilities = torch.tensor([[nan, 0.5, nan, 0.8, 0.25, nan], [nan] * 6], dtype=torch.float64)
    ends = ~probabilities.isnan()
    rewards = step_rewards(probabilities, ends, form)
    assert rewards.tolist() == [pytest.approx(expected, abs=1e-12), [0.0] * 6]
