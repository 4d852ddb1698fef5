"""Markdown of models: what is drawn, and that nothing of it acts."""

import re
import time
from xml.etree.ElementTree import Element

import pytest
from lora_rlhf_demo.formulas import ELEMENTS, formula_html
from lora_rlhf_demo.markdown import markdown_html
from lora_rlhf_demo.show import text_html

TAGS = "div p pre code strong em blockquote table thead tbody tr th td ul ol li".split()
HOSTILE = [
    "<script>window.hacked = 1</script> **bold**",
    '<img src=x onerror="window.hacked = 1"> `code`',
    "[a link](javascript:window.hacked=1) *and* [another](https://example.org)",
    "![picture](https://example.org/x.png) **loads nothing**",
    "```html\n<iframe src='https://example.org'></iframe>\n```",
    "| <b onclick=window.hacked=1>a</b> | b |\n|---|---|\n| <svg onload=window.hacked=1> | \u202ereversed |",
    "# <style>body{display:none}</style>\n- <a href=javascript:1>x</a>",
    "$$\\def\\x{\\x\\x}\\x$$ and \\(\\href{javascript:1}{x}\\)",
    r"$\text{<script>window.hacked = 1</script>}$ and $\text{&lt;script&gt;window.hacked = 1&lt;/script&gt;}$",
    r"$\text{&#x202e;abc&#x1b;[31m}$ and $\undefined{<img src=x onerror=window.hacked=1>}$ and $&#8238;x$",
    r"$\style{position:fixed;inset:0}{x}$ $\hspace{9999em}$ $\rule{999em}{999em}$ $\class{top}{x}$ $\color{red}y$",
    '**" onmouseover="window.hacked=1** \x1b[31m',
    "> <form action=https://example.org><input autofocus onfocus=window.hacked=1>",
]


def test_an_element_that_is_not_known_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever another version of the library makes."""
    monkeypatch.setattr("lora_rlhf_demo.formulas.convert_to_element", lambda *_, **__: Element("script"))
    assert formula_html("one that no other test asks for", False) is None


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_markdown_is_text(text: str) -> None:
    html = markdown_html(text)
    found = re.findall(r"<(/?)(\w+)([^>]*)>", html)
    assert {name for _, name, _ in found} <= {*TAGS, *ELEMENTS}
    attributes = {one for _, _, rest in found for one in re.findall(r'(\S+?)="[^"]*"', rest)}
    assert attributes <= {"class", "dir", "style", "display", "stretchy", "mathvariant"}
    assert not re.search(r"9{3,}em\"|position:[^<]*\">", html)
    assert "\x1b" not in html and "\u202e" not in html
    assert "markdown" in html, "it was drawn, not shown raw"


def test_what_is_drawn() -> None:
    html = markdown_html(
        "# Title\n\nSome **bold** and `x < y`.\n\n- one\n  - two\n\n1. first\n\n> quoted\n\n"
        "$$\nx^2\n- 3 *4*\n$$\n\n\\(x_1 * y_2\\) \\(\\undefined *z*\\)"
    )
    for part in (
        '<p class="heading level-1">Title</p>',
        "<strong>bold</strong>",
        "<code>x &lt; y</code>",
        "<li>one\n<ul>\n<li>two</li>",
        "<ol>\n<li>first</li>",
        "<blockquote>\n<p>quoted</p>",
        '<math display="block"><mrow><msup><mi>x</mi><mn>2</mn></msup><mo>\u2212</mo><mn>3</mn>',
        "<msub><mi>x</mi><mn>1</mn></msub><mo>*</mo><msub><mi>y</mi><mn>2</mn></msub>",
        '<code class="math">\\(\\undefined *z*\\)</code>',
    ):
        assert part in html
    table = markdown_html("| a | b |\n|---|:-:|\n| 1 | 2 |\n\nafter").replace("\n", "")
    assert "<tr><td>1</td>" in table and "<p>after</p>" in table


@pytest.mark.parametrize(
    ("latex", "parts"),
    [
        (r"\frac{-b \pm \sqrt{b^2-4ac}}{2a}", ["<mfrac>", "<mi>±</mi>", "<msqrt>"]),
        (r"\begin{aligned}a &= b < 3\\ c &= d\end{aligned}", ["<mtr>", '<mtd columnalign="left">', "<mo>&lt;</mo>"]),
        (r"\boxed{18}", ['<menclose notation="box">']),
        (r"\mathbb{E}\left[\log p_\theta\right]", ["\U0001d53c", "θ"]),
    ],
)
def test_formulas_are_typeset(latex: str, parts: list[str]) -> None:
    html = formula_html(latex, True) or ""
    assert html.startswith('<math display="block">') and not [part for part in parts if part not in html], html


@pytest.mark.parametrize(
    "latex", [r"\undefined{x}", r"\left(x", "a & b", "{" * 400 + "}" * 400, r"\sqrt{" * 60 + "}" * 60]
)
def test_what_is_no_known_formula_is_not_typeset(latex: str) -> None:
    assert formula_html(latex, False) is None


@pytest.mark.parametrize(
    "text", ["Two plain\n\nparagraphs, 3 * 4 * 5 and a_b_c cost $5 or $6.", "", " x", "a " * 40_000]
)
def test_what_is_no_markdown_or_too_long_is_shown_as_it_is(text: str) -> None:
    assert markdown_html(text) == text_html(text)


@pytest.mark.parametrize(
    "text",
    [
        "\\(" * 2_400 + "\n" + "`" * 4_999,
        "\n".join(["|" * 4_000, "|-" * 2_000]),
        "\n".join(["| a | b |", "|---|---|", *["| c | d |"] * 300]),
        "**a" * 1_600 + "\n" + "> " * 2_000,
        "\n".join("```" for _ in range(4_999)),
        "\n".join(["|a|", "|-|"] * 240),
        "|a" * 20 + "\n" + "|-" * 20 + "\n" + "|a\n" * 900,
        "\\[\n" * 6_600,
        "\\[" * 9_900,
        ("$" + "(" * 900 + "$ ") * 22,
        "".join(f"$x{number}" + r"\binom{" * 100 + "}" * 100 + "$ " for number in range(25)),
    ],
    ids=[
        "unclosed",
        "wide table",
        "long table",
        "bold",
        "fences",
        "tables",
        "filled table",
        "formulas",
        "inline formulas",
        "growing formulas",
        "nested formulas",
    ],
)
def test_bombs_take_no_time(text: str) -> None:
    seconds = []
    for _ in range(3):  # of one alone, a collection of the whole suite's objects may take a second
        began = time.thread_time()
        assert len(markdown_html(text)) < 20 * len(text) + 100
        seconds.append(time.thread_time() - began)
    assert min(seconds) < 1
