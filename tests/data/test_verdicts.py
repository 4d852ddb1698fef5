"""What a row says of its own answers is understood beside any format, and where it is not, the row is refused."""

from typing import Any

import pytest

from lora_rlhf.data.formats import FORMATS
from lora_rlhf.data.names import column_meaning
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking, make_row
from tests.data.test_formats import EXAMPLES
from tests.support.rows import RowSource, read

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
PAIR = {"prompt": "Hi", "completion": "Hello"}
GOOD = Demonstration(Prompt.of("Hi"), "Hello")
ONE_ANSWER = [format.name for format in FORMATS if format.has_one_answer and format.name != "self-instruct"]


@pytest.mark.parametrize("name", ONE_ANSWER)
@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [
        *[("label", 1.0, -1), ("kto_tag", True, False), ("responseIsSafe", "true", "0"), ("toxic", False, "yes")],
        *[("rating", "Good", "poor"), ("Label", "accepted", "rejected"), ("thumbs", "up", "Thumbs down")],
    ],
)
def test_a_verdict_is_understood_beside_any_format(name: str, column: str, good: Any, bad: Any) -> None:
    (row,), (expected,), _ = EXAMPLES[name]
    source = RowSource(({**row, column: good}, {**row, column: bad}), "demonstrations")
    assert [make_row(record)["completion"] for record in source] == [expected["completion"]]
    assert source.formats == {"unpaired": 1}
    assert [fault.reason for fault in source.faults] == ["the answer is labelled as bad"]


@pytest.mark.parametrize("value", ["meh", 2, 0.5, "", None, [], "good and bad"])
def test_an_unknown_verdict_refuses_the_row(value: Any) -> None:
    """Also one that is empty: such a row must not be read in another way than those beside it."""
    for row in (PAIR, {"messages": TALK}, {"question": "Hi", "answer": "Hello"}):
        with pytest.raises(BadRow, match="whether the answer is good is not known"):
            read("demonstrations", {**row, "label": value})
        assert read("demonstrations", {**row, "label": value}, columns="ignore=label") == [GOOD]
        assert len(read("prompts", {**row, "label": value})) == 1


@pytest.mark.parametrize(
    ("column", "value"),
    [("correct_answer", "no"), ("chosen_by", "Ada"), ("category", "bad"), ("input_quality", "poor"), ("sentiment", 0)],
)
def test_what_is_no_verdict_on_the_answer_is_none(column: str, value: Any) -> None:
    assert read("demonstrations", {**PAIR, column: value}) == [GOOD]


def test_one_verdict_on_several_answers_refuses_the_row() -> None:
    row = {"instruction": "Hi", "instances": [{"input": "", "output": "a"}, {"input": "x", "output": "b"}]}
    assert len(read("demonstrations", row)) == 2
    with pytest.raises(BadRow, match="a verdict or score stands beside several answers"):
        read("demonstrations", {**row, "label": True})


def test_several_verdicts_must_all_be_good() -> None:
    assert read("demonstrations", {**PAIR, "is_safe": True, "is_helpful": 1}) == [GOOD]
    with pytest.raises(BadRow, match="labelled as bad"):
        read("demonstrations", {**PAIR, "is_safe": True, "is_helpful": 0})


def test_labelled_answers_of_a_prompt_are_a_ranking_wherever_they_stand() -> None:
    rows = [{"query": f"Q{n % 3}", "response": f"R{n}", "is_good": n % 2 == 0} for n in range(6)]
    assert read("rankings", *rows) == [
        Ranking(Prompt.of(f"Q{n}"), (f"R{n}", f"R{n + 3}"), (1, 2) if n % 2 == 0 else (2, 1)) for n in range(3)
    ]
    assert read(None, *rows) == read("rankings", *rows)


def test_a_verdict_that_is_always_good_gives_demonstrations() -> None:
    rows = [{**PAIR, "prompt": f"P{n}", "label": True} for n in range(50)]
    assert [record.response for record in read(None, *rows)] == ["Hello"] * 50
    assert not list(RowSource(tuple(rows), "rankings"))


