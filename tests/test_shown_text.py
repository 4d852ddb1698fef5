"""Hostile texts in everything that is shown: terminals, Markdown files and pages obey none of them."""

import io
import re
import sys

import pytest
from tqdm import tqdm

from lora_rlhf.cli.main import main
from lora_rlhf.system.shown_text import VisibleStream, for_html, for_markdown, print_painted, visible, visible_output
from tests.support.hostile import DANGEROUS, hostile_texts


def assert_no_markup(text: str) -> None:
    """Nothing in a line of Markdown makes a link, a tag, code, emphasis, an entity, a heading or a rule."""
    assert "\n" not in text and not DANGEROUS.search(text)
    assert "<" not in text and "`" not in text
    bare = re.sub(r"\\.", "", text)  # a backslash takes the meaning of what follows it
    assert not re.search(r"[\[\]*~]|(?<!\w)_|_(?!\w)", bare)
    assert not re.search(r"&(?!amp;|lt;)", text)
    assert not re.match(r"[#>]|[-+=]+(\s|$)|\d+[.)](\s|$)", text)


def test_markdown_holds_no_markup_of_strangers() -> None:
    for text in hostile_texts():
        assert_no_markup(for_markdown(text))
    assert for_markdown("runs/first_run: 12 % (a-b)") == "runs/first_run: 12 % (a-b)"
    assert for_markdown("\\[a](b)") == "\\\\\\[a\\](b)"  # a backslash of theirs escapes nothing of ours
    assert for_markdown("1. a") == "1\\. a" and for_markdown("# a") == "\\# a" and for_markdown("-1.5") == "-1.5"


def test_html_displays_the_characters() -> None:
    for text in hostile_texts():
        shown = for_html(text)
        assert not DANGEROUS.search(shown) and not re.search("[<>\"']", shown)
    assert visible("line\n\ttab é 漢 👩\u200d🚀") == "line\n\ttab é 漢 👩\u200d🚀"


def test_a_terminal_obeys_nothing_but_progress_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with visible_output(), visible_output():
        for text in hostile_texts():
            print(text, flush=True)
            print(text, file=sys.stderr)
        with tqdm(total=2, desc="a\x1b[2Jb", file=sys.stderr, mininterval=0) as bar:
            bar.update()
            bar.write("message \x1b[2J")
        print_painted("\x1b[1mours\x1b[0m")
        out, err = sys.stdout.getvalue(), sys.stderr.getvalue()
    assert out.endswith("\x1b[1mours\x1b[0m\n")
    assert not DANGEROUS.search(out.removesuffix("\x1b[1mours\x1b[0m\n"))
    assert "\r" in err and "\x1b[2J" not in err and not DANGEROUS.search(err.replace("\r", "").replace("\x1b[A", ""))
    assert not isinstance(sys.stdout, VisibleStream)


def test_other_encodings_get_escapes() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    VisibleStream(stream).write("é \x1b ✓")
    assert raw.getvalue() == rb"\xe9 \u241b \u2713"


@pytest.mark.parametrize("command", ["sft", "evaluate", "export", "package", "chat", "promote", "gate", "inspect", "x"])
def test_errors_of_commands_are_visible(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    for text in hostile_texts(3):
        assert main([command, f"\x1b[31m\u202e{text}".replace("\0", "").encode(errors="replace").decode()]) == 2
        captured = capfd.readouterr()
        assert not DANGEROUS.search(captured.out + captured.err)
