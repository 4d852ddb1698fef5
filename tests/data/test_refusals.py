"""Refusals are counted and grouped, the most frequent reason first, with their first places."""

from lora_rlhf.data.refusals import BadRow, RefusedRows, none_of_phrase
from lora_rlhf.system.errors import UserError


def test_summary_groups_by_reason() -> None:
    refused = RefusedRows()
    refused.add("a.jsonl:2", BadRow("not JSON", "column 4"))
    for line in (3, 5, 7, 9):
        refused.add(f"a.jsonl:{line}", BadRow("too short"))
    assert refused.count == len(refused) == 5
    assert refused.summary(examples=2) == (
        "4 refused: too short [a.jsonl:3; a.jsonl:5, ...]\n1 refused: not JSON (column 4) [a.jsonl:2]"
    )
    assert next(str(row) for row in refused) == "a.jsonl:2: not JSON (column 4)"


def test_a_detail_that_all_share_is_said_once() -> None:
    refused = RefusedRows()
    for line in (1, 2):
        refused.add(f"a.jsonl:{line}", BadRow("no ranks", "add them"))
    assert refused.summary() == "2 refused: no ranks (add them) [a.jsonl:1; a.jsonl:2]"
    refused.add("a.jsonl:3", BadRow("no ranks"))
    assert refused.summary() == "3 refused: no ranks [a.jsonl:1 (add them); a.jsonl:2 (add them); a.jsonl:3]"


def test_one_is_one() -> None:
    refused = RefusedRows()
    refused.truncated_prompts = refused.cut_responses = 1
    assert refused.summary() == "1 prompt truncated from the left\n1 response cut at the limit"
    assert (none_of_phrase(1, "row"), none_of_phrase(1200, "row")) == (
        "not even its only row",
        "none of its 1,200 rows",
    )


def test_extend_adds_refusals_and_truncations() -> None:
    one, other = RefusedRows(), RefusedRows()
    other.add("", BadRow("late"))
    other.truncated_prompts = 2
    one.extend(other)
    assert one.summary() == "1 refused: late\n2 prompts truncated from the left"
    assert RefusedRows().summary() == ""


def test_a_bad_row_is_the_users_to_mend() -> None:
    assert isinstance(BadRow("x", "y"), UserError)
    assert str(BadRow("x", "y")) == "x (y)"
