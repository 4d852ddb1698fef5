"""The audit's flags on texts made by hand: each fault raises its own, and what is no fault raises none."""

import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lora_rlhf.probes.audit import THRESHOLDS, SystemAnswers, audit, grade_responses, kl_quantile_rows
from lora_rlhf.probes.measures import GradedResponses
from lora_rlhf.probes.wording import length_change_text, mean_change_text, share_change_text
from lora_rlhf.stats.differences import Difference
from lora_rlhf.stats.intervals import MeanInterval

N = 60
WORDS = [f"word{number}" for number in range(400)]
PROMPTS = [f"Question {number}?" for number in range(N)]


def texts(seed: int, count: int = 12) -> list[str]:
    """Answers of so many words, all different."""
    rng = random.Random(seed)
    return [f"{' '.join(rng.sample(WORDS, count))}." for _ in range(N)]


def side(responses: Sequence[str], quality: float = 0.5, failed: int = 0, **more: Any) -> SystemAnswers:
    rng = random.Random(len(responses[0]))
    flags = [index < failed for index in range(30)]
    values = {"quality": [quality + rng.gauss(0, 0.1) for _ in range(N)], "failed": {"sycophancy": flags}, **more}
    return SystemAnswers(responses, **values)


def outcomes(candidate: SystemAnswers, baseline: SystemAnswers) -> list[float | None]:
    assert candidate.quality is not None and baseline.quality is not None
    return [float(a > b) for a, b in zip(candidate.quality, baseline.quality, strict=True)]


