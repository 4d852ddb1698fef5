"""A tokenizer.json that strangers wrote: refused before it is loaded where it could take memory or time without end."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_rlhf.system.plain_files import read_file
from lora_rlhf.system.untrusted import quote

MOST_BYTES = 64 * 2**20  # the largest of known models has 33 MiB
MOST_COMMAS = 4_000_000  # between its tokens and merges; the largest has a third
MOST_GROWTH = 64  # times that normalizer or decoder can lengthen a text; those of models stay below 10
LONGEST_PIECE = 512  # bytes that a precompiled normalizer can write for one character


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