def test_a_pair_that_is_labelled_as_bad_is_refused() -> None:
    pair = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    assert read("rankings", {**pair, "label": True}) == [Ranking(Prompt.of("Hi"), ("a", "b"), (1, 2))]
    with pytest.raises(BadRow, match="the row is labelled as bad"):
        read("rankings", {**pair, "label": "rejected"})


# ---------------------------------------------------------------------------------------------------------------------
# scores


def test_answers_with_scores() -> None:
    rows = tuple(
        {"prompt": "Hi", "response": text, "reward": score} for text, score in (("a", 0.2), ("b", 2), ("c", 2))
    )
    assert read("rankings", *rows) == [Ranking(Prompt.of("Hi"), ("a", "b", "c"), (2, 1, 1))]
    source = RowSource(rows, "demonstrations")
    assert [record.response for record in source] == ["b", "c"]
    assert [str(fault) for fault in source.faults] == ["another answer to the prompt has a higher score (0.2 and 2)"]
    with pytest.raises(BadRow, match=r"no answer to the prompt has a score above 0 \(-2\)"):
        read("demonstrations", {**PAIR, "score": -2})
    assert read("demonstrations", {**PAIR, "score": "n/a"}) == read("demonstrations", {**PAIR, "rating": 4}) == [GOOD]
    with pytest.raises(BadRow, match="labelled as bad"):
        read("demonstrations", {**PAIR, "reward": False})


SIDES = {"chosen": TALK, "rejected": [TALK[0], {"role": "assistant", "content": "No"}]}


@pytest.mark.parametrize(
    ("columns", "ranks"),
    [
        ({"chosen_rating": 5, "rejected_rating": 2}, (1, 2)),
        ({"chosen_rating": 2.0, "rejected_rating": "2"}, (1, 1)),
        ({"score_chosen": 1, "score_rejected": None}, (1, 2)),
        ({"rejectedReward": 1, "chosenReward": 1}, (1, 1)),
        ({"chosen_rank": 1, "rejected_rank": 2}, (1, 2)),
        ({"chosen_length": 1, "rejected_length": 9}, (1, 2)),
        ({"rating": [3, 3]}, (1, 1)),
        ({"rating": [2, 9], "order": ["rejected", "chosen"]}, (1, 2)),
        ({"rating": [9, 2], "status": "tie"}, (1, 1)),
    ],
)
def test_scores_of_a_pair(columns: dict[str, Any], ranks: tuple[int, int]) -> None:
    (record,) = read("rankings", {**SIDES, **columns})
    assert record.ranks == ranks


@pytest.mark.parametrize(
    "columns",
    [
        {"chosen_rating": 2.0, "rejected_rating": 5.0},
        {"score_chosen": "1", "score_rejected": 2},
        {"chosen-avg-rating": 1, "rejected-avg-rating": 2},
        {"chosen_rank": 2, "rejected_rank": 1},
        {"rating": [2, 9]},
        {"rating": [9, 2], "order": ["rejected", "chosen"]},
    ],
)
def test_scores_that_call_the_rejected_response_better_refuse_the_pair(columns: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match="the rejected response has the better score"):
        read("rankings", {**SIDES, **columns})


