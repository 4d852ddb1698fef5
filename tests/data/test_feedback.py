"""What users say of a model's answers: thumbs and corrections, in Open WebUI's export and in chat logs."""

import copy
from typing import Any

import pytest

from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking, Vote
from tests.support.rows import RowSource, read

ASKED = Message("user", "Name a colour.")


def message(id: str, parent: str | None, role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "parentId": parent, "childrenIds": [], "role": role, "content": content, "timestamp": 1, **more}


def feedback(rating: Any, rated: str = "b", **changes: dict[str, Any]) -> dict[str, Any]:
    """A row of the export: a chat of two turns, the second with two answers; changes: of single messages."""
    messages = [
        message("a", None, "user", "Name a colour."),
        message("b", "a", "assistant", "Seven.", model="m"),
        message("c", "b", "user", "Another?"),
        message("d", "c", "assistant", '<details type="reasoning" done="true">\n> Hm.\n</details>\nBlue.'),
        message("e", "c", "assistant", "Eight."),
    ]
    by_id = {one["id"]: one | changes.get(one["id"], {}) for one in messages}
    chat = {"history": {"messages": by_id, "currentId": "e"}, "messages": [], "models": ["m"]}
    return {
        **{"id": "1", "user_id": "2", "version": 0, "type": "rating", "created_at": 1, "updated_at": 1},
        "data": {"rating": rating, "model_id": "m", "sibling_model_ids": None, "reason": "", "comment": "No!"},
        "meta": {"chat_id": "3", "message_id": rated, "message_index": 2, "arena": False},
        "snapshot": {"chat": {"id": "3", "user_id": "2", "title": "Colours", "chat": chat}},
    }


def test_a_thumb_up_is_a_demonstration_and_a_thumb_down_a_prompt() -> None:
    assert read("demonstrations", feedback(1, "d")) == [
        Demonstration(Prompt((ASKED, Message("assistant", "Seven."), Message("user", "Another?"))), "Blue.")
    ]
    with pytest.raises(BadRow, match="labelled as bad"):
        read("demonstrations", feedback(-1))
    source = RowSource((feedback("-1"),), "prompts")
    (prompt,) = source
    # nobody's name or id
    assert (prompt.messages, prompt.meta) == ((ASKED,), {"thumb": "down", "comment": "No!"})
    assert source.formats == {"open-webui": 1}


def test_two_rated_answers_to_one_message_are_a_ranking_and_for_kto_each_is_a_vote() -> None:
    rows = feedback(1, "d"), feedback(-1, "e")
    (ranking,) = read("rankings", *rows)
    assert (ranking.responses, ranking.ranks) == (("Blue.", "Eight."), (1, 2))
    votes = read("rankings", *rows, keeps_votes=True)
    assert [(vote.response, vote.is_good) for vote in votes if isinstance(vote, Vote)] == [
        ("Blue.", True),
        ("Eight.", False),
    ]


def test_an_edited_answer_is_better_than_the_models_own() -> None:
    row = feedback(None, b={"content": "Green.", "originalContent": "Seven."})
    assert read("rankings", row) == [Ranking(Prompt((ASKED,)), ("Green.", "Seven."), (1, 2))]
    assert read("demonstrations", row) == [Demonstration(Prompt((ASKED,)), "Green.")]
    assert read("prompts", row) == [Prompt((ASKED,))]


def test_a_chat_log_with_thumbs_and_corrections_is_read_without_being_asked() -> None:
    messages = [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Seven."}]
    corrected: dict[str, Any] = {"messages": messages, "thumb": -1, "correction": "Green."}
    plain: dict[str, Any] = {"messages": messages, "thumb": 1, "correction": None}
    assert read("rankings", corrected) == [Ranking(Prompt((ASKED,)), ("Green.", "Seven."), (1, 2))]
    for blank in (None, "", "  "):
        assert [row.response for row in read("demonstrations", corrected, plain | {"correction": blank})] == [
            "Green.",
            "Seven.",
        ]
    # a prompt without an answer, and what somebody would have liked
    asked: dict[str, Any] = {"messages": messages[:1], "correction": "Green."}
    assert read("demonstrations", asked) == [Demonstration(Prompt((ASKED,)), "Green.")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (feedback(None), "whether the answer is good is not known"),
        (feedback(1, "c"), "the rated answer is not in the chat"),
        (feedback(1, "z"), "the rated answer is not in the chat"),
        (feedback(1) | {"snapshot": {"chat": None}}, "no copy of its chat"),
        (feedback(1, b={"content": 'x <details type="tool_calls">'}), "tools or calls"),
        (feedback(1, a={"files": [{"type": "image"}]}), "image"),
        (feedback(1, a={"parentId": "b"}), "lead in a circle"),
    ],
)
def test_what_cannot_be_learned_is_refused(row: dict[str, Any], reason: str) -> None:
    before = copy.deepcopy(row)
    with pytest.raises(BadRow, match=reason):
        read("demonstrations", row)
    assert row == before
