"""Votes: a ranking as people type it, and the result of all votes of a run."""

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


def ranks_with_best(best_answer: int, count: int) -> tuple[int, ...]:
    """Ranks of `count` answers of which one is the best; all others share rank 2."""
    return tuple(1 if answer == best_answer else 2 for answer in range(count))


def tied_ranks(count: int) -> tuple[int, ...]:
    """Ranks of `count` answers that are equally good."""
    return (1,) * count


def parse_ranks(text: str, count: int) -> tuple[int, ...]:
    """The ranks of a text such as "B > A = C": B has rank 1, A and C share rank 2. UserError for other texts."""
    letters = LETTERS[:count]
    expected_form = f"write all of {', '.join(letters)}, the best first, for example {' > '.join(letters[:2])}" + (
        f" = {letters[2]}" if count > 2 else ""
    )
    groups = [re.findall(r"[A-Z]", group) for group in text.upper().split(">")]
    all_letters = [letter for group in groups for letter in group]
    if sorted(all_letters) != sorted(letters) or re.search(r"[^A-Za-z>=,\s]", text):
        raise UserError(f"{text[:80]!r} is not a ranking: {expected_form}")
    ranks: dict[str, int] = {}
    num_ranked = 0
    for group in groups:
        ranks |= dict.fromkeys(group, num_ranked + 1)
        num_ranked += len(group)
    return tuple(ranks[letter] for letter in letters)


def dragged_ranks(value: Any, count: int) -> tuple[int, ...]:
    """The ranks of a ranking component's value. UserError where no answer has one yet, and for other values."""
    ranks = value.get("ranks") if isinstance(value, Mapping) else None
    if (
        not isinstance(ranks, list)
        or len(ranks) != count
        or any(type(r) is not int or not 0 < r <= count for r in ranks)
    ):
        raise UserError("This is no ranking of these answers: reload the page.")
    if not any(value.get("placed") or ()):
        raise UserError("Drag an answer to its place first, or press its letter; the others share the last rank.")
    return tuple(ranks)


def stage_win_rates(rows: Sequence[Mapping[str, Any]]) -> "dict[tuple[str, str], WinRate]":
    """{(stage, other stage): how often the first was ranked above}, from the votes on both; ties count half."""
    from lora_rlhf.stats.win_rates import win_rate  # imports torch, for which no page should wait

    outcomes: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        systems, ranks = _list_or_empty(row.get("systems"), str), _list_or_empty(row.get("ranks"), int)
        if len(systems) != len(ranks):
            continue
        rank_by_stage = dict(zip(systems, ranks, strict=True))
        for pair in combinations(sorted(rank_by_stage, key=_newest_first_key), 2):
            gap = rank_by_stage[pair[1]] - rank_by_stage[pair[0]]
            outcomes.setdefault(pair, []).append(0.5 if gap == 0 else float(gap > 0))
    return {pair: win_rate(values) for pair, values in outcomes.items()}


def _list_or_empty(value: Any, item_type: type) -> list[Any]:
    """The value if it is a list of that type, else an empty list: the file may come from anybody."""
    return value if isinstance(value, list) and all(isinstance(item, item_type) for item in value) else []


def _newest_first_key(stage: str) -> tuple[int, str]:
    """Sort key: the newest stage first, so that its wins are counted."""
    return (NEWEST_FIRST.index(stage) if stage in NEWEST_FIRST else len(NEWEST_FIRST), stage)