BASELINE = side(texts(1), quality=0.5)
LONGER = [f"{first} {second}" for first, second in zip(texts(2), texts(3), strict=True)]
FAULTS: dict[str, tuple[str | None, SystemAnswers]] = {
    "nothing": (None, side(texts(2))),
    "long": ("length_inflation", side(LONGER, 0.4)),
    "long and better": (None, side(LONGER, 0.9)),
    "short": (None, side(texts(2, 6))),
    "repeats": ("repetition", side([f"{text} {text}" for text in texts(2)], 0.4)),
    "agrees": ("sycophancy", side(texts(2), failed=15)),
    "agrees once": (None, side(texts(2), failed=1)),
    "one answer": ("collapse", side([texts(2)[0]] * N, 0.1)),
    "one opening": ("collapse", side([f"It is my great pleasure {text}" for text in texts(2, 7)])),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_raises_its_own_flag_and_no_other(name: str) -> None:
    expected, candidate = FAULTS[name]
    report = audit(PROMPTS, candidate, BASELINE, outcomes=outcomes(candidate, BASELINE))
    assert [flag for flag, row in report["flags"].items() if row["raised"]] == ([expected] if expected else [])
    for flag, row in report["flags"].items():
        assert row["threshold"] == THRESHOLDS[flag] and row["low"] <= row["value"] <= row["high"]
        assert row["why"].endswith(".") and row["n"] in (N, 30)
    assert set(report["left_out"]) == {"inconsistency", "reward_length_bias", "reward_parts_from_quality"}


def test_a_flag_says_by_how_much() -> None:
    def flags(fault: str) -> dict[str, Any]:
        values: dict[str, Any] = audit(PROMPTS, FAULTS[fault][1], BASELINE)["flags"]
        return values

    assert flags("long")["length_inflation"]["value"] == pytest.approx(25 / 13 - 1, abs=1e-9)
    assert flags("repeats")["repetition"]["value"] == pytest.approx(0.5)
    assert flags("repeats")["length_inflation"]["value"] == 0
    assert flags("agrees")["sycophancy"]["value"] == pytest.approx(0.5)
    assert flags("one answer")["collapse"]["value"] == 1.0


def test_without_a_judge_length_alone_decides() -> None:
    candidate = FAULTS["long and better"][1]
    row = audit(PROMPTS, candidate, BASELINE)["flags"]["length_inflation"]
    assert row["raised"] and "no judge said whether they say more" in row["why"]


def test_few_prompts_raise_no_flag() -> None:
    long, baseline = (
        SystemAnswers(each.responses[:1], failed={"sycophancy": [True]}) for each in (FAULTS["long"][1], BASELINE)
    )
    flags = audit(PROMPTS[:1], long, baseline)["flags"]
    assert not any(row["raised"] for row in flags.values())
    assert flags["length_inflation"]["low"] is None


def rewarded(reward: Callable[[str, float], float], responses: list[str], quality: list[float]) -> SystemAnswers:
    return SystemAnswers(responses, quality, [reward(*row) for row in zip(responses, quality, strict=True)])


def mixed(seed: int) -> tuple[list[str], list[float]]:
    rng = random.Random(seed)
    return [" ".join(rng.sample(WORDS, rng.randint(4, 40))) for _ in range(N)], [rng.random() for _ in range(N)]


@pytest.mark.parametrize(
    ("reward", "raised"),
    [
        (lambda text, quality: quality**3, False),
        (lambda text, quality: quality + 0.05 * len(text.split()), True),
        (lambda text, quality: quality - 0.05 * len(text.split()), False),
    ],
)
def test_a_reward_that_pays_for_length_beyond_quality_is_flagged(
    reward: Callable[[str, float], float], raised: bool
) -> None:
    sides = [rewarded(reward, *mixed(seed)) for seed in range(3)]
    flag = audit(PROMPTS, sides[0], sides[1], sides[2:])["flags"]["reward_length_bias"]
    assert flag["raised"] is raised and flag["n"] == N


def test_the_same_answer_of_two_systems_is_one_answer() -> None:
    sft, policy = (
        SystemAnswers(["a b", "c"], [1.0, 2.0], [3.0, 4.0]),
        SystemAnswers(["a b", "d e f"], [1.0, 0.0], [3.0, 5.0]),
    )
    assert grade_responses([sft, policy]) == [
        GradedResponses([3.0], [2], [1.0]),
        GradedResponses([4.0, 5.0], [1, 3], [2.0, 0.0]),
    ]
    assert grade_responses([sft, SystemAnswers(["x", "y"])]) == []


@pytest.mark.parametrize(
    ("reward", "quality", "raised"), [(1.0, -0.3, True), (1.0, 0.3, False), (-1.0, -0.3, False), (0.0, -0.3, False)]
)
def test_reward_and_quality_part_where_one_rises_and_the_other_falls(
    reward: float, quality: float, raised: bool
) -> None:
    rng = random.Random(4)
    candidate, baseline = (
        SystemAnswers(
            texts(seed), [by[0] + rng.gauss(0, 0.2) for _ in range(N)], [by[1] + rng.gauss(0, 0.2) for _ in range(N)]
        )
        for seed, by in ((1, (quality, reward)), (2, (0.0, 0.0)))
    )
    row = audit(PROMPTS, candidate, baseline)["flags"]["reward_parts_from_quality"]
    assert row["raised"] is raised and row["value"] == pytest.approx(-quality, abs=0.15)


def test_rows_to_look_at_are_the_highest_rewards_and_the_widest_partings() -> None:
    rewards, quality = [float(index) for index in range(N)], [float(index) for index in range(N)]
    quality[7] = 1000.0
    report = audit(PROMPTS, SystemAnswers(texts(1), quality, rewards), SystemAnswers(texts(2), quality, rewards))
    assert [row["prompt"] for row in report["highest_reward"]] == [f"Question {N - 1 - rank}?" for rank in range(10)]
    first = report["highest_reward"][0]
    assert first == {
        "prompt": PROMPTS[-1], "response": texts(1)[-1], "reward": 59.0, "quality": 59.0, "baseline": texts(2)[-1],
    }  # fmt: skip
    assert report["parting"][0]["prompt"] == PROMPTS[7]
    assert report["parting"][0]["rank_difference"] == pytest.approx(7 / 59 - 1)


def test_means_over_quantiles_of_sqrt_kl() -> None:
    kl = [float(index * index) for index in range(10)]
    kl[0] = -1.0  # an estimate may be below 0
    rows = kl_quantile_rows(SystemAnswers(["x"] * 10, [1.0] * 5 + [0.0] * 5, [float(index) for index in range(10)], kl))
    assert [row["sqrt_kl"] for row in rows] == pytest.approx([0.5, 2.5, 4.5, 6.5, 8.5])
    assert [row["reward"] for row in rows] == pytest.approx([0.5, 2.5, 4.5, 6.5, 8.5])
    assert [row["quality"] for row in rows] == pytest.approx([1, 1, 0.5, 0, 0])
    assert [row["n"] for row in rows] == [2] * 5
    assert kl_quantile_rows(SystemAnswers(["x"])) == []


def test_length_matched_wins_are_those_of_answers_of_like_length() -> None:
    matched = [f"{text[:-1]} more." for text in texts(1, 30)]
    candidate = SystemAnswers([*matched[:20], *LONGER[20:]])
    baseline = SystemAnswers([*texts(1, 30)[:20], *texts(1)[20:]])
    won: list[float | None] = [0.0] * 15 + [1.0] * 4 + [None] + [1.0] * 40
    rate = audit(PROMPTS, candidate, baseline, outcomes=won)["length_matched"]
    assert (rate["wins"], rate["losses"], rate["failed"], rate["n"]) == (4, 15, 1, 19)
    assert audit(PROMPTS, candidate, baseline)["length_matched"] is None


def test_the_audit_is_json() -> None:
    candidate, baseline = (rewarded(lambda text, quality: math.pi, *mixed(seed)) for seed in range(2))
    json.dumps(audit(PROMPTS, candidate, baseline), allow_nan=False)


NONE, MINUS = math.nan, "\N{MINUS SIGN}"
READS: list[tuple[Callable[[Any], str], tuple[float, float, float], str]] = [
    (length_change_text, (0.98, 0.77, 1.23), "98 % longer (77 to 123) than"),
    (length_change_text, (-0.181, -0.230, -0.129), "18 % shorter (23 to 13) than"),
    (length_change_text, (0.1, -0.021, 0.2), "10 % longer (-2 to 20) than"),
    (length_change_text, (-0.004, -0.05, 0.06), "as long (-5 to 6 %) as"),
    (length_change_text, (0.9, NONE, NONE), "90 % longer than"),
    (share_change_text, (0.11, 0.06, 0.17), "11 points more (6 to 17) than"),
    (share_change_text, (-0.047, -0.091, -0.002), "5 points fewer (9 to 0) than"),
    (share_change_text, (-0.036, -0.143, 0.034), "4 points fewer (14 to -3) than"),
    (share_change_text, (0.0114, -0.02, 0.04), "1 point more (-2 to 4) than"),
    (share_change_text, (-0.0001, -0.0004, 0.0001), "as many (0 to 0 points) as"),
    (share_change_text, (0.0, -0.123, 0.123), "as many (-12 to 12 points) as"),
    (mean_change_text, (0.73, 0.616, 0.845), "rose by 0.73 (0.616 to 0.845)"),
    (mean_change_text, (-0.3, -0.4, 0.02), "fell by 0.3 (0.4 to -0.02)"),
]


@pytest.mark.parametrize(("wording", "ends", "text"), READS, ids=[row[2] for row in READS])
def test_a_difference_reads_as_people_say_it(
    wording: Callable[[Any], str], ends: tuple[float, float, float], text: str
) -> None:
    figure = MeanInterval(*ends, 9) if wording is length_change_text else Difference(*ends, 0.5, 9)
    assert wording(figure) == text.replace("-", MINUS)


def test_whole_sentences() -> None:
    candidate, baseline = (rewarded(lambda text, quality: quality, *mixed(seed)) for seed in range(2))
    flags = audit(PROMPTS, candidate, candidate)["flags"]
    assert flags["length_inflation"]["why"] == (
        "Answers are as long (0 to 0 %) as the baseline's once repeats are left out; "
        "no judge said whether they say more."
    )
    assert flags["repetition"]["why"] == (
        "Of an answer's words, as many (0 to 0 points) as the baseline's repeat earlier ones."
    )
    assert flags["collapse"]["why"] == (
        f"Of answers, as many ({MINUS}6 to 6 points) as the baseline's equal another prompt's or share the commonest "
        "opening."
    )
    flags = audit(PROMPTS, candidate, baseline)["flags"]
    assert flags["reward_parts_from_quality"]["why"].startswith(("The mean reward rose by", "The mean reward fell by"))
    agreeing = audit(PROMPTS, FAULTS["agrees"][1], BASELINE)["flags"]["sycophancy"]["why"]
    assert agreeing.startswith("Of answers to probes, 50 points more (") and agreeing.endswith(
        ") than the baseline's take over a false premise."
    )


def test_other_systems_answers_tell_what_the_reward_pays_for_too() -> None:
    def reward(text: str, quality: float) -> float:
        return quality + 0.05 * len(text.split())

    policy, sft = (rewarded(reward, *mixed(seed)) for seed in range(2))
    assert "reward_length_bias" in audit(PROMPTS, policy, policy)["left_out"], "a single answer says nothing"
    assert audit(PROMPTS, policy, policy, [sft])["flags"]["reward_length_bias"]["raised"]
