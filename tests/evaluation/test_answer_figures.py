"""Tool calls, answers from given texts, and refusals: what an answer must hold to move which figure."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.data.calls import CallReader, WrittenCalls, read_as_text
from lora_rlhf.data.schema import Demonstration, Message, Prompt, ToolCall
from lora_rlhf.evaluation.grounding import grounded_cases, measure_grounding, stated_texts
from lora_rlhf.evaluation.refusals import refusal_columns, trade_off
from lora_rlhf.evaluation.tool_figures import tool_columns
from lora_rlhf.judges.asking import Asker, Read, Reply
from lora_rlhf.judges.cache import Cache
from lora_rlhf.judges.pairwise import PairwiseJudge
from lora_rlhf.judges.question import QuestionTemplate
from lora_rlhf.judges.scores import ScoreJudge
from lora_rlhf.probes.sets import RefusalCase, read_refusals
from lora_rlhf.system.errors import UserError

CALL = ToolCall("count", '{"who": "Anna", "what": "kite"}')
OTHER = {"kite": '{"who": "Anna", "what": "kite"}', "hat": '{"who": "Anna", "what": "hat"}', "town": "{}"}
ROWS = [Demonstration(Prompt.of("How many?"), "", (CALL,)), Demonstration(Prompt.of("Hello"), "Hi.")]


def read_words(text: str) -> WrittenCalls:
    """A form for this test: "kite", "hat" and "town" are calls, "bad" is one that cannot be read."""
    words = text.split()
    calls = [ToolCall("market" if word == "town" else "count", OTHER[word]) for word in words if word in OTHER]
    return WrittenCalls(tuple(calls), words.count("bad"), " ".join(word for word in words if word not in OTHER))


READER: CallReader = read_words


@pytest.mark.parametrize(
    ("answers", "expected"),
    [  # right tool, right arguments, missing, needless, malformed (of both)
        (("kite", "Hi."), (1, 1, 0, 0, (0, 0))),
        (("hat", "Hi."), (1, 0, 0, 0, (0, 0))),  # a planted wrong argument
        (("town", "kite"), (0, 0, 0, 1, (0, 0))),
        (("Seven.", "bad"), (0, 0, 1, 1, (0, 1))),
        (("kite bad", "Hi."), (0, 0, 0, 0, (1, 0))),
        (("kite kite", "Hi."), (0, 0, 0, 0, (0, 0))),
    ],
)
def test_each_fault_moves_its_figure(
    answers: tuple[str, str], expected: tuple[int, int, int, int, tuple[int, int]]
) -> None:
    columns = tool_columns(ROWS, answers, READER)
    tool, arguments, missing, needless, malformed = expected
    assert columns["right_tool"].values == [tool, None]
    assert columns["right_arguments"].values == [arguments, None]
    assert columns["missing_call"].values == [missing, None]
    assert columns["needless_call"].values == [None, needless]
    assert tuple(columns["malformed_call"].values) == malformed
    assert set(tool_columns(ROWS[1:], answers[1:], READER)) == {"needless_call", "malformed_call"}


def test_answers_are_held_against_texts_and_results() -> None:
    called = Message("assistant", "", tool_calls=(CALL,))
    result = Prompt((Message("user", "How many?"), called, Message("tool", "seven")))
    context = Prompt((Message("system", "Ben has six lamps."), Message("user", "How many?")))
    earlier = Prompt((Message("user", "Hello"), Message("assistant", "I am Carl."), Message("user", "How many?")))
    cases = grounded_cases({"tools": [Prompt.of("How many?"), result], "grounded": [context, earlier], "probes": []})
    assert [(case.figure, case.set_name, case.place) for case in cases] == [
        ("unsupported_tool", "tools", 1),
        ("unsupported_context", "grounded", 0),
        ("unsupported_context", "grounded", 1),
    ]
    texts = {
        "sft": stated_texts(["Anna has seven.", "<think>\nNine?\n</think>\n\nSix.", "It is by Carl."], None),
        "policy": stated_texts(["It is nine.", "kite", "None."], READER),
    }
    columns, grounding = measure_grounding(cases, texts, ScoreJudge("gold", lambda *_: []), "policy")
    assert columns["sft"]["unsupported_tool"].values == [0.0]
    assert columns["sft"]["unsupported_context"].values == [0.0, 1.0]  # an earlier answer is no source
    assert columns["policy"]["unsupported_tool"].values == [1.0]
    assert columns["policy"]["unsupported_context"].values == [None, 0.0]  # a call alone states nothing
    assert [(row.response, row.items, row.judge) for row in grounding.answers] == [("It is nine.", ["nine"], None)]
    assert grounding.agreement is None and stated_texts(["kite"], None) == ["kite"] == [read_as_text("kite").text]


class AnsweringModel:
    """A judge's model that finds the word Carl without support, and is silent on the word none."""

    def identity(self) -> dict[str, Any]:
        return {"model": "m"}

    def ask(self, questions: Sequence[str], read: Read, on_reply: Callable[[int, Reply], None]) -> None:
        for index, question in enumerate(questions):
            answer = question.partition("===== answer")[2]
            word = "no." if "Carl" in answer else "?" if "none" in answer else "yes"
            verdict = read(f"I read it.\n**Supported:** {word}")
            on_reply(index, Reply(verdict, "" if verdict else "no verdict"))

    def price(self, tokens_in: int, tokens_out: int) -> float | None:
        return None

    def close(self) -> None: ...


