"""Cells and tables of the HTML report; whatever comes in as text is escaped here."""

from collections.abc import Sequence
from html import escape


def titled_cell(title: str, meaning: str) -> str:
    """A title over its meaning."""
    return f"{escape(title[0].upper() + title[1:])}<small>{escape(meaning)}</small>"


def stacked(text: str) -> str:
    """A figure over its interval."""
    value, bracket, interval = escape(text).partition(" (")
    return f"<span>{value}<small>({interval}</small></span>" if bracket else value


def word_cell(word: str) -> str:
    """better, worse, higher or lower, coloured."""
    tone = {"better": "good", "worse": "bad"}.get(word, "")
    return f"<span class='{tone}'>{word}</span>"


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already; on narrow screens each row is a block."""
    cells = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join(
        f"<tr><th>{first}</th>"
        + "".join(f"<td data-label='{escape(label)}'>{cell}</td>" for label, cell in zip(head[1:], rest, strict=True))
        + "</tr>"
        for first, *rest in rows
    )
    return f"<div class='wide'><table class='stacks'><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"
