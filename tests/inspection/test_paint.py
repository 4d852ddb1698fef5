"""Batches as text and as a page: every token told apart, nothing hidden, nothing from the data that acts."""

import itertools
import re
from html.parser import HTMLParser

import pytest

from lora_rlhf.configs.catalogue import BY_NAME
from lora_rlhf.inspection.batches import Batch, Cell, Line
from lora_rlhf.inspection.paint import batch_page, terminal_text, visible_text

PROMPT = [Cell(7, "User", "prompt", False, 0), Cell(8, ":", "prompt", False, 1)]
RESPONSE = [
    Cell(4, " Yes", "response", True, 2),
    Cell(5, "\n", "response", True, 3),
    Cell(6, "so", "response", True, 4),
]
END = Cell(0, "</s>", "end", True, 5)
PADDING = [Cell(1, "<pad>", "padding", False, None)] * 3
SCORED = Cell(0, "</s>", "end", True, 5, score=True)
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def batch(*cells: Cell, stage: str = "sft", title: str = "d.jsonl:1", notes: tuple[str, ...] = ()) -> Batch:
    return Batch(BY_NAME[stage], {"input_ids": (1, len(cells))}, (Line(title, cells, notes),))


WHOLE = batch(*PROMPT, *RESPONSE, END, *PADDING, notes=("it was cut",))


def test_plain_marks() -> None:
    assert terminal_text(WHOLE, ["heading"], is_colored=False).splitlines() == [
        "heading",
        "tensors: input_ids (1, 9)",
        "",
        "1. d.jsonl:1: prompt 2 tokens, response 4 (4 in the loss), padding 3; positions 0 to 5",
        "   it was cut",
        "[prompt:User·:][response: Yes·⏎",
        "·so][end:</s>][padding:<pad> x 3]",
        "   prompt ids: 7 8",
        "   response ids: 4 5 6 0",
        "",
        "legend",
        "  [prompt]   read, not learned",
        "  [response] in the loss: each token is predicted from all before it",
        "  [end]      ends the response, and is in the loss",
        "  [padding]  masked",
    ]


def test_color_says_the_same_and_tells_neighbours_apart() -> None:
    painted = terminal_text(WHOLE, [], is_colored=True)
    assert "User: Yes⏎\nso</s><pad> x 3\n" in ANSI.sub("", painted)
    body = painted[painted.index("it was cut") : painted.index("prompt ids")]
    styles = re.findall(r"\x1b\[38;5;16;48;5;(\d+)m([^\x1b]+)", body)
    shades = {text: shade for shade, text in styles}
    assert len(styles) == 7
    assert all(one[0] != other[0] for one, other in itertools.pairwise(styles))
    assert len({shades[text] for text in ("User", ":", " Yes", "⏎", "</s>", "<pad> x 3")}) == 6


def test_no_background_is_on_at_the_end_of_a_line() -> None:
    for text in terminal_text(WHOLE, [], is_colored=True).splitlines():
        codes = ANSI.findall(text)
        assert not codes or codes[-1] == "\x1b[0m"


def test_the_score_is_marked_where_it_is() -> None:
    scored = batch(*PROMPT, *RESPONSE[:1], SCORED, *PADDING, stage="reward")
    plain = terminal_text(scored, [], is_colored=False)
    assert "[end:</s>] <- score [padding:<pad> x 3]" in plain
    assert "  <- score   the score is read here" in plain
    assert "</s> <- score<pad> x 3" in ANSI.sub("", terminal_text(scored, [], is_colored=True))
    assert "<- score" not in terminal_text(WHOLE, [], is_colored=False)
    assert "the score is added to the reward here" in terminal_text(batch(SCORED, stage="ppo"), [], is_colored=False)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b", "a b"),
        ("\n", "⏎\n"),
        ("\x1b[31m", "␛[31m"),
        ("\t\r\x00", "␉␍␀"),
        ("\x7f\x9b", "\\u007f\\u009b"),
        ("\u202eabc\u200b", "\\u202eabc\\u200b"),
        ("a\u00a0b\u2028", "a\\u00a0b\\u2028"),
        ("é 漢 🦊", "é 漢 🦊"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible_text(text) == shown


@pytest.mark.parametrize("color", [True, False])
def test_nothing_of_the_data_reaches_the_terminal_as_a_control(color: bool) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J\u202e"
    painted = terminal_text(batch(Cell(3, hostile, "prompt", False, 0), title=hostile), [hostile], color)
    assert not set(ANSI.sub("", painted)) & set("\x1b\x07\u202e")


class Page(HTMLParser):
    """Collects a page's text and titles, and that every tag is closed in order."""

    VOID = ("meta",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.spans: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        if tag == "span" and "title" in given:
            self.spans.append((given["class"] or "", given["title"] or ""))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "pre" in self.open:
            self.text.append(data)


def test_page() -> None:
    shown = Page(batch_page(batch(*PROMPT, *RESPONSE, SCORED, *PADDING, stage="ppo"), ["a & b"]))
    assert shown.open == []
    assert shown.text == ["User", ":", " Yes", "⏎\n", "so", "</s>", "<pad> x 3"]
    assert shown.spans == [
        ("prompt a", "id 7, prompt, position 0"),
        ("prompt b", "id 8, prompt, position 1"),
        ("response a", "id 4, response, position 2, sampled"),
        ("response b", "id 5, response, position 3, sampled"),
        ("response a", "id 6, response, position 4, sampled"),
        ("end b score", "id 0, end, position 5, sampled"),
        ("padding a", "id 1, padding"),
    ]


def test_page_holds_no_markup_of_the_data() -> None:
    hostile = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
    text = batch_page(batch(Cell(3, hostile, "prompt", False, 0), title=hostile, notes=(hostile,)), [hostile])
    shown = Page(text)
    assert not shown.tags & {"script", "img"}
    assert shown.text == [hostile]
    assert "default-src 'none'" in text and "http" not in text.replace("http-equiv", "")
