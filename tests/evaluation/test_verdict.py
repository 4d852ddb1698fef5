"""The sentence that follows from win rates, and that it agrees with the sign test."""

import pytest

from lora_rlhf.evaluation.report_model import WinRate
from lora_rlhf.evaluation.verdict import verdict_sentence
from lora_rlhf.stats.win_rates import win_rate


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
    outcomes = [1.0] * wins + [0.5] * ties + [0.0] * losses
    sentence = verdict_sentence("policy", "sft", WinRate.from_statistics(win_rate(outcomes)))
    assert said in sentence and f"({wins} won, {ties} tied, {losses} lost)" in sentence


def rate(low: float, high: float) -> WinRate:
    return WinRate(rate=(low + high) / 2, low=low, high=high, n=300, wins=150, ties=50, losses=100, p=0.1)


UNKNOWN = WinRate(rate=None, wins=0, ties=0, losses=0, p=None)
BETTER, EVEN, WORSE = rate(0.55, 0.67), rate(0.45, 0.56), rate(0.3, 0.42)


@pytest.mark.parametrize(
    ("sampled", "best", "said", "unsaid"),
    [
        (BETTER, BETTER, "more than sharpening", "only"),
        (BETTER, EVEN, "only sharpening, as far as 300 prompts can tell", "more than"),
        (BETTER, WORSE, "temperature that suits it does better", "more than"),
        (BETTER, rate(0.5, 0.6), "only sharpening", "more than"),
        (BETTER, None, "was not measured", "only"),
        (EVEN, EVEN, "no gain is shown", "sharpening"),
        (EVEN, BETTER, "which is a gain", "sharpening"),
        (WORSE, EVEN, "it has become worse", "sharpening"),
        (WORSE, None, "it has become worse", "sharpening"),
        (None, None, "gave no verdict", "beats"),
        (UNKNOWN, None, "gave no verdict", "beats"),
    ],
)
def test_verdict(sampled: WinRate | None, best: WinRate | None, said: str, unsaid: str) -> None:
    sentence = verdict_sentence("policy", "sft", sampled, best)
    assert said in sentence and unsaid not in sentence
    if sampled == BETTER:
        assert "the policy beats the SFT model on 61.0 % (55.0 to 67.0) of prompts" in sentence


def test_systems_of_other_runs_are_called_by_their_names() -> None:
    assert "second:policy beats policy" in verdict_sentence("second:policy", "policy", BETTER).replace(
        "the policy", "policy"
    )
