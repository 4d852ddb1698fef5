"""The picture of a run: how PPO went, and what came of it."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

INK, LINE, SECOND, MUTED = "#222222", "#1f6f8b", "#d1703c", "#8a8a8a"
PANELS = (
    ("rollout/score", "Score of rollouts", "sd of demonstrations"),
    ("rollout/kl", "KL from the reference", "nats per response"),
    ("rollout/length", "Response length", "tokens"),
    ("rollout/entropy", "Entropy of the policy", "nats per token"),
    ("ppo/value_loss", "Value loss", ""),
)
COLUMNS = 3
SMOOTHED_SHARE = 0.1  # of all iterations, the window of the running mean that is drawn over the raw values


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; none where there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()] if path.is_file() else []


def plot_report(
    report: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], kl_target: float | None, path: Path
) -> None:
    """Writes a PNG: the panels of PPO's training that were recorded, and the win rates with their intervals."""
    shown = [panel for panel in PANELS if any(row.get(panel[0]) is not None for row in metrics)]
    columns = min(COLUMNS, len(shown) + 1)
    rows = math.ceil((len(shown) + 1) / COLUMNS)
    figure = Figure(figsize=(4.2 * columns, 3.3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (key, title, unit) in zip(axes, shown, strict=False):
        _plot_metric(axis, metrics, key)
        axis.set_title(title, loc="left", fontsize=10, color=INK)
        axis.set_ylabel(unit, fontsize=8, color=MUTED)
        if key == "rollout/kl" and kl_target is not None:
            axis.axhline(kl_target, color=SECOND, linewidth=1.2, linestyle="--", label=f"target {kl_target:g}")
            axis.legend(frameon=False, fontsize=8)
    _plot_win_rates(axes[len(shown)], report)
    for axis in axes[: len(shown) + 1]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8, colors=INK)
    for axis in axes[len(shown) + 1 :]:
        axis.set_axis_off()
    _save(figure, path)


def _plot_metric(axis: Axes, metrics: Sequence[Mapping[str, Any]], key: str) -> None:
    points = [(row["step"], row[key]) for row in metrics if row.get(key) is not None]
    steps, values = zip(*points, strict=True)
    axis.plot(steps, values, color=LINE, linewidth=0.8, alpha=0.35)
    axis.plot(steps, _smooth(values), color=LINE, linewidth=1.6, marker="o" if len(steps) == 1 else "")
    axis.set_xlabel("PPO iteration", fontsize=8, color=MUTED)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlim(0, max(steps) + 1)


def _plot_win_rates(axis: Axes, report: Mapping[str, Any]) -> None:
    series = [("win_rates", "at temperature 1", LINE), ("win_rates_best_temperature", "each at its best", SECOND)]
    present = [entry for entry in series if entry[0] in report]
    pairs = [pair for pair, rate in report["win_rates"].items() if rate["rate"] is not None]
    for number, (key, label, color) in enumerate(present):
        shift = 0.16 * (number - (len(present) - 1) / 2)
        rates = [report[key][pair] for pair in pairs]
        axis.errorbar(
            [rate["rate"] for rate in rates],
            [place + shift for place in range(len(pairs))],
            xerr=[[rate["rate"] - rate["low"] for rate in rates], [rate["high"] - rate["rate"] for rate in rates]],
            fmt="o",
            markersize=5,
            capsize=3,
            color=color,
            label=label,
            clip_on=False,
        )
    axis.axvline(0.5, color=MUTED, linewidth=1, linestyle=":")
    axis.set_yticks(range(len(pairs)), [pair.replace("_vs_", "\nvs ") for pair in pairs])
    axis.set_ylim(len(pairs) - 0.5, -0.5)
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    axis.set_title("Win rates, 95 % intervals", loc="left", fontsize=10, color=INK)
    axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)


def _smooth(values: Sequence[float]) -> list[float]:
    """The mean of a window around each value, which the ends cut: it does not lag behind."""
    reach = round(SMOOTHED_SHARE * len(values) / 2)
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _save(figure: Figure, path: Path) -> None:
    """Whole or not at all, as everything in a run folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=140)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
