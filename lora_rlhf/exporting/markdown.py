"""Pieces of Markdown: lists, and texts of a run with escapes, so that they contain no markup and no paths."""

from collections.abc import Iterable
from pathlib import PurePath
from typing import Any


def bullet_list(lines: Iterable[str]) -> str:
    """The lines as a Markdown list."""
    return "".join(f"- {line}\n" for line in lines)


def short_text(value: Any) -> str:
    """A setting's value for a line of text; of a path only the last part, because the rest tells of the machine."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = escaped_text(str(value))
    return PurePath(text).name if text.startswith(("/", "~", ".")) or text.count("/") > 1 else text


def escaped_text(text: Any) -> str:
    """The text on one line, without characters that are markup in Markdown or HTML."""
    return " ".join(str(text).split()).replace("<", "&lt;").replace("`", "'").replace("[", "\\[")
