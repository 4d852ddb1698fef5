"""A reward function in its own process: how it is called, and that nothing that it does reaches the run."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy
import pytest

from lora_rlhf.configs.reward_functions import read_choices
from lora_rlhf.rewards.process import RewardFunction, ScoredRow
from lora_rlhf.rewards.worker import to_scores
from lora_rlhf.system.errors import UserError

GOOD, BAD = "a good one", "bad"


def open_function(name: str, timeout_s: float = 60.0, memory_gib: float | None = 1.0) -> RewardFunction:
    (choice,) = read_choices([name if ":" in name or "(" in name else f"tests.support.bad_rewards:{name}"])
    return RewardFunction(choice, timeout_s, memory_gib, failure_score=-3.0)


def row(text: str, ids: tuple[int, ...] = (1,), **columns: Any) -> ScoredRow:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    return ScoredRow(messages, text, list(ids), columns)


def test_a_function_sees_the_row_as_trl_gives_it() -> None:
    function = open_function("rows")
    assert function.score([row("A0", (1,), answer="x", level=5), row("A1", (2, 3), answer="y")]) == ([1.0, None], 0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("of_answer_alone", [0.0, 1.0]),
        ("of_texts", [1.0, 0.0]),
        ("tests.support.bad_rewards:of_texts(scale=2.5)", [2.5, 0.0]),
        ("tests.support.bad_rewards:of_answer_alone(answer='@gold')", [1.0, 0.0]),
        ("of_tensor", [0.0, 1.0]),
        ("exact_answer(answer='B')", [0.0, 1.0]),
        ("exact_answer(answer='@gold')", [1.0, 0.0]),
    ],
)
def test_ways_to_call(name: str, expected: list[float]) -> None:
    rows = [row("A", answer="B", gold="A"), row("B", answer="B", gold="A")]
    function = open_function(name)
    function.try_out(rows)
    assert function.score(rows) == (expected, 0)


def test_a_built_in_function_does_not_apply_to_a_row_without_its_column() -> None:
    assert open_function("exact_answer()").score([row("A"), row("A", answer="A")]) == ([None, 1.0], 0)


def test_functions_of_trl_by_name() -> None:
    pytest.importorskip("trl")
    function = open_function("think_format_reward()", memory_gib=None)
    assert function.score([row("<think>x</think>y"), row("y")]) == ([1.0, 0.0], 0)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fail", "failed with ZeroDivisionError: a bad response"),
        ("allocate", "failed with MemoryError"),
        ("leave", "ended its process"),
        ("kill_itself", "ended its process"),
        ("exit_by_error", "failed with SystemExit: 3"),
        ("nonsense", "it returned a str, not a list"),
    ],
)
def test_only_the_rows_at_fault_get_the_score_of_a_failure(
    name: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    function = open_function(name)
    function.try_out([row(GOOD)])
    assert function.score([row(GOOD), row(BAD), row(GOOD)]) == ([1.0, -3.0, 1.0], 1)
    assert f"reward function {name} failed on 1 of 3 responses" in caplog.text and reason in caplog.text
    assert "their score is -3" in caplog.text
    assert function.score([row(GOOD)]) == ([1.0], 0)  # and it goes on


def test_a_function_that_hangs_is_ended() -> None:
    function = open_function("hang", timeout_s=1.0)
    began = time.monotonic()
    assert function.score([row(GOOD), row(BAD)]) == ([1.0, -3.0], 1)
    assert function.score([row(BAD)] * 40) == ([-3.0] * 40, 40)  # after three times the limit the rest is not tried
    assert time.monotonic() - began < 30


def test_nan_is_a_failure_of_its_row_and_none_is_no_score() -> None:
    assert open_function("partly_nan").score([row(GOOD), row(BAD)]) == ([None, -3.0], 1)


def test_what_a_function_prints_is_no_answer() -> None:
    assert open_function("write_noise").score([row(GOOD)] * 2) == ([1.0, 1.0], 0)


def test_the_process_ends_with_its_function() -> None:
    function = open_function("fail")
    assert function._process is not None
    number = function._process.pid
    del function
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("gone", ("cannot be imported", "PYTHONPATH")),
        ("nowhere:f", ("'nowhere:f' cannot be imported", "No module named 'nowhere'")),
        ("nothing_like_it()", ("no reward function is called 'nothing_like_it'", "numeric_answer", "trl.rewards")),
        ("regex(pattern='(')", ("called once to try it", "error", "unterminated")),
        ("regex()", ("needs the column 'pattern'", "other columns are: answer, level", 'pattern="@COLUMN"')),
        ("tests.support.bad_rewards:of_texts(size=1)", ("no parameter 'size'; it has prompts, replies, scale",)),
        ("fail", ("called once to try it", "ZeroDivisionError")),
        ("hang", ("called once to try it", "took longer than 2 s")),
        ("partly_nan", ("called once to try it", "returned nan")),
    ],
)
def test_a_function_that_cannot_be_used_is_refused_at_once(name: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        open_function(name, timeout_s=2.0).try_out([row(BAD, answer="x", level=1)])
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0, 2.0], "it returned 2 scores for 3 responses"),
        (1.0, "it returned a float, not a list of numbers"),
        (None, "it returned a NoneType, not a list"),
        ("abc", "it returned a str, not a list"),
        ({1: 1, 2: 2, 3: 3}, "it returned a dict, not a list"),
        (numpy.ones((3, 1)), "it returned a list where a number is expected"),
        (["1", "2", "3"], "it returned a str where a number is expected"),
    ],
)
def test_what_is_no_list_of_numbers(returned: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_scores(returned, 3)


def test_flags() -> None:
    choices = read_choices(["a.b:f", "a:f=0.5", "regex(pattern='^x=1$', n=[1, 2])=-2e-1"])
    assert [(choice.name, choice.label, choice.weight) for choice in choices] == [
        *(("a.b:f", "f", 1.0), ("a:f", "f_2", 0.5), ("regex", "regex", -0.2))
    ]
    assert choices[2].arguments == {"pattern": "^x=1$", "n": [1, 2]}
    for text in ("", "a:b:c", "f=x", "f(1)", "f(x=g())", "f(x=1", "a b", "f(**{'x': 1})"):
        with pytest.raises(UserError, match="is not of the form NAME"):
            read_choices([text])


def test_a_module_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def f(completions):\n    return [len(c[0]['content']) for c in completions]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert json.dumps(open_function("mine:f").score([row("four")])) == "[[4.0], 0]"
