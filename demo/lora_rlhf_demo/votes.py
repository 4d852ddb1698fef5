"""Votes: a ranking as people type it, and what all votes of a run say of its stages."""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from lora_rlhf.configs.catalogue import BASE, WRITERS
from lora_rlhf.system.errors import UserError
from lora_rlhf_demo.compare import LETTERS

if TYPE_CHECKING:
    from lora_rlhf.stats.win_rates import WinRate

NEWEST_FIRST = (*(stage.role for stage in reversed(WRITERS)), BASE)


def best(place: int, count: int) -> tuple[int, ...]:
    """Ranks that say only which answer is best; the others share the second place."""
    return tuple(1 if other == place else 2 for other in range(count))


def tie(count: int) -> tuple[int, ...]:
    """Ranks of answers that are all as good."""
    return (1,) * count


def parse_ranks(text: str, count: int) -> tuple[int, ...]:
    """Ranks of "B > A = C": B first, A and C share the second place. UserError says what is wrong with it."""
    letters = LETTERS[:count]
    form = f"write all of {', '.join(letters)}, the best first, for example {' > '.join(letters[:2])}" + (
        f" = {letters[2]}" if count > 2 else ""
    )
    groups = [re.findall(r"[A-Z]", group) for group in text.upper().split(">")]
    named = [letter for group in groups for letter in group]
    if sorted(named) != sorted(letters) or re.search(r"[^A-Za-z>=,\s]", text):
        raise UserError(f"{text[:80]!r} is not a ranking: {form}")
    ranks: dict[str, int] = {}
    before = 0
    for group in groups:
        ranks |= dict.fromkeys(group, before + 1)
        before += len(group)
    return tuple(ranks[letter] for letter in letters)


def standings(rows: Sequence[Mapping[str, Any]]) -> "dict[tuple[str, str], WinRate]":
    """{(stage, other): how often the first was ranked above}: over the votes that ranked both, ties half."""
    from lora_rlhf.stats.win_rates import win_rate  # with torch, which no page waits for

    outcomes: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        systems, ranks = _list_of(row.get("systems"), str), _list_of(row.get("ranks"), int)
        if len(systems) != len(ranks):
            continue
        placed = dict(zip(systems, ranks, strict=True))
        for one, other in combinations(sorted(placed, key=_order), 2):
            gap = placed[other] - placed[one]
            outcomes.setdefault((one, other), []).append(0.5 if gap == 0 else float(gap > 0))
    return {pair: win_rate(found) for pair, found in outcomes.items()}


def _list_of(value: Any, kind: type) -> list[Any]:
    """The value if it is such a list, else an empty one: the file may be anybody's."""
    return value if isinstance(value, list) and all(isinstance(item, kind) for item in value) else []


def _order(stage: str) -> tuple[int, str]:
    """The stages that were trained last come first: what is asked is whether they won."""
    return (NEWEST_FIRST.index(stage) if stage in NEWEST_FIRST else len(NEWEST_FIRST), stage)
