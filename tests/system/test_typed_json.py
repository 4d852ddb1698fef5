"""Dataclasses as JSON and back: what is left out, what may be missing, and which field is at fault."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from lora_rlhf.system.typed_json import from_json, optional, to_json


@dataclass(frozen=True)
class Inner:
    value: float | None
    word: Literal["yes", "no"] = "no"


@dataclass(frozen=True, kw_only=True)
class Outer:
    from_: str
    count: int = 0
    flag: bool | None = optional()
    rows: list[Inner] = field(default_factory=list)
    table: dict[str, Inner] = optional(dict)
    anything: Any = None


WHOLE = {
    **{"from": "here", "count": 2, "flag": False, "rows": [{"value": None, "word": "yes"}]},
    **{"table": {"a": {"value": 1, "word": "no"}}, "anything": {"x": [1]}},
}


def test_what_was_written_is_read_and_written_again() -> None:
    outer = from_json(Outer, WHOLE)
    assert outer.rows == [Inner(None, "yes")] and outer.table["a"].value == 1
    assert to_json(outer) == WHOLE and list(to_json(outer)) == list(WHOLE)


def test_defaults_are_taken_and_optional_ones_left_out() -> None:
    outer = from_json(Outer, {"from": "here", "later": "unknown"})
    assert outer == Outer(from_="here")
    assert to_json(outer) == {"from": "here", "count": 0, "rows": [], "anything": None}
    assert to_json(Outer(from_="here", table={"a": Inner(float("nan"))}))["table"]["a"]["value"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"from": 3}, "'from' is 3, expected text"),
        ({"count": -1}, "'count' is -1, expected a whole number of at least 0"),
        ({"count": True}, "'count' is True, expected a whole number"),
        ({"flag": "no"}, "'flag' is 'no', expected true, false or null"),
        ({"rows": {}}, "'rows' is {}, expected a list"),
        ({"rows": [{"value": "1"}]}, "'rows.0.value' is '1', expected a number or null"),
        ({"rows": [[]]}, r"'rows.0' is \[\], expected an object in braces"),
        ({"table": {"a": {}}}, "'table.a.value' is missing"),
        ({"table": {"a": {"value": 1, "word": "maybe"}}}, "'table.a.word' is 'maybe', expected yes or no"),
    ],
)
def test_the_field_at_fault_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(Outer, WHOLE | change)
