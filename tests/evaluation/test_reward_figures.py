"""The reward model on a policy's own answers, and what changed: by hand."""

import random

import pytest
import torch

from lora_rlhf.evaluation.reward_figures import ordering_figures, ordering_on_answers, reward_changes
from lora_rlhf.stats.ordering import OrderingReport, ordering_report
from lora_rlhf.system.disk import finite


def test_the_reward_model_is_right_where_it_orders_as_the_judge_did() -> None:
    outcomes = [1.0, 0.0, 0.5, None, 1.0, 0.0]
    candidate, baseline = [2.0, 2.0, 9.0, 9.0, -1.0, 0.0], [1.0, 1.0, 0.0, 0.0, 1.0, 3.0]
    report = ordering_on_answers(outcomes, (candidate, baseline), ([9.0] * 6, [5.0] * 6))
    assert report["held_out_pairs"] == 4 and report["held_out_prompts"] == 5
    assert report["accuracy"]["rate"] == pytest.approx(2 / 4)  # the first and the last
    assert report["longer_wins"]["rate"] == pytest.approx(2 / 4)
    assert ordering_figures(report)["reward_accuracy"].n == 4
    assert ordering_figures({"held_out_prompts": 2, "held_out_pairs": 0}) == {}


def test_a_reward_model_that_was_gamed_is_worse_after_than_before() -> None:
    """Before: ordered rightly with the stated confidence. After: as sure as ever, and wrong as often as right."""
    rng = random.Random(0)

    def pairs(outcomes: list[float]) -> OrderingReport:
        return ordering_on_answers(outcomes, ([1.4] * 300, [0.0] * 300), ([9.0] * 300, [9.0] * 300))

    right, wrong = ([float(rng.random() < share) for _ in range(300)] for share in (0.8, 0.5))
    before, after = pairs(right), pairs(wrong)
    found = reward_changes(before, after)
    assert found["accuracy"].high < 0 < found["ece"].low
    assert found["accuracy"].difference == pytest.approx((sum(wrong) - sum(right)) / 300, abs=1e-9)
    same = reward_changes(before, before)
    assert same["accuracy"].low < 0 == same["accuracy"].difference < same["accuracy"].high
    assert reward_changes(before, {"held_out_prompts": 1, "held_out_pairs": 0}) == {}
    one = ordering_report([[1, 2]], [torch.tensor([1.0, 0.0])], [[1.0, 2.0]])
    assert set(reward_changes(before, one)) == {"accuracy"}, "one pair has no interval of its error"
    equal = ordering_report([[1, 2]] * 2, [torch.tensor([1.0, 0.0])] * 2, [[2.0, 2.0]] * 2)
    assert ordering_figures(finite(equal))["reward_length_correlation"].value is None, "null in a manifest, as in JSON"
    assert ordering_figures(one)["reward_length_correlation"].value == pytest.approx(-1.0)
