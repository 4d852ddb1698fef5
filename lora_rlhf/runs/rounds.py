"""The rounds of a run: where they are, what they record, and their curves."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_rlhf.render.curves import Curve, Figure
from lora_rlhf.runs.curves import is_finite_number
from lora_rlhf.system.plain_files import require_no_link
from lora_rlhf.system.untrusted import read_object

RECORD = "round.json"
FINISHED, RUNNING = "finished", "running"
WAY_OUT = "remove that folder to make the round again"
# (title, meaning, the value's keys in a record)
CURVES = (
    ("Wins against the round before", "share of held-out prompts, ties half; above 0.5 is better", "win_rate.rate"),
    (
        "Reward accuracy before",
        "pairs of the current policy's answers that the reward model before orders as the labeler did",
        "measured.before.mean",
    ),
    ("Reward accuracy, refreshed", "the same pairs, by the round's own reward model", "measured.after.mean"),
    ("Labels", "prompts that were to be ranked in the round", "labels.asked"),
    ("Rankings trained on", "of all rounds so far", "trained_on"),
)
ROUND_NAME = re.compile(r"(.+)-round-\d+")


def round_folder(first: Path, number: int) -> Path:
    """RUN-round-2 beside RUN; round 1 is RUN itself."""
    first = first if first.name not in ("", "..") else first.resolve()
    return first if number == 1 else first.with_name(f"{first.name}-round-{number}")


def first_round(name: str) -> str:
    """The name of the run that a round's run goes back to; another run's own name."""
    match = ROUND_NAME.fullmatch(name)
    return match[1] if match else name


def read_rounds(first: Path) -> list[dict[str, Any]]:
    """The records of the finished rounds, from round 2 on."""
    records: list[dict[str, Any]] = []
    while (path := round_folder(first, len(records) + 2) / RECORD).is_file():
        require_no_link(path.parent)
        record = read_object(path, WAY_OUT)
        if record.get("status") != FINISHED:
            break
        records.append(record)
    return records


def rounds_figures(first: Path) -> list[Figure]:
    """Curves over the rounds of a run; none for a run without rounds. UserError for a record that cannot be read."""
    records = read_rounds(first)
    figures = []
    for title, meaning, path in CURVES:
        points, intervals = [], []
        for number, record in enumerate(records, start=2):
            value, low, high = _measured(record, path)
            if is_finite_number(value):
                points.append((float(number), float(value)))
            if is_finite_number(low) and is_finite_number(high):
                intervals.append((float(number), float(low), float(high)))
        if points:
            curve = Curve(first.name, points, None, intervals if len(intervals) == len(points) else ())
            figures.append(Figure(f"rounds/{title}", title, meaning, [curve], "round"))
    return figures


def _measured(record: Mapping[str, Any], path: str) -> tuple[Any, Any, Any]:
    """(value, low, high) of what stands under these keys of a record; None for what is not there."""
    *parents, name = path.split(".")
    part: Any = record
    for key in parents:
        part = part.get(key) if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping):
        return None, None, None
    return part.get(name), part.get("low"), part.get("high")
