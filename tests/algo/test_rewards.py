"""Where the score lands, what leaving the reference costs, and what an unfinished response gets."""

import math

import pytest
import torch

from lora_rlhf.algo.advantages import apply_missing_eos, token_rewards
from tests.support import reference

KL = [[0.1, -0.2, 0.3, 0.05], [0.4], [-0.1, 0.2]]
SCORES = [1.5, -0.7, 2.0]
WIDTH = 5
MASK = torch.tensor(reference.prefix_mask(KL, WIDTH))
SCORES_TENSOR = torch.tensor(SCORES, dtype=torch.float64)


def kl_tensor(fill: float = 0.0) -> torch.Tensor:
    return torch.tensor(reference.pad(KL, WIDTH, fill), dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("poison", [0.0, math.nan, math.inf])
def test_equals_the_reference_and_is_blind_to_padding(poison: float) -> None:
    kl, scores = kl_tensor(poison), SCORES_TENSOR.clone().requires_grad_()
    rewards = token_rewards(scores, kl, MASK, kl_coef=0.3)
    expected = reference.pad([reference.token_rewards(s, row, 0.3) for s, row in zip(SCORES, KL, strict=True)], WIDTH)
    torch.testing.assert_close(rewards, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    rewards.sum().backward()
    assert kl.grad is not None and scores.grad is not None
    assert torch.equal(kl.grad, -0.3 * MASK.double())
    assert torch.equal(scores.grad, torch.ones(3, dtype=torch.float64))


def test_the_score_lands_on_the_last_counted_token_and_nowhere_else() -> None:
    rewards = token_rewards(SCORES_TENSOR, torch.zeros(3, WIDTH, dtype=torch.float64), MASK, kl_coef=0.0)
    assert rewards.tolist() == [[0, 0, 0, 1.5, 0], [-0.7, 0, 0, 0, 0], [0, 2.0, 0, 0, 0]]


def test_a_response_that_fills_the_width_keeps_its_score() -> None:
    full = torch.ones(1, 3, dtype=torch.bool)
    assert token_rewards(torch.tensor([2.0]), torch.zeros(1, 3), full, 0.1).tolist() == [[0, 0, 2.0]]


def test_permuting_responses_permutes_rewards() -> None:
    order = torch.tensor([2, 0, 1])
    permuted = token_rewards(SCORES_TENSOR[order], kl_tensor()[order], MASK[order], 0.3)
    assert torch.equal(permuted, token_rewards(SCORES_TENSOR, kl_tensor(), MASK, 0.3)[order])


def test_a_response_without_a_token_is_an_error() -> None:
    mask = MASK.clone()
    mask[1] = False
    with pytest.raises(ValueError, match="response 1 has no counted token"):
        token_rewards(SCORES_TENSOR, kl_tensor(), mask, 0.3)


def test_a_left_padded_mask_is_an_error() -> None:
    with pytest.raises(ValueError, match="left-padded"):
        token_rewards(SCORES_TENSOR, kl_tensor(), MASK.flip(1), 0.3)


def test_missing_eos_replaces_the_score_of_unfinished_responses_only() -> None:
    has_eos = torch.tensor([True, False, True])
    assert apply_missing_eos(SCORES_TENSOR, has_eos, -1.0).tolist() == [1.5, -1.0, 2.0]
    assert apply_missing_eos(SCORES_TENSOR, ~has_eos, -1.0).tolist() == [-1.0, -0.7, -1.0]
    assert apply_missing_eos(SCORES_TENSOR, has_eos, 0.0).tolist() == [1.5, 0.0, 2.0]  # 0 is a score, not "off"
    assert torch.equal(apply_missing_eos(SCORES_TENSOR, has_eos, None), SCORES_TENSOR)
    assert SCORES_TENSOR.tolist() == SCORES  # the caller's tensor is left alone


def test_an_unusable_score_is_gone_once_replaced() -> None:
    scores = torch.tensor([1.0, math.nan])
    assert apply_missing_eos(scores, torch.tensor([True, False]), -1.0).tolist() == [1.0, -1.0]
