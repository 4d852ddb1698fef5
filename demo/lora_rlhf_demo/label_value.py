"""One labeler's label of one task: how a page sends it, what is wrong with it, and how a saved row holds it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_rlhf.data.labels import FLAGS, PROMPT_FLAGS
from lora_rlhf.data.schema import Ranking
from lora_rlhf.system.errors import UserError
from lora_rlhf_demo.rows import Row
from lora_rlhf_demo.tasks import RATINGS, REASONS, Task

MAX_TEXT = {"comment": 2_000, "ideal answer": 20_000}  # characters


@dataclass(frozen=True)
class Label:
    """A labeler's ranks, ratings and flags for a task, in the order of its responses; a rating may be None.

    reasons, comment: why this order. ideal: the answer as the labeler would have written it; empty without one.
    unread: indices of the responses that were ranked though their end was never shown.
    """

    ranks: tuple[int, ...]
    ratings: tuple[int | None, ...]
    flags: tuple[tuple[str, ...], ...]
    prompt_flags: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    comment: str = ""
    ideal: str = ""
    unread: tuple[int, ...] = ()


def label_from_page(value: Mapping[str, Any], task: Task, labeler: str) -> Label:
    """The label that a page sends: from the order of display to the order of the task's responses.

    UserError for anything that the page itself would not send, since a browser may send any value.
    """
    order = task.display_order(labeler)
    if not isinstance(value, dict) or value.get("id") != task.id:
        raise UserError("This page shows another task by now; label the one shown.")
    columns = []
    for name in ("ranks", "ratings", "flags"):
        column = value.get(name)
        if not isinstance(column, list) or len(column) != len(order):
            raise UserError(f"The page sent {name} that do not fit the task; reload it.")
        columns.append(column)
    # responses[order[position]] is displayed at `position`
    positions = [order.index(index) for index in range(len(order))]
    ranks, ratings, flags = ([column[position] for position in positions] for column in columns)
    if not all(isinstance(names, list) for names in flags):
        raise UserError("The page sent flags that do not fit the task; reload it.")
    chosen = [value.get(name, []) for name in ("prompt_flags", "reasons")]
    texts = [value.get(name, "") for name in ("comment", "ideal")]
    if not all(isinstance(names, list) for names in chosen) or not all(isinstance(text, str) for text in texts):
        raise UserError("The page sent a comment or reasons that do not fit the task; reload it.")
    has_read = value.get("read")
    unread = [] if not isinstance(has_read, list) else [i for i, one in enumerate(has_read[: len(order)]) if not one]
    label = Label(
        tuple(ranks), tuple(ratings), tuple(map(tuple, flags)), tuple(chosen[0]), tuple(chosen[1]), texts[0], texts[1],
        tuple(sorted(order[position] for position in unread)),
    )  # fmt: skip
    require_fit(task, label)
    return label


def require_fit(task: Task, label: Label) -> None:
    """UserError for a label that does not fit this task."""
    count = len(task.responses)
    if any(type(rank) is not int for rank in label.ranks):
        raise UserError("A rank is a whole number.")
    if len(label.ranks) != count or set(label.ranks) != set(range(1, len(set(label.ranks)) + 1)):
        raise UserError("Rank every response; the best has rank 1, and no rank is left out.")
    if any(rating is not None and (type(rating) is not int or rating not in RATINGS) for rating in label.ratings):
        raise UserError(f"A rating is a whole number from {RATINGS[0]} to {RATINGS[-1]}.")
    are_known = [isinstance(flag, str) and flag in FLAGS for flags in label.flags for flag in flags]
    are_known += [isinstance(flag, str) and flag in PROMPT_FLAGS for flag in label.prompt_flags]
    are_known += [isinstance(reason, str) and reason in REASONS for reason in label.reasons]
    for name, text in (("comment", label.comment), ("ideal answer", label.ideal)):
        if len(text) > MAX_TEXT[name]:
            raise UserError(f"The {name} has {len(text):,} characters; at most {MAX_TEXT[name]:,} are taken.")
    if label.ideal.strip() in {response.strip() for response in task.responses}:
        raise UserError("Your ideal answer is one of the answers, word for word: give that one rank 1 instead.")
    if len(label.ratings) != count or len(label.flags) != count or not all(are_known):
        raise UserError("Ratings or flags do not fit the task; reload the page.")


def label_from_row(row: Row, saved_ranking: Ranking) -> Label:
    """The label that a saved row holds; fields that somebody has changed are left empty."""
    has_ideal = row.get("has_ideal") is True and len(saved_ranking.responses) > 2
    total = len(saved_ranking.responses)
    count = total - has_ideal
    ratings, flags = row.get("ratings"), row.get("flags")
    reasons = row.get("reasons")
    return Label(
        tuple(rank - has_ideal for rank in saved_ranking.ranks[:count]),
        tuple(ratings[:count]) if isinstance(ratings, list) and len(ratings) == total else (None,) * count,
        tuple(map(tuple, flags[:count])) if isinstance(flags, list) and len(flags) == total else ((),) * count,
        tuple(row.get("prompt_flags") or ()),
        tuple(reasons) if isinstance(reasons, list) else (),
        str(row.get("comment", "")),
        saved_ranking.responses[-1] if has_ideal else "",
    )