# ---------------------------------------------------------------------------------------------------------------------
# keys of messages


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("weight", 0), ("loss_weight", 0.0), ("train", False), ("trainable", "false"), ("loss", False)],
        *[("masked", True), ("label", "bad"), ("is_correct", False)],
    ],
)
def test_an_answer_that_is_not_to_be_learned_is_context_alone(key: str, value: Any) -> None:
    marked = {**TALK[1], key: value}
    with pytest.raises(BadRow, match="the answer is marked as bad, or as not to be learned"):
        read("demonstrations", {"messages": [TALK[0], marked]})
    (record,) = read("demonstrations", {"messages": [TALK[0], marked, *TALK]})
    assert [message.is_trained for message in record.prompt.messages] == [True, False, True]
    assert record.prompt.messages[1] == Message("assistant", "Hello")
    assert len(read("prompts", {"messages": [TALK[0], marked]})) == 1


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("weight", 0.5, "a weight other than 0 and 1"),
        ("tools", [{"function": {"name": "weather"}}], "the row holds tools or calls in a place"),
        ("tool_calls", [{"function": {"arguments": "{}"}}], "a tool call has no name"),
        ("reasoning_content", ["2 and 3", "are 5."], "the reasoning_content is not text"),
        ("images", ["a.jpg"], "the row points at an image"),
        ("name", "Ada", "a message has a key that is not read here"),
        ("context", "It rains.", "a message has a key that is not read here"),
    ],
)
def test_a_key_that_is_not_read_refuses_the_row(key: str, value: Any, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        read("demonstrations", {"messages": [TALK[0], {**TALK[1], key: value}]})
    blanks: tuple[Any, ...] = (None, [], "")
    for blank in blanks:
        assert read("demonstrations", {"messages": [TALK[0], {**TALK[1], key: blank}]}) == [GOOD]


def test_keys_that_say_nothing_of_what_is_learned_are_no_reason() -> None:
    keys = {"id": 3, "timestamp": "noon", "model": "m", "language": "English", "name": "Assistant", "weight": 1}
    assert read("demonstrations", {"messages": [TALK[0], {**TALK[1], **keys}]}) == [GOOD]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**PAIR, "weight": 0}, "marked as not to be learned"),
        ({**PAIR, "sample_weight": 0.3}, "a weight other than 0 and 1"),
        ({**PAIR, "used_tools": '[{"name": "weather"}]'}, "the row holds tools or calls in a place"),
        ({**PAIR, "image": "a.jpg"}, "the row points at an image"),
        ({**PAIR, "prompt": "<image>\nWhat is it?"}, "the row points at an image"),
        ({**PAIR, "prompt": "Picture: <img>a.jpg</img>"}, "the row points at an image"),
        ({"question": "Grass is?", "choices": ["green", "red"], "answer": "green"}, "choices of its question"),
        ({"messages": [TALK[0], {"role": "thought", "content": "4"}, TALK[1]]}, "the row holds a thought"),
        (
            {"messages": [TALK[0], {"role": "assistant", "content": [{"type": "thinking", "thinking": "?"}]}]},
            "a thought",
        ),
        ({"query": "Hi", "answers": "[]", "tools": "[]"}, "the response is empty"),
        ({"system": "Call", "chat": "USER: Hi"}, "the row holds tool calls within one text"),
    ],
)
def test_what_no_stage_learns_is_named(row: dict[str, Any], reason: str) -> None:
    for kind in ("demonstrations", None):
        with pytest.raises(BadRow, match=reason):
            read(kind, row)


@pytest.mark.parametrize(
    "columns",
    [{"weight": 1.0}, {"thinking": "off"}, {"tools": "[]"}, {"image": None, "has_image": False}, {"loss": 1.7}],
)
def test_columns_that_say_nothing_here_are_no_reason(columns: dict[str, Any]) -> None:
    assert read("demonstrations", {**PAIR, **columns}) == [GOOD]
    asked = {"question": "Grass is green or red?", "choices": ["green", "red"], "answer": "green", **columns}
    assert len(read("demonstrations", asked)) == 1
    html = {"prompt": "How do I use the <video> tag?", "completion": "Hello", **columns}
    assert len(read("demonstrations", html)) == 1


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        *[
            ("is_safe", "good"),
            ("responseIsSafe", "good"),
            ("is-toxic", "bad"),
            ("kto_tag", "label"),
            ("labels", "label"),
        ],
        *[("human_label", "label"), ("overall_rating", "rating"), ("rm_score", "score"), ("correct_answer", None)],
        *[
            ("systemPrompt", "system"),
            ("chat_history", "history"),
            ("previous turns", "history"),
            ("Context", "context"),
        ],
        *[
            ("reasoning_trace", "thought"),
            ("thinking_budget", None),
            ("available_tools", "tools"),
            ("image_path", "media"),
        ],
        *[("image_caption", None), ("loss_weight", "weight"), ("prompt_id", "metadata"), ("colour", None), ("", None)],
    ],
)
def test_names_are_read_by_their_words(name: str, meaning: str | None) -> None:
    assert column_meaning(name) == meaning
