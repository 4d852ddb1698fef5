"""OpenAssistant's trees: every prompter's turn once, with the conversation before it, from trees and from flat rows."""

import pytest

from lora_rlhf.data.formats import RecordKind
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking
from tests.support.rows import read as read_rows


def node(name: str, role: str, *replies: dict, **columns) -> dict:
    """A message as the set has it, with the name for its text."""
    there = {"lang": "en", "review_count": 3, "review_result": True, "deleted": False, "rank": None, "synthetic": False}
    return {**there, "message_id": name, "text": name, "role": role, "replies": list(replies), **columns}


def tree(*replies: dict, **columns) -> dict:
    root = node("q", "prompter", *replies, **columns)
    return {"message_tree_id": "q", "tree_state": "ready_for_export", "prompt": root}


def flat(row: dict) -> list[dict]:
    """The rows of a tree's messages, each before its replies."""
    rows, waiting = [], [(None, row["prompt"])]
    while waiting:
        parent, message = waiting.pop()
        rows.append({**message, "parent_id": parent, "message_tree_id": row["message_tree_id"]})
        waiting.extend((message["message_id"], reply) for reply in reversed(rows[-1].pop("replies")))
    return rows


def conversation(*texts: str) -> Prompt:
    return Prompt(tuple(Message(("user", "assistant")[place % 2], text) for place, text in enumerate(texts)))


def read(kind: RecordKind, rows: list[dict]) -> list:
    return read_rows(kind, *rows)


DEEP = tree(
    node("a", "assistant", rank=1),
    node(
        "b",
        "assistant",
        node("b1", "prompter", node("x", "assistant", rank=2), node("y", "assistant", rank=0), node("z", "assistant")),
        node("b2", "prompter", node("only", "assistant")),
        rank=0,
    ),
    node("gone", "assistant", node("after", "prompter", node("w", "assistant")), rank=2, deleted=True),
)


@pytest.mark.parametrize("rows", [[DEEP], flat(DEEP)], ids=["tree", "messages"])
def test_every_turn_of_a_tree_is_read(rows: list[dict]) -> None:
    assert read("rankings", rows) == [
        Ranking(conversation("q"), ("a", "b"), (2, 1)),
        Ranking(conversation("q", "b", "b1"), ("x", "y"), (3, 1)),
    ]
    assert read("demonstrations", rows) == [
        Demonstration(conversation("q"), "b"),
        Demonstration(conversation("q", "b", "b1"), "y"),
        Demonstration(conversation("q", "b", "b2"), "only"),
    ]
    assert read("prompts", rows) == [conversation(*texts) for texts in (("q",), ("q", "b", "b1"), ("q", "b", "b2"))]


def test_flat_rows_may_stand_in_any_order_but_not_without_the_first() -> None:
    rows = flat(DEEP)
    assert len(read("rankings", [rows[1], rows[0], *rows[2:]])) == 2
    with pytest.raises(BadRow, match="the tree's first message is not among the rows"):
        read("rankings", rows[1:])
    with pytest.raises(BadRow, match=r"the tree's first message is not among the rows \(found 2\)"):
        read("rankings", [*rows, {**rows[0], "message_id": "other"}])


def test_the_messages_of_one_tree_belong_together() -> None:
    rows = flat(DEEP)
    others = [{**row, "message_tree_id": "other", "text": f"other {row['text']}"} for row in rows]
    mixed = [row for pair in zip(rows, others, strict=True) for row in pair]
    assert read("rankings", mixed) == [*read("rankings", rows), *read("rankings", others)]


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("rankings", tree(), "no prompt with two ranked replies"),
        ("rankings", tree(node("a", "assistant", rank=0), node("b", "assistant")), "no prompt with two ranked replies"),
        ("demonstrations", tree(), "no prompt with a reply"),
        ("demonstrations", tree(node("a", "assistant"), node("b", "assistant")), "no prompt with a reply"),
        ("demonstrations", tree(node("a", "assistant", deleted=True)), "no prompt with a reply"),
        ("prompts", tree(deleted=True), "the tree holds no prompt"),
        ("rankings", tree(node("a", "assistant", rank="0"), node("b", "assistant", rank=1)), "rank is not a number"),
        (
            "rankings",
            tree(node("a", "assistant", rank=0), node("b", "assistant", rank=-1)),
            "not a whole number from 1",
        ),
        ("rankings", tree(node("a", "assistant", rank=0), node("b", "assistant", rank=1, text=None)), "is not text"),
        ("prompts", tree(node("a", "judge")), "role is not one of"),
        ("prompts", tree(text=" "), "the prompt is empty"),
        (
            "prompts",
            {"message_tree_id": "q", "prompt": {"role": "prompter", "text": "q", "replies": "a"}},
            "not a list of",
        ),
    ],
)
def test_a_tree_that_can_not_be_used_says_why(kind: RecordKind, row: dict, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        read(kind, [row])


def test_a_tree_of_any_depth_is_read_or_refused() -> None:
    row = tree()
    leaf = row["prompt"]
    for depth in range(5000):
        leaf["replies"] = [node(str(depth), ("assistant", "prompter")[depth % 2])]
        leaf = leaf["replies"][0]
    with pytest.raises(BadRow, match=r"the tree is too deep \(more than 200 turns\)"):
        read("prompts", [row])
