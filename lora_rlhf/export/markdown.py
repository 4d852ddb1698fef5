"""Pieces of Markdown: tables, lists, and texts from a run that cannot break out of their place, without paths."""

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any


def rows_of(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(one.replace("|", "\\|") for one in line) + " |" for line in lines) + "\n"


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "".join(f"- {line}\n" for line in lines)


def capital(text: str) -> str:
    """With its first letter large."""
    return text[:1].upper() + text[1:]


def short(value: Any) -> str:
    """A setting in a line of text; of a path its last part: an absolute one tells of the machine."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = plain(str(value))
    return PurePath(text).name if text.startswith(("/", "~", ".")) or text.count("/") > 1 else text


def plain(text: Any) -> str:
    """On one line, and without what Markdown or HTML would obey."""
    return " ".join(str(text).split()).replace("<", "&lt;").replace("`", "'").replace("[", "\\[")
