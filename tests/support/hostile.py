"""Texts that mean harm to whoever displays them, made by a generator, and the characters that none may leave."""

import random
import re

PIECES = (
    *("\x1b]0;title\x07", "\x1b[2J", "\r", "\b", "\x9b31m", "\u202e", "\u2066", "\u200f", "\u061c", "\u2028", "\x00"),
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[a](javascript:b)", "![a](http://b)", "\\[a](b)"),
    *("`", "``", "```", "\n# heading", "\n---", "\n\n1. list", "&#x202e;", "&lt;b&gt;", "**a**", "_a_", "~~a~~", "|"),
    *("\ud800", "plain", "é 漢 👩\u200d🚀", " ", "{{ 1 }}", "<!--", "-->", "'", '"', "\t"),
)
DANGEROUS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def hostile_texts(count: int = 300) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices(PIECES, k=draw.randint(1, 8))) for _ in range(count)]
