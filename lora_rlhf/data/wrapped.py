"""Objects that hold several rows, as pandas, the hub's viewer and others write them: refused with advice."""

from typing import Any

from lora_rlhf.data.formats import LIST_COLUMNS
from lora_rlhf.data.refusals import BadRow

# Names of a list of rows within an object.
LIST_NAMES = frozenset(
    "data rows examples items records samples instances dataset entries train test validation valid dev results".split()
)
PANDAS = "with pandas: df.to_json(FILE, orient='records', lines=True)"


def explain_wrapped_rows(row: dict[str, Any], has_format: bool) -> BadRow | None:
    """The fault of an object that holds several rows instead of being one; None for any other object.

    has_format: a format has its columns; then it is refused only if it cannot be a row of that format.
    """
    values = list(row.values())
    if values and all(isinstance(value, dict) for value in values):
        keys = [tuple(value) for value in values]
        if keys[0] and len(set(keys)) == 1 and all(key.isdecimal() for key in keys[0]):
            return _make_fault("an object per column", "pandas' orient 'columns'", PANDAS)
    are_lists = bool(values) and all(isinstance(value, list) for value in values)
    has_equal_lists = are_lists and len({len(value) for value in values}) == 1 and len(values[0]) > 1
    if has_equal_lists and all(isinstance(item, int | float) for value in values for item in value):
        return BadRow("the columns hold lists of numbers, not text", "if they are tokens, give the text they came from")
    if has_equal_lists and not LIST_COLUMNS.intersection(row) and not any(map(_is_list_of_objects, values)):
        advice = "write one row a line, or the conversation as messages"
        return BadRow("the columns hold lists of texts: several rows, or the turns of a conversation", advice)
    return None if has_format else _explain_unknown_object(row, values)


def _explain_unknown_object(row: dict[str, Any], values: list[Any]) -> BadRow | None:
    """`explain_wrapped_rows` for an object whose columns no format has."""
    if isinstance(row.get("data"), list) and isinstance(row.get("columns"), list):
        return _make_fault("a list of columns and a list of rows", "pandas' orient 'split'", PANDAS)
    if isinstance(row.get("data"), list) and isinstance(row.get("schema"), dict):
        return _make_fault("a schema and the list 'data'", "pandas' orient 'table'", PANDAS)
    if isinstance(row.get("rows"), list) and all(isinstance(item, dict) and "row" in item for item in row["rows"]):
        return _make_fault("the list 'rows' with a 'row' in each", "the hub's viewer", "give owner/name instead")
    if values and all(isinstance(value, dict) for value in values):
        key_sets = {tuple(value) for value in values}
        if all(name.isdecimal() for name in row) or (len(values) > 1 and len(key_sets) == 1):
            return _make_fault("an object per row", "keyed by name or number", "write its values, one a line")
    lists = [
        name
        for name in row
        if name.lower() in LIST_NAMES and _is_list_of_objects(row[name]) and not _are_messages(row[name])
    ]
    others = [
        value for name, value in row.items() if name not in lists and not isinstance(value, str | int | float | dict)
    ]
    if lists and not [value for value in others if value is not None]:
        names = " and ".join(repr(name[:40]) for name in lists[:4])
        return _make_fault(f"rows in {names}", "a list within an object", f"write the objects of {names}, one a line")
    return None


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(item, dict) for item in value)


def _are_messages(value: list[dict[str, Any]]) -> bool:
    return any(key in value[0] for key in ("role", "from", "type"))


def _make_fault(content: str, form: str, advice: str) -> BadRow:
    """A BadRow that names the content and the form of the object."""
    return BadRow("the object holds rows, and is none itself: write one row a line", f"{content} ({form}); {advice}")
