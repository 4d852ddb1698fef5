"""Pieces of Markdown: lists, and texts from a run that cannot break out of their place, without paths."""

from collections.abc import Iterable
from pathlib import PurePath
from typing import Any


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "".join(f"- {line}\n" for line in lines)


def short(value: Any) -> str:
    """A setting in a line of text; of a path its last part: an absolute one tells of the machine."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = plain(str(value))
    return PurePath(text).name if text.startswith(("/", "~", ".")) or text.count("/") > 1 else text


def plain(text: Any) -> str:
    """On one line, and without what Markdown or HTML would obey."""
    return " ".join(str(text).split()).replace("<", "&lt;").replace("`", "'").replace("[", "\\[")
