"""How far two models' distributions are apart, against closed forms in Python floats."""

import math

import pytest
import torch

from lora_rlhf.exporting.closeness import Closeness, common_prefix_length, measure_closeness


def test_two_coins() -> None:
    """KL of known distributions, one position each, in a batch of both."""
    p, q = [[0.5, 0.5], [0.9, 0.1]], [[0.25, 0.75], [0.2, 0.8]]
    one, other = (torch.tensor(rows).log() for rows in (p, q))
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75) + 0.9 * math.log(4.5) + 0.1 * math.log(0.125)
    errors = [one[i][j].item() - other[i][j].item() for i in range(2) for j in range(2)]
    found = measure_closeness(one, other).figures()
    assert found["kl_per_token"] == pytest.approx(expected / 2, rel=1e-6)
    assert found["max_logit_error"] == pytest.approx(max(map(abs, errors)), rel=1e-6)
    assert found["rms_logit_error"] == pytest.approx(math.sqrt(sum(e * e for e in errors) / 4), rel=1e-6)
    # equal halves: the first is taken as the most probable, which the second distribution denies; so does the other row
    assert found["top1_agreement"] == 0


def test_batches_add_up() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(70, 11), torch.randn(70, 11)
    parts = sum((measure_closeness(one[i : i + 9], other[i : i + 9]) for i in range(0, 70, 9)), Closeness())
    whole = measure_closeness(one, other)
    assert parts.figures() == pytest.approx(whole.figures(), rel=1e-12)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=one.double()), torch.distributions.Categorical(logits=other.double())
    )
    assert whole.figures()["kl_per_token"] == pytest.approx(expected.mean().item(), rel=1e-9)


def test_equal_logits_are_no_distance_and_shifted_ones_have_no_kl() -> None:
    logits = torch.randn(3, 5)
    assert measure_closeness(logits, logits).figures() == {
        **{"kl_per_token": 0.0, "top1_agreement": 1.0, "rms_logit_error": 0.0, "max_logit_error": 0.0}
    }
    assert measure_closeness(logits, logits + 2).figures()["kl_per_token"] < 1e-12
    with pytest.raises(ValueError, match="logits are"):
        measure_closeness(logits, logits[:2])


def test_same_beginning() -> None:
    assert common_prefix_length([1, 2, 3], [1, 2, 3]) == 3
    assert common_prefix_length([1, 2, 3], [1, 5, 3]) == 1
    assert common_prefix_length([1, 2], [1, 2, 3]) == 2
    assert common_prefix_length([4], [1]) == 0
