"""What a stage wrote while it trained, as figures to be drawn. Rows and settings may come from a stranger's run."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from lora_rlhf.configs.catalogue import Plot, Stage
from lora_rlhf.configs.values import read_yaml
from lora_rlhf.render.curves import Curve, Figure, picture
from lora_rlhf.system.disk import write_text
from lora_rlhf.system.errors import UserError

CURVES = "curves.svg"
Row = Mapping[str, Any]


def stage_figures(
    stage: Stage, rows_by_run: Mapping[str, Sequence[Row]], settings_by_run: Mapping[str, Row]
) -> list[Figure]:
    """The figures of a stage for which at least one run has points. Rows: of each run's metrics.jsonl."""
    figures = []
    for plot in stage.plots:
        read = _histogram if plot.is_histogram else _points
        curves = [
            Curve(run, points, _target(plot, settings_by_run[run]))
            for run, rows in rows_by_run.items()
            if (points := read(rows, plot.metric))
        ]
        if curves:
            x_name = "score" if plot.is_histogram else "step"
            figures.append(Figure(plot.metric, plot.title, plot.meaning, curves, x_name))
    return figures


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a stage's config.yaml; none where it cannot be read."""
    try:
        return read_yaml(path)
    except (UserError, OSError):
        return {}


def write_picture(folder: Path, stage: Stage, rows: Sequence[Row], settings: Row) -> bool:
    """Writes curves.svg into a stage's folder; False where there is nothing to draw."""
    figures = stage_figures(stage, {stage.name: rows}, {stage.name: settings})
    if figures:
        write_text(folder / CURVES, picture(f"{stage.title} in {folder}", figures))
    return bool(figures)


def is_finite_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _points(rows: Sequence[Row], metric: str) -> list[tuple[float, float]]:
    """(step, value) of each row that has both."""
    pairs = ((row.get("step"), row.get(metric)) for row in rows)
    return [(float(step), float(value)) for step, value in pairs if is_finite_number(step) and is_finite_number(value)]


def _histogram(rows: Sequence[Row], metric: str) -> list[tuple[float, float]]:
    """The outline of the newest histogram's bars: {"low", "high": of all bars, "counts": of each}."""
    for row in reversed(rows):
        match row.get(metric):
            case {"low": low, "high": high, "counts": [*counts]} if all(map(is_finite_number, (low, high, *counts))):
                width = (high - low) / (len(counts) or 1)
                bars = [(low + i * width, float(count)) for i, count in enumerate(counts)]
                outline = [(x, count) for left, count in bars for x in (left, left + width)]
                return [(low, 0.0), *outline, (high, 0.0)] if outline else []
    return []


def _target(plot: Plot, settings: Row) -> float | None:
    """The value of the setting that the plot names as its target; None if there is none."""
    value = None if plot.target is None else settings.get(plot.target)
    return float(value) if is_finite_number(value) else None
