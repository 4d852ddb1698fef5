"""Lists and objects that are written as text: in a cell of a table, or within another value."""

import ast
import json
import re
from typing import Any

from lora_rlhf.data.json_values import NOT_JSON, decode_json
from lora_rlhf.data.refusals import BadRow

# the beginning of a list of messages that a table holds as text
MESSAGES_AS_TEXT = re.compile(r"""\[\s*\{\s*["'](?:role|content|from|value)["']\s*:""")
AMBIGUOUS = "a list is written with commas between some of its values only"
SHORTENED = "a list is cut short in its text"

_TOKEN = re.compile(
    r"""\s*([bru]{0,2}"(?:[^"\\]|\\.)*"|[bru]{0,2}'(?:[^'\\]|\\.)*'|,\s*dtype=\w+|array\b|[\[\](){},:]|\.\.\."""
    r"""|[^\s\[\](){},:"']+)""",
    re.DOTALL,
)


def is_messages_as_text(text: str) -> bool:
    """Whether a text is a list of messages, written by a table or by a program that puts JSON into JSON."""
    return text.startswith("[") and MESSAGES_AS_TEXT.match(text) is not None


def parse_list(text: str) -> Any:
    """The list or object that a text holds as JSON, or as Python or numpy print it; else the text itself.

    pandas and datasets write Parquet's lists in Python's form or in numpy's, which has no commas. A BadRow is returned
    for a value that is refused in JSON files too, and for a list that numpy cut short.
    """
    value = decode_json(text.strip())
    if not isinstance(value, BadRow) or value.reason != NOT_JSON:
        return value
    source = _insert_commas(text)
    if isinstance(source, BadRow):
        return source
    try:
        # by way of JSON: Python also prints sets, bytes, infinity and names that are numbers
        return decode_json(json.dumps(ast.literal_eval(source)))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def _insert_commas(text: str) -> str | BadRow:
    """The text with a comma between neighbouring values, where numpy writes none; Python reads 'a' 'b' as 'ab'.

    Returns a BadRow for a list that numpy shortened, and for a list with commas between only some of its values.
    """
    tokens: list[str] = []
    commas: list[tuple[int, int]] = []  # of each open bracket: (its commas, its missing commas)
    is_end_of_value = False
    for match in _TOKEN.finditer(text):
        token = match[1]
        if token == "...":
            return BadRow(SHORTENED, "numpy writes ... for what it leaves out; save the table again from the data")
        if "dtype=" in token[:9] or token == "array":  # array([...], dtype=object): only the list is read
            continue
        is_start_of_value = token not in "]}),:"
        if is_start_of_value and is_end_of_value and commas:
            commas[-1] = commas[-1][0], commas[-1][1] + 1
            tokens.append(",")
        if token == "," and commas:
            commas[-1] = commas[-1][0] + 1, commas[-1][1]
        if token in "[({":
            commas.append((0, 0))
        elif token in "])}" and commas:
            num_present, num_missing = commas.pop()
            if num_present and num_missing:
                return BadRow(AMBIGUOUS, text[:40])
        tokens.append(token)
        is_end_of_value = token not in "[({,:"
    return " ".join(tokens)
