"""KL estimates and the controllers that steer by them."""

import json
import math

import pytest
import torch

from lora_rlhf.algo.kl import AdaptiveKL, FixedKL, k1, k3
from tests.support import reference

POLICY = [-2.1, -1.5, -3.0, -0.8]
REF = [-2.0, -1.6, -2.8, -0.9]


def test_estimates_equal_the_definition_on_worked_figures() -> None:
    policy, ref = torch.tensor(POLICY, dtype=torch.float64), torch.tensor(REF, dtype=torch.float64)
    assert k1(policy, ref).sum().item() == pytest.approx(-0.1, abs=1e-12)  # below the reference more than above it
    assert k1(policy, ref).tolist() == pytest.approx(list(map(reference.k1, POLICY, REF)), abs=1e-12)
    assert k3(policy, ref).tolist() == pytest.approx(list(map(reference.k3, POLICY, REF)), abs=1e-12)


def test_both_estimate_the_kl_of_policy_from_reference_over_samples_of_the_policy() -> None:
    policy = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    ref = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    kl = 0.7 * math.log(0.7 / 0.2) + 0.1 * math.log(0.1 / 0.6)
    reverse = 0.2 * math.log(0.2 / 0.7) + 0.6 * math.log(0.6 / 0.1)
    assert abs(kl - reverse) > 0.05, "the two directions must differ for this test to see a swap"
    for estimate in (k1, k3):
        assert (policy * estimate(policy.log(), ref.log())).sum().item() == pytest.approx(kl, abs=1e-12)
    assert (k3(policy.log(), ref.log()) >= 0).all() and (k1(policy.log(), ref.log()) < 0).any()


def test_k3_keeps_its_digits_near_zero() -> None:
    gap = 1e-3
    exact = gap**2 / 2 + gap**3 / 6  # exp(x) - 1 - x, to 1e-13
    assert k3(torch.tensor(-gap), torch.tensor(0.0)).item() == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("kl", [0.0, 5.9, 6.0, 6.3, 100.0, -3.0])
def test_adaptive_follows_ziegler(kl: float) -> None:
    controller = AdaptiveKL(coef=0.15, target=6.0, horizon=10_000)
    controller.update(kl, num_episodes=512)
    assert controller.coef == pytest.approx(reference.adaptive_kl(0.15, kl, 6.0, 512, 10_000), rel=1e-12)


def test_adaptive_pushes_back_and_moves_by_at_most_one_percent_at_ziegler_scale() -> None:
    above, below, level = (AdaptiveKL(coef=1.0, target=6.0, horizon=10_000) for _ in range(3))
    above.update(1e6, 512)
    below.update(-1e6, 512)
    level.update(6.0, 512)
    assert (above.coef, below.coef, level.coef) == pytest.approx((1.01024, 0.98976, 1.0), abs=1e-12)


def test_fixed_never_moves() -> None:
    controller = FixedKL(0.02)
    controller.update(100.0, 512)
    assert controller.coef == 0.02


def test_state_survives_json() -> None:
    controller = AdaptiveKL(coef=0.1, target=6.0, horizon=1000)
    controller.update(9.0, 64)
    for resumed in (AdaptiveKL(coef=0.1, target=6.0, horizon=1000), FixedKL(0.1)):
        resumed.load_state_dict(json.loads(json.dumps(controller.state_dict())))
        assert resumed.coef == controller.coef != 0.1


def test_misuse_is_an_error() -> None:
    controller = AdaptiveKL(coef=0.1, target=6.0, horizon=100)
    with pytest.raises(ValueError, match="KL is nan"):
        controller.update(math.nan, 10)
    with pytest.raises(ValueError, match=r"horizon \(100\).*\(512\)"):
        controller.update(1.0, 512)
    assert controller.coef == 0.1
    for wrong in ({"target": 0.0, "horizon": 1.0}, {"target": 1.0, "horizon": -1.0}):
        with pytest.raises(ValueError, match="above 0"):
            AdaptiveKL(coef=0.1, **wrong)
