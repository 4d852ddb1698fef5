"""Whether answers call the right tools with the right arguments, over held-out rows that hold the right calls."""

from collections.abc import Sequence

from lora_rlhf.data.calls import CallReader, read_written_calls, same_calls, same_tools
from lora_rlhf.data.schema import Demonstration
from lora_rlhf.evaluation.columns import Column


def tool_columns(rows: Sequence[Demonstration], answers: Sequence[str], reader: CallReader) -> dict[str, Column]:
    """The figures of one answer to each row. A row whose own answer calls no tool is one that needs none.

    A figure that no row tells something about is left out.
    """
    values: dict[str, list[float | None]] = {name: [] for name in _values(rows[0], answers[0], reader)}
    for row, answer in zip(rows, answers, strict=True):
        for name, value in _values(row, answer, reader).items():
            values[name].append(None if value is None else float(value))
    return {name: Column("share", column) for name, column in values.items() if set(column) != {None}}


def _values(row: Demonstration, answer: str, reader: CallReader) -> dict[str, bool | None]:
    """What holds of one answer; None for what its row does not ask."""
    calls, num_malformed, _ = read_written_calls(reader, answer)
    must_call, has_call, is_whole = bool(row.tool_calls), bool(calls or num_malformed), not num_malformed
    return {
        "right_tool": is_whole and same_tools(calls, row.tool_calls) if must_call else None,
        "right_arguments": is_whole and same_calls(calls, row.tool_calls) if must_call else None,
        "missing_call": not has_call if must_call else None,
        "needless_call": None if must_call else has_call,
        "malformed_call": not is_whole,
    }
