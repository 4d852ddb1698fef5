"""Outcomes, text figures and the verdict on worked examples."""

import math
from typing import Any

import pytest

from lora_rlhf.evaluate.generation import Answer
from lora_rlhf.evaluate.metrics import (
    by_group,
    distinct,
    eos_rate,
    mean_length,
    mean_scores,
    outcomes,
    verdict,
    win_rates,
)


def test_outcomes_are_wins_ties_and_losses_of_the_first() -> None:
    assert outcomes([1.0, 0.2, 0.5, 0.1 + 0.2], [0.0, 0.4, 0.5, 0.3]) == [1.0, 0.0, 0.5, 0.5]


def test_win_rates_name_the_winner_first_and_mirror() -> None:
    scores = {"base": [0.0] * 8, "sft": [1.0] * 4 + [0.0] * 4, "policy": [2.0] * 6 + [-1.0] * 2}
    found = win_rates(scores)
    assert {pair: rate["rate"] for pair, rate in found.items()} == {
        "policy_vs_sft": 6 / 8,  # 4 of 4 against 1, 2 of 4 against 0
        "policy_vs_base": 6 / 8,
        "sft_vs_base": (4 + 0.5 * 4) / 8,
    }
    assert all(rate["low"] <= rate["rate"] <= rate["high"] and rate["n"] == 8 for rate in found.values())
    assert [(rate["wins"], rate["ties"], rate["losses"]) for rate in found.values()] == [
        (6, 0, 2),
        (6, 0, 2),
        (4, 4, 0),
    ]
    swapped = win_rates({"sft": scores["policy"], "policy": scores["sft"]})
    assert swapped.keys() == {"policy_vs_sft"} and swapped["policy_vs_sft"]["rate"] == 2 / 8


def test_mean_scores_hold_an_interval() -> None:
    found = mean_scores({"sft": [1.0, 2.0, 3.0]})["sft"]
    error = 1.959964 * 1.0 / math.sqrt(3)
    assert found == pytest.approx({"mean": 2.0, "low": 2 - error, "high": 2 + error, "n": 3}, abs=1e-5)


def test_length_and_eos_rate_count_responses() -> None:
    texts = [([5, 6, 0], True), ([5], False), ([0], True), ([5, 6, 7], False)]
    answers = [Answer(ids, "", finished) for ids, finished in texts]
    assert mean_length(answers) == 2.0 and eos_rate(answers) == 0.5


def test_distinct_pools_the_n_grams_of_all_texts() -> None:
    texts = ["the cat saw the dog", "the cat", "one", ""]
    assert distinct(texts, 1) == 5 / 8  # the cat saw dog one
    assert distinct(texts, 2) == 4 / 5  # "the cat" twice; no pair across texts
    assert distinct(["one", ""], 2) is None


def test_by_group_puts_the_largest_first() -> None:
    found = by_group({"sft": [1.0, 2.0, 6.0], "policy": [0.0, 4.0, 3.0]}, ["chat", "list", "list"])
    assert list(found) == ["list", "chat"]
    assert found == {"list": {"n": 2, "sft": 4.0, "policy": 3.5}, "chat": {"n": 1, "sft": 1.0, "policy": 0.0}}


def test_few_untied_prompts_show_nothing() -> None:
    """4 losses and no win among 29 prompts are no rarer than 1 in 8: 2 * (1/2) ** 4."""
    rate = win_rates({"sft": [1.0] * 29, "policy": [1.0] * 25 + [0.0] * 4})["policy_vs_sft"]
    assert (rate["wins"], rate["ties"], rate["losses"], rate["n"]) == (0, 25, 4, 29)
    assert rate["p"] == pytest.approx(0.125)
    assert rate["rate"] == pytest.approx(12.5 / 29)
    # at the upper end a share of 1 - 0.025 ** (1/4) of the untied prompts would be wins
    assert rate["high"] == pytest.approx((12.5 + 4 * (1 - 0.025**0.25)) / 29, abs=1e-9)
    assert rate["low"] < 0.40, "how many prompts are tied is a matter of chance, too"
    sentence = verdict({"policy_vs_sft": rate}, None)
    assert "no gain is shown" in sentence and "worse" not in sentence
    assert "(0 won, 25 tied, 4 lost)" in sentence


@pytest.mark.parametrize(
    ("wins", "ties", "losses", "said"),
    [
        (0, 23, 6, "it has become worse"),  # p = 2 / 64
        (0, 24, 5, "no gain is shown"),  # p = 2 / 32
        (6, 23, 0, "Whether that is more than sharpening"),
        (5, 0, 0, "no gain is shown"),
        (8, 400, 1, "Whether that is more than sharpening"),  # p = 20 / 512
        (7, 400, 1, "no gain is shown"),  # p = 18 / 256
        (0, 10, 0, "no gain is shown"),
    ],
)
def test_conclusions_agree_with_the_sign_test(wins: int, ties: int, losses: int, said: str) -> None:
    policy = [1.0] * wins + [0.5] * ties + [0.0] * losses
    assert said in verdict(win_rates({"sft": [0.5] * len(policy), "policy": policy}), None)


def rates(low: float, high: float) -> dict[str, Any]:
    counts = {"wins": 150, "ties": 50, "losses": 100, "p": 0.1}
    return {"policy_vs_sft": {"rate": (low + high) / 2, "low": low, "high": high, "n": 300, **counts}}


BETTER, EVEN, WORSE = rates(0.55, 0.67), rates(0.45, 0.56), rates(0.3, 0.42)


@pytest.mark.parametrize(
    ("sampled", "best", "said", "unsaid"),
    [
        (BETTER, BETTER, "more than sharpening", "only"),
        (BETTER, EVEN, "only sharpening, as far as 300 prompts can tell", "more than"),
        (BETTER, WORSE, "temperature that suits it does better", "more than"),
        (BETTER, rates(0.5, 0.6), "only sharpening", "more than"),
        (BETTER, None, "was not measured", "only"),
        (EVEN, EVEN, "no gain is shown", "sharpening"),
        (EVEN, BETTER, "which is a gain", "sharpening"),
        (WORSE, EVEN, "it has become worse", "sharpening"),
        (WORSE, None, "it has become worse", "sharpening"),
        ({"sft_vs_base": {}}, None, "no policy", "beats"),
    ],
)
def test_verdict(sampled: dict[str, Any], best: dict[str, Any] | None, said: str, unsaid: str) -> None:
    sentence = verdict(sampled, best)
    assert said in sentence and unsaid not in sentence
    if sampled == BETTER:
        assert "61.0 % (55.0 to 67.0) of prompts (150 won, 50 tied, 100 lost)" in sentence
