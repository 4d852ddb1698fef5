"""Lists and objects that are written as text: in a cell of a table, or within another value."""

import ast
import json
import re
from typing import Any

from lora_rlhf.data.json_values import NOT_JSON, decode_json
from lora_rlhf.data.refusals import BadRow

# how a list of messages begins that was written into a text, as tables do
MESSAGES_AS_TEXT = re.compile(r"""\[\s*\{\s*["'](?:role|content|from|value)["']\s*:""")
AMBIGUOUS = "a list is written with commas between some of its values only"
SHORTENED = "a list is cut short in its text"

_TOKEN = re.compile(
    r"""\s*([bru]{0,2}"(?:[^"\\]|\\.)*"|[bru]{0,2}'(?:[^'\\]|\\.)*'|,\s*dtype=\w+|array\b|[\[\](){},:]|\.\.\."""
    r"""|[^\s\[\](){},:"']+)""",
    re.DOTALL,
)


def is_messages_as_text(text: str) -> bool:
    """Whether a text is a list of messages, written by a table or by a program that nests JSON in JSON."""
    return text.startswith("[") and MESSAGES_AS_TEXT.match(text) is not None


def parse_list(text: str) -> Any:
    """A list or object that is written as text: JSON, or as Python or numpy print it; the text itself if it is none.

    pandas and datasets write Python's form, and numpy's, without commas, for what came from Parquet. A BadRow is
    returned for one that JSON could write and that is refused in any file, and for one that numpy cut short.
    """
    value = decode_json(text.strip())
    if not isinstance(value, BadRow) or value.reason != NOT_JSON:
        return value
    source = _with_commas(text)
    if isinstance(source, BadRow):
        return source
    try:
        # by way of JSON: Python also prints sets, bytes, infinity and names that are numbers
        return decode_json(json.dumps(ast.literal_eval(source)))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def _with_commas(text: str) -> str | BadRow:
    """The text with commas in its lists where numpy writes none: Python would join two strings without one into one."""
    tokens: list[str] = []
    commas: list[tuple[int, int]] = []  # of each open bracket: how many commas stand, and how many are missing, in it
    ends_value = False
    for match in _TOKEN.finditer(text):
        token = match[1]
        if token == "...":
            return BadRow(SHORTENED, "numpy writes ... for what it leaves out; save the table again from the data")
        if "dtype=" in token[:9] or token == "array":
            continue
        begins_value = token not in "]}),:"
        if begins_value and ends_value and commas:
            commas[-1] = commas[-1][0], commas[-1][1] + 1
            tokens.append(",")
        if token == "," and commas:
            commas[-1] = commas[-1][0] + 1, commas[-1][1]
        if token in "[({":
            commas.append((0, 0))
        elif token in "])}" and commas:
            standing, missing = commas.pop()
            if standing and missing:
                return BadRow(AMBIGUOUS, text[:40])
        tokens.append(token)
        ends_value = token not in "[({,:"
    return " ".join(tokens)
