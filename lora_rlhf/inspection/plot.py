"""The picture of a report: lengths against the limits, responses per prompt, rows used and refused."""

import itertools
import math
from pathlib import Path, PurePath
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter

from lora_rlhf.inspection.text import shortened
from lora_rlhf.render.palette import FAINT, INK, SERIES
from lora_rlhf.render.pictures import SMALL, save_png, style_axis

FIRST_COLOR, SECOND_COLOR = SERIES[:2]
MOST_FILES = 40  # a taller picture could not be opened
REASON_CHARACTERS = 34  # characters of a reason beside its bar
MOST_REASONS = 5
EMPTY_PANEL_TEXTS = ("no row is used", "no rankings", "no rows")  # text of a panel without a figure
LEGEND_POINTS = 34  # height of two lines of legend
FEWEST_MARKS, MOST_MARKS = 3, 6  # of a logarithmic axis


def plot_report(report: dict[str, Any], path: Path) -> None:
    """Writes a PNG with a row of panels for each of FILE... that could be read, at most 40 rows."""
    files = [file for file in report["files"] if file["error"] is None][:MOST_FILES]
    figure = Figure(figsize=(13, 3.1 * max(1, len(files))), layout="constrained")
    rows = figure.subplots(max(1, len(files)), 3, squeeze=False, width_ratios=(5, 3, 3))
    for file, (lengths, responses, row_bars) in zip(files, rows, strict=False):
        name = shortened(PurePath(file["file"]).name, 60)
        lengths.set_title(name, loc="left", pad=LEGEND_POINTS, fontsize=10, color=INK, parse_math=False)
        _plot_lengths(lengths, file)
        _plot_responses(responses, file)
        _plot_rows(row_bars, file)
    for axis, empty_text in zip(rows.flatten(), itertools.cycle(EMPTY_PANEL_TEXTS), strict=False):
        style_axis(axis)
        if not axis.has_data():
            axis.set_axis_off()
            axis.text(0.5, 0.5, empty_text, ha="center", fontsize=SMALL, color=FAINT, transform=axis.transAxes)
    save_png(figure, path)


def _plot_lengths(axis: Axes, file: dict[str, Any]) -> None:
    """Draws the distribution of prompt and response lengths, in tokens if they were counted."""
    unit = "characters" if file["tokens"] is None else "tokens"
    figures = file[unit]
    parts_with_data = [
        (part, color) for part, color in (("prompt", FIRST_COLOR), ("response", SECOND_COLOR)) if figures[part]["count"]
    ]
    for part, color in parts_with_data:
        bars = figures[part]["bars"]
        shares = [count / figures[part]["count"] for _, _, count in bars]
        edges = [bars[0][0], *(end for _, end, _ in bars)]
        name = "text" if list(file["kinds"]) == ["texts"] else part
        axis.stairs(shares, edges, fill=True, color=color, alpha=0.35)
        axis.stairs(shares, edges, color=color, label=f"{name}, median {figures[part]['p50']:,}")
    if not parts_with_data:
        return
    for number, (part, color) in enumerate(parts_with_data):
        limit = {} if file["tokens"] is None else file["tokens"]["limits"].get(f"max_{part}_tokens", {})
        if limit:
            # the dashes of one line lie in the gaps of the other, so that both are visible if the limits are equal
            label = f"{part} limit {limit['limit']:,}"
            axis.axvline(limit["limit"], color=color, linewidth=1.5, linestyle=(6 * number, (6, 6)), label=label)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(axis_marks(*axis.get_xlim())))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel(unit, fontsize=SMALL, color=FAINT)
    axis.set_ylabel("share", fontsize=SMALL, color=FAINT)
    # between the title and the bars
    axis.legend(frameon=False, fontsize=SMALL, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)


def axis_marks(low: float, high: float) -> list[int]:
    """Round numbers to mark on a logarithmic axis (1, 2, 5, 10, ...); all whole numbers if fewer than 3 are round."""
    marks = [step * 10**power for power in range(19) for step in (1, 2, 5) if low <= step * 10**power <= high]
    if len(marks) >= FEWEST_MARKS:
        return marks
    first, last = math.ceil(low), math.floor(high)
    return list(range(first, last + 1, max(1, math.ceil((last - first) / (MOST_MARKS - 1)))))


def _plot_responses(axis: Axes, file: dict[str, Any]) -> None:
    """Draws how many responses the rankings have; nothing for data without rankings."""
    if not file["records"] or file["rankings"] is None:
        return
    sizes = {int(size): count for size, count in file["rankings"]["responses"].items()}
    axis.bar(list(sizes), list(sizes.values()), width=0.7, color=FIRST_COLOR)
    axis.set_xlim(min(sizes) - 1, max(sizes) + 1)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axis.set_xlabel("responses ranked together", fontsize=SMALL, color=FAINT)
    axis.set_ylabel("rankings", fontsize=SMALL, color=FAINT)


def _plot_rows(axis: Axes, file: dict[str, Any]) -> None:
    """Draws the numbers of used rows and of rows refused for each reason."""
    if not file["rows"]["read"]:
        return
    bars = [("used", file["rows"]["used"], FIRST_COLOR)]
    bars += [
        (shortened(row["reason"], REASON_CHARACTERS), row["count"], SECOND_COLOR)
        for row in file["refused"][:MOST_REASONS]
    ]
    names, counts, colors = zip(*bars, strict=True)
    axis.barh(range(len(bars)), counts, color=colors, height=0.6)
    axis.set_yticks(range(len(bars)), names, parse_math=False)
    axis.set_ylim(max(3, len(bars)) - 0.5, -0.5)
    for y, count in enumerate(counts):
        axis.annotate(f" {count:,}", (count, y), va="center", fontsize=SMALL, color=INK)
    axis.set_xlim(0, 1.25 * max(counts))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    axis.set_xlabel("rows", fontsize=SMALL, color=FAINT)
