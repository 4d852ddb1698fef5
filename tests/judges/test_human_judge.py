"""Rankings that people gave, as a judge."""

import json
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.configs.judge import JudgeConfig
from lora_rlhf.judges.choose import open_judge
from lora_rlhf.judges.human import HumanJudge
from lora_rlhf.system.errors import UserError
from tests.support.judges import QUESTIONS, answers, asked


@pytest.fixture
def path(tmp_path: Path) -> str:
    rows: list[dict[str, Any]] = [
        {"prompt": QUESTIONS[0], "responses": ["a", "b", "c"], "ranks": [2, 1, 2], "labeler": "Ann"},
        {"prompt": QUESTIONS[0], "responses": ["b", "a"], "ranks": [2, 1], "labeler": "Bo"},
        {"prompt": QUESTIONS[0], "responses": ["b", "a"], "ranks": [1, 2], "labeler": "Cy"},
        {"prompt": QUESTIONS[1], "responses": [" a\n", "b"], "ranks": [1, 2], "labeler": "Ann"},
    ]
    file = tmp_path / "people.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_an_outcome_is_the_mean_of_the_votes(path: str) -> None:
    judge = HumanJudge(path)
    prompts = asked(*[QUESTIONS[0]] * 4, QUESTIONS[1], QUESTIONS[1].upper())
    verdicts = judge.compare(prompts, answers("a", "b", "a", "b", "a ", "b"), answers("b", "a", "c", "c", "b", "a"))
    # a against b: Ann 0, Bo 1, Cy 0; Ann alone ranked c
    assert verdicts.outcomes == [pytest.approx(1 / 3), pytest.approx(2 / 3), 0.5, 1.0, 1.0, 0.0]
    assert verdicts.failures == 0
    about = judge.describe()
    assert (about["pairs"], about["judged"], about["votes"], about["divided"]) == (6, 6, 10, 2)
    assert (about["name"], about["rankings"], about["labelers"], about["refused"]) == ("human", 4, 3, 0)


def test_what_nobody_ranked_has_no_outcome(path: str) -> None:
    judge = HumanJudge(path)
    prompts = asked(QUESTIONS[0], QUESTIONS[1], QUESTIONS[2], QUESTIONS[2])
    verdicts = judge.compare(prompts, answers("a", "a", "a", "same"), answers("z", "c", "b", "same "))
    assert verdicts.outcomes == [None, None, None, 0.5] and verdicts.failures == 3
    about = judge.describe()
    assert (about["pairs"], about["identical"], about["judged"], about["failures"]) == (4, 1, 0, 3)


def test_a_file_without_rankings(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(UserError, match=r"p\.jsonl"):
        open_judge(JudgeConfig(judge="human", judge_file=str(tmp_path / "p.jsonl")), "runs/x", "cpu", False)
