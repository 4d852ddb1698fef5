"""Masked statistics: right on what counts, blind to what does not."""

import math
import statistics

import pytest
import torch
from torch import Tensor

from lora_rlhf.algo import masking
from tests.support import reference

ROWS = [[0.3, -1.2, 2.5, 0.9], [4.0], [], [-0.7, 1.1]]
FLAT = [cell for row in ROWS for cell in row]
WIDTH = 6
MASK = torch.tensor(reference.prefix_mask(ROWS, WIDTH))


def padded(fill: float = 0.0) -> Tensor:
    return torch.tensor(reference.pad(ROWS, WIDTH, fill), dtype=torch.float64, requires_grad=True)


def test_statistics_are_those_of_the_counted_cells() -> None:
    x = padded(99.0)
    assert masking.masked_sum(x, MASK).item() == pytest.approx(math.fsum(FLAT), abs=1e-12)
    assert masking.masked_mean(x, MASK).item() == pytest.approx(statistics.fmean(FLAT), abs=1e-12)
    assert masking.masked_mean(x, MASK, 20).item() == pytest.approx(math.fsum(FLAT) / 20, abs=1e-12)
    assert masking.masked_var(x, MASK).item() == pytest.approx(statistics.pvariance(FLAT), abs=1e-12)


def test_normalize_gives_mean_0_and_rescale_keeps_the_mean() -> None:
    mean, sd = statistics.fmean(FLAT), statistics.pstdev(FLAT)
    normalized, rescaled = masking.masked_normalize(padded(), MASK, 0.0), masking.masked_rescale(padded(), MASK, 0.0)
    assert normalized[MASK].tolist() == pytest.approx([(cell - mean) / sd for cell in FLAT], abs=1e-12)
    assert rescaled[MASK].tolist() == pytest.approx([(cell - mean) / sd + mean for cell in FLAT], abs=1e-12)
    assert not normalized[~MASK].any() and not rescaled[~MASK].any()
    assert abs(mean) > 0.5, "a mean near 0 could not tell the two apart"


def test_a_constant_is_normalized_to_zero_and_rescaled_to_itself() -> None:
    x = torch.full((2, 3), 7.0, dtype=torch.float64)
    everything = torch.ones(2, 3, dtype=torch.bool)
    assert masking.masked_normalize(x, everything).abs().max() == 0
    assert torch.equal(masking.masked_rescale(x, everything), x)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "function",
    [
        masking.zero_masked,
        masking.masked_sum,
        masking.masked_mean,
        masking.masked_var,
        masking.masked_normalize,
        masking.masked_rescale,
        lambda x, mask: masking.explained_variance(x, 2 * x + torch.arange(WIDTH), mask),
    ],
)
def test_masked_cells_touch_neither_value_nor_gradient(function, poison: float) -> None:
    clean, poisoned = padded(), padded(poison)
    values, poisoned_values = function(clean, MASK), function(poisoned, MASK)
    assert torch.equal(values, poisoned_values)
    weights = torch.arange(1.0, values.numel() + 1).view(values.shape)  # a plain sum of normalised cells is flat
    (values * weights).sum().backward()
    (poisoned_values * weights).sum().backward()
    assert clean.grad is not None and poisoned.grad is not None
    assert torch.equal(clean.grad, poisoned.grad)
    assert clean.grad[MASK].any() and not clean.grad[~MASK].any()


def test_micro_batches_add_up_to_the_whole() -> None:
    x = padded()
    whole = masking.masked_mean(x, MASK)
    parts = [masking.masked_mean(x[i : i + 1], MASK[i : i + 1], MASK.sum()) for i in range(len(ROWS))]
    torch.testing.assert_close(sum(parts), whole, rtol=0, atol=1e-15)


@pytest.mark.parametrize("function", [masking.masked_normalize, masking.masked_rescale])
def test_gradients_are_the_numerical_ones(function) -> None:
    assert torch.autograd.gradcheck(lambda x: function(x, MASK), padded())


def test_explained_variance_on_its_landmarks() -> None:
    returns = padded()
    mean = masking.masked_mean(returns, MASK)
    for values, expected in [(returns, 1.0), (mean.expand_as(returns), 0.0), (-returns, -3.0), (0.5 * returns, 0.75)]:
        assert masking.explained_variance(values, returns, MASK).item() == pytest.approx(expected, abs=1e-12)
    assert masking.explained_variance(returns, torch.ones_like(returns), MASK).isnan()


def test_misuse_is_an_error() -> None:
    x = padded()
    with pytest.raises(ValueError, match=r"torch\.bool.*got torch\.int64"):
        masking.masked_sum(x, MASK.long())
    with pytest.raises(ValueError, match=r"mask of shape \(6,\) for a tensor of shape \(4, 6\)"):
        masking.masked_sum(x, MASK[0])
    for function in (masking.masked_mean, masking.masked_var, masking.masked_normalize, masking.masked_rescale):
        with pytest.raises(ValueError, match="no True cell"):
            function(x, torch.zeros_like(MASK))
    assert masking.masked_mean(x, torch.zeros_like(MASK), 5) == 0  # a micro-batch may hold no counted token


def test_a_response_mask_is_a_prefix() -> None:
    masking.require_prefix(MASK)
    with pytest.raises(ValueError, match="row 1 turns True again"):
        masking.require_prefix(torch.tensor([[True, False], [False, True]]))
