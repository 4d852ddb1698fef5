"""The reward playground without a page: conversations as typed, the order of scores, and what an edit did."""

import pytest
from lora_rlhf_demo.playground import Scoring, bars_html, parse_conversation, rank_by_index
from lora_rlhf_demo.state import runs_update

from lora_rlhf.system.errors import UserError


def turns(text: str) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in parse_conversation(text)]


def test_a_plain_text_is_one_message() -> None:
    assert turns(" Who counts? ") == [("user", "Who counts?")]
    assert turns("Tell me who said\nUser: hello") == [("user", "Tell me who said\nUser: hello")]


def test_marked_lines_are_turns() -> None:
    text = "System: Be brief.\nUser: One?\nand more\nAssistant: Yes.\nHuman: Two?"
    expected = [("system", "Be brief."), ("user", "One?\nand more"), ("assistant", "Yes."), ("user", "Two?")]
    assert turns(text) == expected


@pytest.mark.parametrize("text", ["", "User: One?\nAssistant: Yes.", "User: One?\nSystem: Be.\nUser: Two?", "User:"])
def test_what_cannot_be_answered_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_conversation(text)


def test_equal_scores_share_a_rank() -> None:
    assert rank_by_index({0: 0.5, 1: 2.0, 3: 0.5, 4: -1.0}) == {0: 2, 1: 1, 3: 2, 4: 4}


def test_a_change_stays_until_that_answer_changes_again() -> None:
    first = Scoring({}, {}).with_scores({0: 1.0, 1: 2.0})
    assert first.before == {0: 1.0, 1: 2.0}
    second = first.with_scores({0: 1.5, 1: 2.0})
    assert second.before == {0: 1.0, 1: 2.0}
    third = second.with_scores({0: 1.5, 1: 2.5})
    assert third.before == {0: 1.0, 1: 2.0}
    assert third.with_scores({0: 1.7, 1: 2.5}).before == {0: 1.5, 1: 2.0}


def test_bars_are_in_order_and_no_markup() -> None:
    html = bars_html(Scoring({0: -1.0, 1: 2.0}, {0: -1.5, 1: 2.0}), ["<b>one", "two"])
    assert html.index("two") < html.index("&lt;b&gt;one")
    assert "+2.00" in html and "-1.00" in html and "+0.50" in html
    assert "right:50%;width:25.0%" in html and "left:50%;width:50.0%" in html


def test_a_run_that_is_chosen_before_the_page_has_heard_of_the_runs_stays_chosen() -> None:
    assert "value" not in runs_update(["a", "b"], "b")
    assert runs_update(["a", "b"], "gone")["value"] == "a" == runs_update(["a"], None)["value"]
    assert runs_update([], "gone")["value"] is None
