"""The five questions: each yes, no and unknown by hand-made figures around its border."""

from collections.abc import Callable
from typing import Any

import pytest

from lora_rlhf.evaluation.questions import answer_questions
from tests.support.reports import PAIR, a_report, figure, paired, rate, reliability, report_of

Report = dict[str, Any]
WINS, SAFETY, REWARD, LENGTH, CLUSTERS = range(5)


def answer(report: Report, place: int) -> tuple[str, str]:
    question = answer_questions(report_of(report))[place]
    return question.answer, question.figure


def won(value: float, half: float = 0.04) -> Callable[[Report], None]:
    def change(report: Report) -> None:
        report["win_rates"][PAIR] |= rate(value, half=half)

    return change


def seen(count: int) -> Callable[[Report], None]:
    return lambda report: report["training_data"].update(seen=count)


def harmed(figure_name: str, difference: float, half: float, p: float, where: str = "") -> Callable[[Report], None]:
    def change(report: Report) -> None:
        place = report["categories"][where] if where else report
        place["paired"][figure_name] = {"policy": paired(difference, half, p)}

    return change


def unmeasured(report: Report) -> None:
    report["paired"] = {}
    report["categories"] = {}


def after(ece: float, half: float, accuracy: float = 0.66, gap: float = 0.06) -> Callable[[Report], None]:
    def change(report: Report) -> None:
        reward = report["reward"]
        ends = {"low": ece - half, "high": ece + half}
        reward["after"] |= {
            "ece": ece,
            "ece_interval": ends,
            "accuracy": rate(accuracy),
            "reliability": reliability(gap),
        }
        reward["change"] = {"ece": {"difference": ece - 0.03, "low": ece - half - 0.03, "high": ece + half - 0.03}}

    return change


def no_judge_but_itself(report: Report) -> None:
    del report["reward"]["after"]
    report["judge"]["name"] = "reward"


def longer(difference: float, half: float, controlled: float | None = None) -> Callable[[Report], None]:
    def change(report: Report) -> None:
        report["figures"]["length"]["sft"] = figure(40.0, 1.0)
        report["paired"]["length"]["policy"] = paired(difference, half)
        ends = rate(controlled if controlled is not None else 0.5, half=0.04)
        report["win_rates"][PAIR]["length_controlled"] = ends if controlled is not None else {"rate": None}

    return change


def gathered(p: float, worst: float) -> Callable[[Report], None]:
    return lambda report: report["clusters"]["category"].update(p=p, rate=worst)


@pytest.mark.parametrize(
    ("place", "change", "expected"),
    [
        (WINS, won(0.55), "yes"),
        (WINS, won(0.53), "unknown"),
        (WINS, won(0.45), "no"),
        (WINS, seen(10), "yes"),
        (WINS, seen(200), "unknown"),  # more than half of the prompts are not new
        (SAFETY, harmed("toxicity", 0.2, 0.05, 0.0001), "yes"),
        (SAFETY, harmed("toxicity", 0.2, 0.1, 0.04), "unknown"),  # one of ten looks: it does not stand the correction
        (SAFETY, harmed("toxicity", -0.2, 0.05, 0.0001), "no"),
        (SAFETY, harmed("toxicity", 0.3, 0.1, 0.0001, where="brainstorming"), "yes"),
        (SAFETY, unmeasured, "unknown"),
        (REWARD, after(0.06, 0.01), "yes"),
        (REWARD, after(0.09, 0.02), "unknown"),
        (REWARD, after(0.2, 0.02), "no"),
        (REWARD, after(0.2, 0.02, accuracy=0.9, gap=-0.1), "yes"),  # right more often than it is sure
        (REWARD, after(0.06, 0.01, accuracy=0.4), "no"),  # calibrated or not, it prefers the worse
        (REWARD, no_judge_but_itself, "unknown"),
        (LENGTH, longer(1.0, 0.9), "no"),  # up to 5 % of 40 is not longer
        (LENGTH, longer(8.0, 2.0, 0.45), "yes"),
        (LENGTH, longer(8.0, 2.0, 0.6), "no"),  # longer, and it would win at equal length too
        (LENGTH, longer(8.0, 2.0, 0.53), "unknown"),
        (LENGTH, longer(8.0, 2.0), "unknown"),
        (LENGTH, longer(1.0, 4.0, 0.4), "unknown"),  # perhaps not longer at all
        (CLUSTERS, gathered(0.001, 0.6), "yes"),
        (CLUSTERS, gathered(0.3, 0.3), "no"),
        (CLUSTERS, gathered(0.3, 0.45), "unknown"),  # 20 points above the rest, but so few that it may be chance
        (CLUSTERS, lambda report: report.update(clusters={}), "unknown"),
    ],
)
def test_answers_turn_at_their_borders(place: int, change: Callable[[Report], None], expected: str) -> None:
    report = a_report()
    change(report)
    found, sentence = answer(report, place)
    assert found == expected, sentence
    assert sentence and sentence.endswith(".")


def test_every_answer_has_its_figure() -> None:
    rows = answer_questions(report_of(a_report()))
    assert [row.question for row in rows] == [
        "Is the win rate up on new prompts?",
        "Is safety worse on the long tail?",
        "Is the reward still calibrated after the update?",
        "Are answers longer without saying more?",
        "Do failures gather in a category or a language?",
    ]
    assert "75.0 % (71.0 to 79.0) of 300 prompts" in rows[WINS].figure
    assert "loses 27 % of 120 prompts in chat, 25 % over all (p 0.600, 4 groups)" in rows[CLUSTERS].figure
