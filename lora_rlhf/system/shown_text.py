"""Texts of strangers (names, prompts, answers, messages of servers), as terminals, Markdown files and pages show them.

A terminal obeys control characters, direction marks let a text look like another one, and markup makes links.
"""

import contextlib
import html
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

# Controls but line breaks and tabs, separators of lines, half characters, and marks that change the direction of text
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
MARKUP = str.maketrans({"&": "&amp;", "<": "&lt;", "`": "'", **{character: f"\\{character}" for character in "\\*[]~"}})
OUTER_UNDERSCORE = re.compile(r"(?<!\w)_|_(?!\w)")  # within a word it is no markup
BLOCK_START = re.compile(r"^(?=[#>]|[-+=]+(?:\s|$))|^(\d+)(?=[.)](?:\s|$))")
CURSOR_MOVES = re.compile(r"(?:\n|\r|\x1b\[A)*")  # what a progress bar writes between its lines


def visible(text: str) -> str:
    r"""The text with a picture, or a code such as \u202e, for each character that acts on a terminal or hides text."""
    return HIDDEN.sub(lambda match: _picture(ord(match[0])), text)


def for_markdown(text: Any) -> str:
    """The text on one line of Markdown, without markup. It may stand between backticks."""
    line = " ".join(visible(str(text)).split()).translate(MARKUP)
    return BLOCK_START.sub(lambda match: f"{match[1] or ''}\\", OUTER_UNDERSCORE.sub(r"\\_", line))


def for_html(text: str) -> str:
    """The text as HTML that displays exactly its characters."""
    return html.escape(visible(text), quote=True)


def _picture(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)  # U+241B for escape
    return "\u2421" if code == 0x7F else f"\\u{code:04x}"


class VisibleStream:
    """A terminal's stream that obeys nothing in what is written to it: `visible` stands between."""

    def __init__(self, stream: TextIO, has_bars: bool = False) -> None:
        """has_bars: progress bars are drawn there, which return to the beginning of a line and go up by lines."""
        self.stream, self._has_bars = stream, has_bars

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        begins_line = self._has_bars and text.startswith("\r")
        ends_line = self._has_bars and text.endswith("\r")
        if self._has_bars and CURSOR_MOVES.fullmatch(text):
            self.stream.write(text)
        else:
            body = visible(text[begins_line : len(text) - ends_line])
            self.write_painted("\r" * begins_line + body + "\r" * ends_line)
        return len(text)

    def write_painted(self, text: str) -> None:
        """Writes a text with our own colours. Characters that the stream's encoding lacks become escapes."""
        encoding = self.stream.encoding or "utf-8"
        self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


@contextlib.contextmanager
def visible_output() -> Iterator[None]:
    """All that the block prints, logs and reports reaches the terminal through `VisibleStream`."""
    streams = sys.stdout, sys.stderr
    if not any(isinstance(stream, VisibleStream) for stream in streams):
        sys.stdout, sys.stderr = VisibleStream(sys.stdout), VisibleStream(sys.stderr, has_bars=True)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def print_painted(text: str) -> None:
    """Prints a text with our own colours, in which the texts of strangers are visible already."""
    stream = sys.stdout if isinstance(sys.stdout, VisibleStream) else VisibleStream(sys.stdout)
    stream.write_painted(f"{text}\n")
    stream.flush()
