"""The picture of a run: PPO's training, and the win rates."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lora_rlhf.evaluation.charts import draw_win_rate_chart
from lora_rlhf.evaluation.report_model import Report
from lora_rlhf.render.palette import FAINT, INK, SERIES
from lora_rlhf.render.pictures import SMALL, save_png, style_axis

LINE, TARGET = SERIES[:2]
PANELS = (
    ("rollout/score", "Score of rollouts", "sd of demonstrations"),
    ("rollout/kl", "KL from the reference", "nats per response"),
    ("rollout/length", "Response length", "tokens"),
    ("rollout/entropy", "Entropy of the policy", "nats per token"),
    ("ppo/value_loss", "Value loss", ""),
)
MOST_COLUMNS = 3
SMOOTHED_SHARE = 0.1  # share of all iterations in the window of the running mean


def plot_report(report: Report, metrics: Sequence[Mapping[str, Any]], kl_target: float | None, path: Path) -> None:
    """Writes a PNG: a panel for each recorded metric of PPO, and the win rates with their intervals."""
    recorded_panels = [panel for panel in PANELS if any(row.get(panel[0]) is not None for row in metrics)]
    columns = min(MOST_COLUMNS, len(recorded_panels) + 1)
    rows = math.ceil((len(recorded_panels) + 1) / MOST_COLUMNS)
    figure = Figure(figsize=(4.2 * columns, 3.3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (key, title, unit) in zip(axes, recorded_panels, strict=False):
        _plot_metric(axis, metrics, key)
        axis.set_title(title, loc="left", fontsize=10, color=INK)
        axis.set_ylabel(unit, fontsize=SMALL, color=FAINT)
        if key == "rollout/kl" and kl_target is not None:
            axis.axhline(kl_target, color=TARGET, linewidth=1.2, linestyle="--", label=f"target {kl_target:g}")
            axis.legend(frameon=False, fontsize=SMALL)
    win_rate_axis = axes[len(recorded_panels)]
    with rc_context({"legend.frameon": False}):
        draw_win_rate_chart(win_rate_axis, report)
    win_rate_axis.set_title("Win rates, 95 % intervals", loc="left", fontsize=10, color=INK)
    for line in win_rate_axis.lines:
        line.set_clip_on(False)  # points at 0 and 100 % are drawn whole
    for axis in axes[: len(recorded_panels) + 1]:
        style_axis(axis)
    for axis in axes[len(recorded_panels) + 1 :]:
        axis.set_axis_off()
    save_png(figure, path)


def _plot_metric(axis: Axes, metrics: Sequence[Mapping[str, Any]], key: str) -> None:
    """Draws a metric over PPO's iterations, with its running mean."""
    points = [(row["step"], row[key]) for row in metrics if row.get(key) is not None]
    steps, values = zip(*points, strict=True)
    axis.plot(steps, values, color=LINE, linewidth=0.8, alpha=0.35)
    axis.plot(steps, _running_mean(values), color=LINE, linewidth=1.6, marker="o" if len(steps) == 1 else "")
    axis.set_xlabel("PPO iteration", fontsize=SMALL, color=FAINT)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlim(0, max(steps) + 1)


def _running_mean(values: Sequence[float]) -> list[float]:
    """The mean of a window around each value. The window is shorter at both ends."""
    reach = round(SMOOTHED_SHARE * len(values) / 2)
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]
