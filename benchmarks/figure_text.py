"""How figures stand in Markdown."""

from typing import Any


def table(head: str, *rows: str) -> str:
    """A table: its head and rows as cells between bars."""
    rule = "|---" * (head.count("|") + 1) + "|"
    return "\n".join([f"| {head.strip()} |", rule, *(f"| {row.strip()} |" for row in rows)])


def rate_text(rate: Any) -> str:
    """A rate with its interval."""
    return f"{rate['rate']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})"


def mean_text(value: Any) -> str:
    """A mean with its interval."""
    return f"{value.get('mean', value.get('value')):.3f} ({value['low']:.3f} to {value['high']:.3f})"
