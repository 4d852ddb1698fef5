"""A formula of a text as MathML, by latex2mathml. It loads nothing, and cannot make room beyond what its signs take."""

import html
import re
from functools import lru_cache
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element

from lora_rlhf.system.shown_text import visible

MOST_PARTS, MOST_NESTED = 1_000, 40
ELEMENTS = {
    *("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mstyle", "mpadded", "mphantom", "menclose", "mfrac"),
    *("msqrt", "mroot", "msub", "msup", "msubsup", "munder", "mover", "munderover", "mtable", "mtr", "mtd"),
}
NAMES = {
    *("display", "displaystyle", "scriptlevel", "mathvariant", "columnalign", "notation"),
    *("accent", "fence", "form", "movablelimits", "separator", "stretchy"),
}
LENGTHS = {"width", "minsize", "maxsize", "lspace", "rspace", "linethickness"}
ALIGNED = re.compile(r"\\(begin|end)\{(align(?:ed)?|split|gather(?:ed)?)\*?\}")
NAME = re.compile(r"[\w +-]{1,40}", re.ASCII)
LENGTH = re.compile(r"0|-0?\.\d{1,4}em|\d(\.\d{1,4})?em", re.ASCII)


@lru_cache(maxsize=2_000)  # an answer is drawn again with each of its tokens
def formula_html(latex: str, is_block: bool) -> str | None:
    """The formula as HTML; None for one that is not understood, or that holds more than the limits."""
    try:
        element = convert_to_element(ALIGNED.sub(_as_array, latex), display="block" if is_block else "inline")
    except Exception:  # each mistake in a formula has a class of its own, and deep nesting a RecursionError
        return None
    if sum(1 for _ in element.iter()) > MOST_PARTS:
        return None
    try:
        return _drawn(element, MOST_NESTED)
    except ValueError:
        return None


def _as_array(found: re.Match[str]) -> str:
    """The environment as one that latex2mathml knows, with columns to the right and to the left of the mark."""
    columns = "{c}" if found[2].startswith("gather") else "{rlrlrl}"
    return f"\\{found[1]}{{array}}{columns if found[1] == 'begin' else ''}"


def _drawn(element: Element, depth: int) -> str:
    """The element with nothing but known names. ValueError for what is unknown or astray, and for deep nesting."""
    text = visible(html.unescape(element.text or ""))  # a symbol is the text of its entity, and so can be any sign
    is_astray = text == "&" or (text.startswith("\\") and len(text) > 1)  # of no table; a command that is not known
    if depth == 0 or element.tag not in ELEMENTS or is_astray:
        raise ValueError
    attributes = [
        f' {name}="{value}"'
        for name, value in element.attrib.items()
        if (name in NAMES and NAME.fullmatch(value)) or (name in LENGTHS and LENGTH.fullmatch(value))
    ]
    within = "".join(_drawn(child, depth - 1) for child in element)
    return f"<{element.tag}{''.join(attributes)}>{html.escape(text)}{within}</{element.tag}>"