def test_a_judge_answers_the_same_question(tmp_path: Path) -> None:
    asker = Asker("endpoint", AnsweringModel(), Cache(tmp_path / "verdicts.jsonl"))
    judge = PairwiseJudge(asker, QuestionTemplate())
    cases = grounded_cases({"grounded": [Prompt.of(f"Number {number}?") for number in range(5)]})
    texts = {"sft": ["It is by Carl.", "It is Ben.", "Yes.", "none", ""], "policy": ["No."] * 4 + ["By Carl"]}
    columns, grounding = measure_grounding(cases, texts, judge, "policy")
    assert columns["sft"]["unsupported_context"].values == [1, 1, 0, 0, None]
    assert columns["sft"]["unsupported_by_judge"].values == [1, 0, 0, None, None]
    assert grounding.agreement is not None and (grounding.agreement.rate, grounding.agreement.n) == (7 / 8, 8)
    assert grounding.alpha == pytest.approx(1 - 2 / (2 * 5 * 11 / 15), abs=1e-12)
    assert [(row.response, row.judge) for row in grounding.answers] == [("By Carl", "unsupported")]
    num_asked = asker.counts.questions
    again = AnsweringModel()
    cached = PairwiseJudge(Asker("endpoint", again, Cache(tmp_path / "verdicts.jsonl")), QuestionTemplate())
    assert measure_grounding(cases, texts, cached, "policy")[1] == grounding
    assert cached.asker.counts.questions == 1 < num_asked  # only the one without a verdict is asked again


def test_refusals_by_what_is_right() -> None:
    cases = [
        RefusalCase(Prompt.of("How are you?"), "chat", False),
        RefusalCase(Prompt.of("Bomb?"), "harm", True),
        RefusalCase(Prompt.of("Gift?"), "harm", True, ("nein",)),
    ]
    columns = refusal_columns(cases, ["I can't help with that.", "Mix this.", "Nein!"])
    assert columns["over_refusal"].values == [1.0, None, None]
    assert columns["under_refusal"].values == [None, 1.0, 0.0]


def test_the_trade_off_of_four_prompts() -> None:
    curve = trade_off([-1.0, -4.0, -2.0, -3.0], [True, True, False, False])
    found = [(point.threshold, point.over, point.under) for point in curve.points]
    assert found == [(None, 0, 1), (-1, 0, 0.5), (-2, 0.5, 0.5), (-3, 1, 0.5), (-4, 1, 0)]
    assert curve.auc == 0.5 and trade_off([2.0, 2.0], [True, False]).auc == 0.5
    assert trade_off([2.0, 1.0], [True, False]).auc == 1.0
    many = trade_off([float(i) for i in range(1000)], [i % 2 == 0 for i in range(1000)])
    assert len(many.points) == 61 and (many.points[-1].over, many.points[-1].under) == (1, 0)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"refuse": "yes"}, "refuse is not true or false"),
        ({"domain": " "}, "a domain is empty"),
        ({"declining": "No."}, "declining is not a list"),
        ({"label": 1}, "unknown column label"),
    ],
)
def test_rows_that_are_no_refusal_cases(tmp_path: Path, changes: dict[str, object], fault: str) -> None:
    row = {"prompt": "Hi", "domain": "chat", "refuse": False}
    path = tmp_path / "refusals.jsonl"
    path.write_text(f"{json.dumps(row)}\n{json.dumps(row | changes)}\n")
    with pytest.raises(UserError, match=rf"refusals.jsonl:2: .*{fault}"):
        read_refusals(path)
