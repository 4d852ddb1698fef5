"""Refusals are counted and grouped, the most frequent reason first, with their first places."""

from lora_rlhf.data.refusals import BadRow, RefusedRows
from lora_rlhf.errors import UserError


def test_summary_groups_by_reason() -> None:
    refused = RefusedRows()
    refused.add("a.jsonl:2", BadRow("not JSON", "column 4"))
    for line in (3, 5, 7, 9):
        refused.add(f"a.jsonl:{line}", BadRow("too short"))
    assert refused.count == len(refused) == 5
    assert refused.summary(examples=2) == (
        "4 refused: too short [a.jsonl:3; a.jsonl:5, ...]\n1 refused: not JSON [a.jsonl:2 column 4]"
    )
    assert next(str(row) for row in refused) == "a.jsonl:2: not JSON (column 4)"


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
