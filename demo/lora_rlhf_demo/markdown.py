"""A text of a model as HTML with its Markdown drawn. Nothing is loaded, nothing is a link, and all of it is escaped.

CommonMark and tables, by markdown-it. Formulas are typeset; what is no known formula is set off in a mono face. Links,
pictures and HTML show as what they are. Texts beyond the limits are shown as they are written.
"""

import html
import re
from collections.abc import Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from lora_rlhf.system.shown_text import visible
from lora_rlhf_demo.formulas import formula_html
from lora_rlhf_demo.show import text_html

MOST_CHARACTERS, MOST_TOKENS = 20_000, 10_000
MOST_CELLS, MOST_COLUMNS = 1_000, 20
MOST_NESTED = 20  # quotes and lists in each other
MOST_LINES = 30  # of a formula
MOST_GROWTH = 20  # characters of HTML for one of the text
NO_LINKS = ["link", "image", "autolink", "html_inline", "html_block", "reference", "entity"]
FORMULA = re.compile(
    r"\$\$([^$]{1,1000})\$\$|(?<![\w$])\$(?!\s)([^$\n]{1,1000})(?<!\s)\$(?![\w$])"
    r"|\\\(((?:[^\\]|\\[^)]){1,150})\\\)|\\\[((?:[^\\]|\\[^\]]){1,150})\\\]"
)
ENDS = {"$$": "$$", "\\[": "\\]"}  # a line of its own that begins a formula: the one that ends it


def markdown_html(text: str) -> str:
    """The text with its Markdown drawn; one without any, or one that is too long, exactly as it is written."""
    shown = visible(text)
    columns = max(line.count("|") for line in shown.split("\n"))
    if len(shown) > MOST_CHARACTERS or shown.count("|") > MOST_CELLS or columns > MOST_COLUMNS + 1:
        return text_html(text)
    tokens = MARKDOWN.parse(shown)
    if len(tokens) > MOST_TOKENS:  # a table's rows are filled up to the width of its head
        return text_html(text)
    kinds = {child.type for token in tokens for child in (token, *(token.children or ()))}
    if kinds <= {"paragraph_open", "paragraph_close", "inline", "text", "softbreak"}:
        return text_html(text)
    drawn = MARKDOWN.renderer.render(tokens, MARKDOWN.options, {})
    if len(drawn) > MOST_GROWTH * (len(shown) + 100):
        return text_html(text)
    return f'<div class="text markdown" dir="auto">{drawn}</div>'


def _inline_formula(state: StateInline, silent: bool) -> bool:
    """A formula in a line: nothing in it is Markdown."""
    found = FORMULA.match(state.src, state.pos)
    if found is None:
        return False
    if not silent:
        token = state.push("formula", "math", 0)
        token.content = found[0]
        token.info = found[found.lastindex or 0]
        token.block = found[0].startswith(("$$", "\\["))
    state.pos = found.end()
    return True


def _formula_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A formula between two lines of its own."""
    lines: list[str] = []
    for row in range(start, min(end, start + MOST_LINES)):
        lines.append(state.src[state.bMarks[row] : state.eMarks[row]].strip())
        if lines[0] not in ENDS or (row > start and lines[-1] == ENDS[lines[0]]):
            break
    if len(lines) < 2 or lines[-1] != ENDS[lines[0]]:
        return False
    if not silent:
        token = state.push("formula", "math", 0)
        token.content = token.info = "\n".join(lines[1:-1])
        token.block = True
        state.line = start + len(lines)
    return True


def _drawn_formula(renderer: Any, tokens: Sequence[Token], number: int, options: Any, env: Any) -> str:
    """The formula typeset, else as it is written; in lines of its own, or in a line."""
    token = tokens[number]
    drawn = formula_html(token.info, token.block)
    if drawn is None:
        drawn = f'<code class="math">{html.escape(token.content)}</code>'
        return f"<pre>{drawn}</pre>\n" if token.block and "\n" in token.content else drawn
    return drawn


def _headings_as_paragraphs(state: StateCore) -> None:
    """A heading of an answer is none of the page's, for a screen reader."""
    for token in state.tokens:
        if token.type.startswith("heading"):
            if token.nesting == 1:
                token.attrSet("class", f"heading level-{token.tag[1:]}")
            token.tag = "p"


MARKDOWN = MarkdownIt("commonmark", {"html": False, "maxNesting": MOST_NESTED}).enable("table").disable(NO_LINKS)
MARKDOWN.inline.ruler.before("escape", "formula", _inline_formula)
MARKDOWN.block.ruler.before("fence", "formula", _formula_block, {"alt": ["paragraph"]})
MARKDOWN.core.ruler.push("headings", _headings_as_paragraphs)
MARKDOWN.add_render_rule("formula", _drawn_formula)
