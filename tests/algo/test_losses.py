"""Every loss against the paper's formula, and the properties that training leans on."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lora_rlhf.algo.losses import (
    kl_loss,
    listwise_loss,
    lm_loss,
    policy_loss,
    ranking_loss,
    ranking_pairs,
    response_weights,
    value_loss,
)
from tests.support import reference

LENGTHS = (5, 1, 0, 6, 3)
WIDTH = 7
NUM_TOKENS = sum(LENGTHS)
CLIP = 0.2


def ragged(seed: int, centre: float, spread: float) -> list[list[float]]:
    rng = random.Random(seed)
    return [[rng.gauss(centre, spread) for _ in range(length)] for length in LENGTHS]


def tensor(rows: list[list[float]], fill: float = 0.0) -> Tensor:
    return torch.tensor(reference.pad(rows, WIDTH, fill), dtype=torch.float64)


# Wide enough that the policy's ratios and the values fall on both sides of the clip.
POLICY_ROWS = [ragged(1, -1.5, 0.4), ragged(2, -1.5, 0.4), ragged(3, 0.0, 1.0)]  # new, old, advantages
VALUE_ROWS = [ragged(4, 0.0, 0.5), ragged(5, 0.0, 0.5), ragged(6, 0.0, 1.0)]  # new, old, returns
MASK = torch.tensor(reference.prefix_mask(POLICY_ROWS[0], WIDTH))


def lm_as_others(logprobs: Tensor, _a: Tensor, _b: Tensor, mask: Tensor, _clip: float, denominator: float) -> tuple:
    return (lm_loss(logprobs, mask, denominator),)


TOKEN_LOSSES = pytest.mark.parametrize(
    ("loss", "rows"),
    [(policy_loss, POLICY_ROWS), (value_loss, VALUE_ROWS), (lm_as_others, POLICY_ROWS)],
    ids=["policy", "value", "lm"],
)


# token losses ---------------------------------------------------------------------------------------------------------


def test_policy_loss_equals_the_reference() -> None:
    new, old, advantages = map(tensor, POLICY_ROWS)
    result = policy_loss(new, old, advantages, MASK, CLIP, NUM_TOKENS)
    terms = [term for n, o, a in zip(*POLICY_ROWS, strict=True) for term in reference.policy_terms(n, o, a, CLIP)]
    expected = [math.fsum(column) / NUM_TOKENS for column in zip(*terms, strict=True)]
    assert [figure.item() for figure in result] == pytest.approx(expected, abs=1e-12)
    assert 0.2 < result.clip_fraction < 0.8 and result.approx_kl > 0.01  # the data reaches every branch


@pytest.mark.parametrize("high", [None, 0.28, 0.05])
@pytest.mark.parametrize("level", ["token", "sequence", "constant"])
def test_levels_of_the_loss_and_clip_higher_equal_the_reference(level: str, high: float | None) -> None:
    counted = [row for row, length in enumerate(LENGTHS) if length]  # a response has a token
    rows = [[part[row] for row in counted] for part in POLICY_ROWS]
    new, old, advantages = map(tensor, rows)
    mask = torch.tensor(reference.prefix_mask(rows[0], WIDTH))
    terms = [reference.policy_terms(n, o, a, CLIP, high) for n, o, a in zip(*rows, strict=True)]
    expected = reference.mean_loss([[loss for loss, _, _ in row] for row in terms], level, 9)
    distances = [[reference.k3(n, o) for n, o in zip(*pair, strict=True)] for pair in zip(*rows[:2], strict=True)]
    losses, kls = [], []
    for part in (slice(0, 1), slice(1, 4)):  # micro-batches add up to the minibatch
        weights = response_weights(mask[part], level, NUM_TOKENS, len(counted), 9)
        micro = (new[part], old[part], advantages[part], mask[part])
        losses.append(policy_loss(*micro, CLIP, NUM_TOKENS, high, weights).loss.item())
        kls.append(kl_loss(new[part], old[part], mask[part], NUM_TOKENS, weights).item())
    assert sum(losses) == pytest.approx(expected, abs=1e-12)
    assert sum(kls) == pytest.approx(reference.mean_loss(distances, level, 9), abs=1e-12)


def test_an_unknown_level_is_an_error() -> None:
    with pytest.raises(ValueError, match="level is 'word', expected token, sequence or constant"):
        response_weights(MASK, "word", NUM_TOKENS, 5, 9)


def test_the_gradient_of_the_kl_loss() -> None:
    """d k3 / d logprob = 1 - ref / policy, on average over the tokens, and 0 where masked, whatever stands there."""
    new, ref = tensor(POLICY_ROWS[0], math.nan).requires_grad_(), tensor(POLICY_ROWS[1], math.nan)
    kl_loss(new, ref, MASK, NUM_TOKENS).backward()
    expected = [
        [(1 - math.exp(r - n)) / NUM_TOKENS for n, r in zip(*pair, strict=True)]
        for pair in zip(*POLICY_ROWS[:2], strict=True)
    ]
    assert new.grad is not None
    torch.testing.assert_close(new.grad, tensor(expected), rtol=0, atol=1e-12)


def test_value_loss_equals_the_reference() -> None:
    values, old_values, returns = map(tensor, VALUE_ROWS)
    result = value_loss(values, old_values, returns, MASK, CLIP, NUM_TOKENS)
    terms = [term for v, o, r in zip(*VALUE_ROWS, strict=True) for term in reference.value_terms(v, o, r, CLIP)]
    expected = [math.fsum(column) / NUM_TOKENS for column in zip(*terms, strict=True)]
    assert [figure.item() for figure in result] == pytest.approx(expected, abs=1e-12)
    assert 0.2 < result.clip_fraction < 0.8


def test_lm_loss_is_the_mean_surprise() -> None:
    expected = -math.fsum(cell for row in POLICY_ROWS[0] for cell in row) / NUM_TOKENS
    assert lm_loss(tensor(POLICY_ROWS[0]), MASK, NUM_TOKENS).item() == pytest.approx(expected, abs=1e-12)
    assert expected > 0


def run(loss, rows: list[list[list[float]]], fill: float = 0.0, keep: Tensor | slice = slice(None)) -> tuple:
    """The figures of a loss on the rows `keep`, and the gradient of its first argument (all rows)."""
    first = tensor(rows[0], fill).requires_grad_()
    tensors = [x[keep] for x in (first, tensor(rows[1], fill), tensor(rows[2], fill), MASK)]
    figures = loss(*tensors, CLIP, NUM_TOKENS)
    figures[0].backward()
    return torch.stack([figure.detach().double() for figure in figures]), first.grad


@TOKEN_LOSSES
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_masked_cells_touch_neither_figures_nor_gradient(loss, rows, poison: float) -> None:
    (clean, gradient), (poisoned, poisoned_gradient) = run(loss, rows), run(loss, rows, fill=poison)
    assert torch.equal(clean, poisoned) and torch.equal(gradient, poisoned_gradient)
    assert gradient[MASK].any() and not gradient[~MASK].any()


@TOKEN_LOSSES
def test_micro_batches_add_up_to_exactly_the_minibatch(loss, rows) -> None:
    figures, gradient = run(loss, rows)
    parts = [run(loss, rows, keep=torch.tensor(keep)) for keep in ([0], [1, 3], [2], [4])]  # row 2 has no token at all
    torch.testing.assert_close(sum(part for part, _ in parts), figures, rtol=0, atol=1e-15)
    assert torch.equal(sum(part for _, part in parts), gradient)


@TOKEN_LOSSES
def test_the_order_of_rows_does_not_matter(loss, rows) -> None:
    figures, gradient = run(loss, rows)
    permuted, permuted_gradient = run(loss, rows, keep=torch.tensor([3, 1, 4, 0, 2]))
    torch.testing.assert_close(permuted, figures, rtol=0, atol=1e-15)
    assert torch.equal(permuted_gradient, gradient)


@TOKEN_LOSSES
def test_token_gradients_are_the_numerical_ones(loss, rows) -> None:
    first, second, third = map(tensor, rows)
    assert torch.autograd.gradcheck(lambda x: loss(x, second, third, MASK, CLIP, NUM_TOKENS)[0], first.requires_grad_())


def test_at_ratio_1_the_gradient_is_minus_the_advantage_over_n() -> None:
    """The first step of PPO is plain policy gradient: likelier what was better, unlikelier what was worse."""
    logprobs, advantages = tensor(POLICY_ROWS[0]).requires_grad_(), tensor(POLICY_ROWS[2])
    result = policy_loss(logprobs, logprobs.detach(), advantages, MASK, CLIP, NUM_TOKENS)
    result.loss.backward()
    torch.testing.assert_close(logprobs.grad, -advantages / NUM_TOKENS, rtol=0, atol=1e-15)
    assert result.clip_fraction == 0 and result.approx_kl == 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected_loss", "pushes"),
    [
        (1.5, 2.0, -2.4, False),  # already much likelier, and it was good: enough
        (0.5, -2.0, 1.6, False),  # already much unlikelier, and it was bad: enough
        (1.5, -2.0, 3.0, True),  # bad and likelier: pull back
        (0.5, 2.0, -1.0, True),  # good and unlikelier: pull back
        (1.1, 2.0, -2.2, True),  # inside the clip
    ],
)
def test_the_clip_stops_only_what_has_gone_far_enough(ratio, advantage, expected_loss, pushes) -> None:
    logprobs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.bool)
    result = policy_loss(logprobs, torch.zeros_like(logprobs), torch.full_like(logprobs, advantage), one, CLIP, 1)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(expected_loss, abs=1e-12)
    assert logprobs.grad.item() == pytest.approx(-ratio * advantage if pushes else 0.0, abs=1e-12)
    assert result.clip_fraction.item() == (not pushes)


def test_an_infinite_clip_range_is_the_plain_loss() -> None:
    values, old_values, returns = map(tensor, VALUE_ROWS)
    result = value_loss(values, old_values, returns, MASK, math.inf, NUM_TOKENS)
    expected = 0.5 * (values - returns).square().sum() / NUM_TOKENS
    assert result.loss.item() == pytest.approx(expected.item(), abs=1e-12) and result.clip_fraction == 0


def test_metrics_carry_no_gradient() -> None:
    logprobs = tensor(POLICY_ROWS[0]).requires_grad_()
    old_logprobs, advantages = map(tensor, POLICY_ROWS[1:])
    result = policy_loss(logprobs, old_logprobs, advantages, MASK, CLIP, NUM_TOKENS)
    assert result.loss.requires_grad and not result.clip_fraction.requires_grad and not result.approx_kl.requires_grad


# rankings -------------------------------------------------------------------------------------------------------------

SCORES = [0.3, -1.0, 0.9, 2.0, -0.4]
RANKS = [2, 4, 2, 1, 4]  # two ties


def doubles(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("lead", "expected"), [(1.5, 0.2014), (-1.5, 1.7014), (0.0, math.log(2))])
def test_worked_pair(lead: float, expected: float) -> None:
    result = ranking_loss(doubles([lead, 0.0]), torch.tensor([1, 2]))
    assert result.loss.item() == pytest.approx(expected, abs=5e-5)
    assert (result.num_pairs, result.num_correct) == (1, int(lead > 0))  # an undecided pair is not a correct one


@pytest.mark.parametrize(("k", "num_pairs"), [(2, 1), (4, 6), (9, 36)])
def test_k_responses_make_k_choose_2_pairs(k: int, num_pairs: int) -> None:
    assert ranking_loss(torch.zeros(k), torch.arange(k)).num_pairs == num_pairs


def test_pairs_name_the_winner_first_and_skip_ties() -> None:
    winners, losers = ranking_pairs(torch.tensor([3, 1, 3]))
    assert (winners.tolist(), losers.tolist()) == ([1, 1], [0, 2])


RANKINGS = st.lists(st.integers(1, 4), min_size=2, max_size=9).filter(lambda ranks: len(set(ranks)) > 1)


@settings(max_examples=30, deadline=None)
@given(ranks=RANKINGS, seed=st.integers(0, 1000))
def test_rankings_with_ties_equal_the_reference(ranks: list[int], seed: int) -> None:
    rng = random.Random(seed)
    scores = [rng.gauss(0, 2) for _ in ranks]
    pairs = reference.ranking_pairs(ranks)
    margins = [rng.random() for _ in pairs]
    assert list(zip(*(index.tolist() for index in ranking_pairs(torch.tensor(ranks))), strict=True)) == pairs
    for given_margins in (None, margins):
        result = ranking_loss(
            doubles(scores), torch.tensor(ranks), None if given_margins is None else doubles(given_margins)
        )
        loss, num_pairs, num_correct = reference.ranking_loss(scores, ranks, given_margins)
        assert result.loss.item() == pytest.approx(loss, abs=1e-12)
        assert (result.num_pairs, result.num_correct) == (num_pairs, num_correct)
    expected = reference.listwise_loss(scores, ranks)
    assert listwise_loss(doubles(scores), torch.tensor(ranks)).item() == pytest.approx(expected, abs=1e-12)


def pairwise(scores: Tensor, ranks: Tensor) -> Tensor:
    return ranking_loss(scores, ranks).loss


RANKING_LOSSES = pytest.mark.parametrize("loss", [pairwise, listwise_loss])


@RANKING_LOSSES
def test_descending_raises_the_best_and_lowers_the_worst(loss) -> None:
    scores = doubles([0.0] * 5)
    loss(scores, torch.tensor(RANKS)).backward()
    assert scores.grad[3] < 0 < scores.grad[1]
    assert scores.grad[0] == scores.grad[2] and scores.grad[1] == scores.grad[4]  # ties are treated alike
    assert scores.grad.sum().item() == pytest.approx(0.0, abs=1e-12)  # only differences of scores matter


@RANKING_LOSSES
def test_the_order_of_responses_does_not_matter(loss) -> None:
    order = [4, 2, 0, 3, 1]
    plain, permuted = doubles(SCORES), doubles([SCORES[i] for i in order])
    left, right = loss(plain, torch.tensor(RANKS)), loss(permuted, torch.tensor(RANKS)[order])
    torch.testing.assert_close(left, right, rtol=0, atol=1e-12)
    (left + right).backward()
    torch.testing.assert_close(plain.grad[order], permuted.grad, rtol=0, atol=1e-12)


@RANKING_LOSSES
def test_ranking_gradients_are_the_numerical_ones(loss) -> None:
    assert torch.autograd.gradcheck(lambda scores: loss(scores, torch.tensor(RANKS)), doubles(SCORES))


@RANKING_LOSSES
@pytest.mark.parametrize("ranks", [[1, 1, 1], [1]])
def test_nothing_to_compare_is_zero_loss_and_backward_works(loss, ranks: list[int]) -> None:
    scores = doubles([0.5, -2.0, 1.0][: len(ranks)])
    result = loss(scores, torch.tensor(ranks))
    result.backward()
    assert result.item() == 0 and not scores.grad.any()


def test_of_two_responses_the_list_is_the_pair() -> None:
    scores, ranks = doubles([0.4, 1.3]), torch.tensor([2, 1])
    torch.testing.assert_close(listwise_loss(scores, ranks), pairwise(scores, ranks), rtol=0, atol=1e-12)


def test_extreme_scores_stay_finite() -> None:
    for loss in (pairwise, listwise_loss):
        scores = doubles([-1e4, 1e4])
        result = loss(scores, torch.tensor([1, 2]))
        result.backward()
        assert result.item() == pytest.approx(2e4) and scores.grad.tolist() == pytest.approx([-1.0, 1.0])


def test_margins_must_match_the_pairs() -> None:
    with pytest.raises(ValueError, match=r"8 pairs need as many margins, got shape \(3,\)"):
        ranking_loss(doubles(SCORES), torch.tensor(RANKS), doubles([0.1, 0.2, 0.3]))
