"""A tokenizer.json that strangers wrote: refused before it is loaded where it could take memory or time without end."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_rlhf.system.plain_files import read_file
from lora_rlhf.system.untrusted import quote

MOST_BYTES = 64 * 2**20  # the largest of known models has 33 MiB
MOST_COMMAS = 4_000_000  # between its tokens and merges; the largest has a third
MOST_GROWTH = 64  # times that normalizer or decoder can lengthen a text; those of models stay below 10
LONGEST_PIECE = 512  # bytes that a precompiled normalizer can write for one character
LONGEST_PATTERN = 4096  # characters of a regular expression; those of models have some hundred
MOST_REPEATS = 4  # parts without a bound that can follow each other in a pattern: the power of its time
MANY = 16  # repeats that count as without a bound
GROUP = re.compile(r"\((?:\?(?:[:=!>]|<[=!]|<\w+>|[imxsaDSWP-]+[:)]))?")
QUANTIFIER = re.compile(r"(?:[*+?]|\{(?P<low>\d*)(?P<comma>,?)(?P<high>\d*)\})[?+]?")
ESCAPE = re.compile(r"\\(?:[pPxuo]\{[^}]*\}|.)", re.DOTALL)
SET = re.compile(r"\[\^?\]?")


def find_tokenizer_fault(path: Path) -> str | None:
    """Why a tokenizer.json is not loaded; None for one of usual size whose rules do not make much of a short text.

    UserError for what is no plain file, or is larger than MOST_BYTES.
    """
    raw = read_file(path, MOST_BYTES, follow_links=True)  # the hub's cache is made of links
    if raw.count(b",") > MOST_COMMAS:
        return f"{path.name} has more than {MOST_COMMAS:,} entries"
    try:
        settings = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return f"{path.name} is no JSON ({quote(str(error))})"
    if not isinstance(settings, dict):
        return f"{path.name} is no JSON object"
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        growth = 1.0
        for rule in _rules(settings.get(part)):
            pattern = rule.get("pattern")
            if isinstance(pattern, dict) and (fault := find_pattern_fault(str(pattern.get("Regex") or ""))):
                return f"{path.name}: its {part} has a regular expression that {fault}"
            growth *= _growth_of(rule)
            if growth > MOST_GROWTH:
                return f"{path.name}: its {part} makes a text more than {MOST_GROWTH} times as long"
    return None


def _rules(part: Any) -> Iterator[dict[str, Any]]:
    """All rules of a part, those in sequences included."""
    level = [part]
    while level:
        rules = [rule for rule in level if isinstance(rule, dict)]
        yield from rules
        level = [item for rule in rules for value in rule.values() if isinstance(value, list) for item in value]


def _growth_of(rule: dict[str, Any]) -> float:
    """How many times as long, at most, a rule makes a text of one character or more."""
    if rule.get("type") == "Precompiled":
        try:
            blob = base64.b64decode(str(rule.get("precompiled_charsmap") or ""))
        except ValueError:
            return 1.0  # the library refuses it
        pieces = blob[4 + int.from_bytes(blob[:4], "little") :].split(b"\0")  # behind a table, whose size comes first
        return 1.0 if max(map(len, pieces)) <= LONGEST_PIECE else float("inf")
    added = len(str(rule.get("content") or rule.get("prepend") or rule.get("append") or rule.get("replacement") or ""))
    pattern = rule.get("pattern")
    if rule.get("type") == "Replace" and isinstance(pattern, dict):
        return max(1.0, added / max(1, len(str(pattern.get("String") or ""))))
    return 1.0 + added if added > 1 else 1.0


def find_pattern_fault(pattern: str) -> str | None:
    """Why a regular expression could take time without end on some text; None where its time has a low power.

    A part that can match one text in several ways must not be repeated: `(a+)+` and `(a|a)*` try all ways. What refers
    to the text that it matched, or to itself, is refused as well.
    """
    if len(pattern) > LONGEST_PATTERN:
        return f"has {len(pattern):,} characters, more than {LONGEST_PATTERN:,}"
    varies = [False]  # of each open group: whether it can match one text in several ways
    last_varies, num_repeats, place = False, 0, 0
    while place < len(pattern):
        character, start = pattern[place], place
        if escape := ESCAPE.match(pattern, place):
            if escape[0][1] in "123456789kg":
                return f"refers to what it matched ({quote(escape[0])})"
            last_varies, place = False, escape.end()
        elif character == "[":
            last_varies, place = False, _end_of_set(pattern, place)
        elif character == "(":
            opening = GROUP.match(pattern, place)
            if opening is None or pattern[opening.end() : opening.end() + 1] in ("?", "*"):
                return f"has a group of a kind that no tokenizer needs ({quote(pattern[place : place + 4])})"
            place = opening.end()
            if not opening[0].endswith(")"):  # (?i) alone opens no group
                varies.append(False)
        elif character == ")" and len(varies) > 1:
            last_varies, place = varies.pop(), place + 1
            varies[-1] |= last_varies
        elif character == "|":
            num_repeats = num_repeats if len(varies) > 1 else 0
            varies[-1], last_varies, place = True, False, place + 1
        elif quantifier := QUANTIFIER.match(pattern, place):
            low, high = _bounds(quantifier)
            if high > 1 and last_varies:
                return (
                    f"repeats what can match in several ways ({quote(pattern[max(0, start - 20) : quantifier.end()])})"
                )
            num_repeats += high > MANY
            if num_repeats > MOST_REPEATS:
                return f"has more than {MOST_REPEATS} parts of any length in a row"
            last_varies = last_varies or low != high
            varies[-1], place = varies[-1] or last_varies, quantifier.end()
        else:
            last_varies, place = False, place + 1
    return None


def _bounds(quantifier: re.Match[str]) -> tuple[float, float]:
    """The fewest and the most times that a quantifier repeats."""
    if quantifier["low"] is None:
        return {"?": (0, 1), "*": (0, float("inf")), "+": (1, float("inf"))}[quantifier[0][0]]
    low = float(quantifier["low"] or 0)
    return low, low if not quantifier["comma"] else float(quantifier["high"] or "inf")


def _end_of_set(pattern: str, place: int) -> int:
    """Where a set of characters ends that begins there; sets can stand within sets."""
    depth = 0
    while place < len(pattern):
        if escape := ESCAPE.match(pattern, place):
            place = escape.end()
        elif opening := SET.match(pattern, place):
            depth, place = depth + 1, opening.end()
        else:
            place += 1
            depth -= pattern[place - 1] == "]"
            if depth == 0:
                break
    return place
