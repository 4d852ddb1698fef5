"""Pieces of Markdown: lists, and settings of a run without markup and paths."""

from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

from lora_rlhf.system.shown_text import for_markdown


def bullet_list(lines: Iterable[str]) -> str:
    """The lines as a Markdown list."""
    return "".join(f"- {line}\n" for line in lines)


def short_text(value: Any) -> str:
    """A setting's value for a line of text; of a path only the last part, because the rest tells of the machine."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = for_markdown(value)
    return PurePath(text).name if text.startswith(("/", "~", ".")) or text.count("/") > 1 else text
