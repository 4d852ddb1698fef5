"""A text of a model as HTML with its Markdown drawn. Nothing is loaded, nothing is a link, and all of it is escaped.

Drawn are code, bold, italic, headings, lists, tables and quotes. Formulas are set off, but not typeset. A link shows
its address as text, and HTML shows as what it is. Lines and texts beyond the limits are shown as they are written.
"""

import re
from collections.abc import Iterator

from lora_rlhf_demo.show import safe_html, text_html

MOST_CHARACTERS, MOST_LINE_CHARACTERS = 50_000, 5_000
MOST_CELLS, MOST_COLUMNS = 2_000, 20
MOST_LEVELS = 6
INLINE = re.compile(
    r"`(?P<code>[^`\n]+)`|\*\*(?P<bold>[^*\n]+)\*\*|(?<![\w*])\*(?P<italic>[^*\s][^*\n]*)\*(?![\w*])"
    r"|\$\$(?P<display>[^$\n]+)\$\$|(?<![\w$])\$(?P<math>[^$\s][^$\n]*)\$(?![\w$])"
    r"|\\\((?P<paren>[^\n]+?)\\\)|\\\[(?P<bracket>[^\n]+?)\\\]"
)
FENCE = re.compile(r"\s{0,3}(```+|~~~+)\s*([\w+#.-]{0,20})\s*")
HEADING = re.compile(r"\s{0,3}(#{1,6})\s+(.+)")
ITEM = re.compile(r"(\s*)([-*+]|\d{1,4}[.)])\s+(\S.*)")
RULE = re.compile(r"\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*")
MATH = {"$$": "$$", "\\[": "\\]"}  # a line of its own that begins a formula: the one that ends it


def markdown_html(text: str) -> str:
    """The text with its Markdown drawn; one without any, or one that is too long, exactly as it is written."""
    lines = text.split("\n")
    if len(text) > MOST_CHARACTERS or max(map(len, lines)) > MOST_LINE_CHARACTERS:
        return text_html(text)
    blocks = list(_blocks(lines))
    if all(block.startswith("<p>") for block in blocks) and not INLINE.search(text):
        return text_html(text)
    return f'<div class="text markdown" dir="auto">{"".join(blocks)}</div>'


def _blocks(lines: list[str]) -> Iterator[str]:
    """The HTML of each block, in order."""
    at = 0
    paragraph: list[str] = []
    while at < len(lines):
        block, after = _block(lines, at)
        if (block or not lines[at].strip()) and paragraph:
            yield f"<p>{_inline(chr(10).join(paragraph))}</p>"
            paragraph = []
        if block:
            yield block
        elif lines[at].strip():
            paragraph.append(lines[at])
        at = after
    if paragraph:
        yield f"<p>{_inline(chr(10).join(paragraph))}</p>"


def _block(lines: list[str], at: int) -> tuple[str, int]:
    """(the HTML of the block that begins at this line, the line after it); "" for a line of a paragraph."""
    line = lines[at]
    if fence := FENCE.fullmatch(line):
        end = next((i for i in range(at + 1, len(lines)) if lines[i].strip() == fence[1]), len(lines))
        return f"<pre><code>{safe_html(chr(10).join(lines[at + 1 : end]))}</code></pre>", end + 1
    if line.strip() in MATH:
        closing = MATH[line.strip()]
        end = next((i for i in range(at + 1, len(lines)) if lines[i].strip() == closing), len(lines))
        return f'<pre class="math">{safe_html(chr(10).join(lines[at + 1 : end]))}</pre>', end + 1
    if heading := HEADING.fullmatch(line):
        return f'<p class="heading level-{len(heading[1])}">{_inline(heading[2])}</p>', at + 1
    if item := ITEM.fullmatch(line):
        level = min(len(item[1].expandtabs(4)) // 2, MOST_LEVELS)
        mark = "\u2022" if item[2] in "-*+" else item[2]
        style = f'style="--level:{level}"'
        return f'<div class="item" {style}><span>{mark} </span><span>{_inline(item[3])}</span></div>', at + 1
    if line.startswith(">"):
        end = next((i for i in range(at, len(lines)) if not lines[i].startswith(">")), len(lines))
        quoted = "\n".join(one[1:].removeprefix(" ") for one in lines[at:end])
        return f"<blockquote>{_inline(quoted)}</blockquote>", end
    if "|" in line and at + 1 < len(lines) and "|" in lines[at + 1] and RULE.fullmatch(lines[at + 1]):
        return _table(lines, at)
    return "", at + 1


def _table(lines: list[str], at: int) -> tuple[str, int]:
    """The table that begins at this line; one that is too large as it is written."""
    end = next((i for i in range(at + 2, len(lines)) if "|" not in lines[i]), len(lines))
    rows = [lines[i].strip().removeprefix("|").removesuffix("|").split("|") for i in (at, *range(at + 2, end))]
    if max(map(len, rows)) > MOST_COLUMNS or sum(map(len, rows)) > MOST_CELLS:
        return f"<pre>{safe_html(chr(10).join(lines[at:end]))}</pre>", end
    cells = [
        "".join(f"<{tag}>{_inline(cell.strip())}</{tag}>" for cell in row)
        for tag, row in zip(["th", *["td"] * (len(rows) - 1)], rows, strict=True)
    ]
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>", end


def _inline(text: str) -> str:
    """A text whose code, bold, italic and formulas are drawn; all else is shown exactly."""
    parts, start = [], 0
    for found in INLINE.finditer(text):
        kind, content = str(found.lastgroup), found[str(found.lastgroup)]
        parts.append(safe_html(text[start : found.start()]))
        if kind == "code":
            parts.append(f"<code>{safe_html(content)}</code>")
        elif kind in ("bold", "italic"):
            tag = {"bold": "strong", "italic": "em"}[kind]
            parts.append(f"<{tag}>{_inline(content)}</{tag}>")
        else:
            parts.append(f'<code class="math">{safe_html(content)}</code>')
        start = found.end()
    return "".join([*parts, safe_html(text[start:])])
