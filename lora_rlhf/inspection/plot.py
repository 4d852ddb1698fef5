"""The picture of a report: lengths against the limits, responses per prompt, rows used and refused."""

import os
from pathlib import Path, PurePath
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from lora_rlhf.inspection.render import short

INK, FIRST, SECOND, MUTED = "#222222", "#1f6f8b", "#d1703c", "#8a8a8a"
MOST_FILES = 40  # a taller picture could not be opened
REASON = 34  # characters of a reason beside its bar
REASONS = 5


def plot_report(report: dict[str, Any], path: Path) -> None:
    """Writes a PNG with a row of panels for each of FILE... that could be read, at most 40."""
    files = [file for file in report["files"] if file["error"] is None][:MOST_FILES]
    figure = Figure(figsize=(13, 2.9 * max(1, len(files))), layout="constrained")
    rows = figure.subplots(max(1, len(files)), 3, squeeze=False, width_ratios=(5, 3, 3))
    for file, (lengths, responses, used) in zip(files, rows, strict=False):
        lengths.set_title(short(PurePath(file["file"]).name, 60), loc="left", fontsize=10, color=INK, parse_math=False)
        _plot_lengths(lengths, file)
        _plot_responses(responses, file)
        _plot_rows(used, file)
    for axis in rows.flatten():
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8, colors=INK)
        if not axis.has_data():
            axis.set_axis_off()
    _save(figure, path)


def _plot_lengths(axis: Axes, file: dict[str, Any]) -> None:
    """Prompts and responses by length, on a logarithmic scale; in tokens where they were counted."""
    unit = "characters" if file["tokens"] is None else "tokens"
    figures = file[unit]
    for what, color, style in (("prompt", FIRST, ":"), ("response", SECOND, "--")):
        if not figures[what]["count"]:
            continue
        bars = figures[what]["bars"]
        shares = [count / figures[what]["count"] for _, _, count in bars]
        edges = [bars[0][0], *(end for _, end, _ in bars)]
        axis.stairs(shares, edges, fill=True, color=color, alpha=0.35)
        axis.stairs(shares, edges, color=color, label=f"{what}, median {figures[what]['p50']:,}")
        limit = {} if file["tokens"] is None else file["tokens"]["limits"].get(f"max_{what}_tokens", {})
        if limit:
            axis.axvline(limit["limit"], color=color, linewidth=1.5, linestyle=style)
    if axis.has_data():
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        limits = " (limits: prompt dotted, response dashed)" if file["tokens"] else ""
        axis.set_xlabel(unit + limits, fontsize=8, color=MUTED)
        axis.set_ylabel("share", fontsize=8, color=MUTED)
        axis.legend(frameon=False, fontsize=8, loc="upper left")


def _plot_responses(axis: Axes, file: dict[str, Any]) -> None:
    """How many responses each prompt has; nothing for data without rankings."""
    if not file["records"] or file["rankings"] is None:
        return
    sizes = {int(size): count for size, count in file["rankings"]["responses"].items()}
    axis.bar(list(sizes), list(sizes.values()), width=0.7, color=FIRST)
    axis.set_xlim(min(sizes) - 1, max(sizes) + 1)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axis.set_xlabel("responses ranked together", fontsize=8, color=MUTED)
    axis.set_ylabel("rankings", fontsize=8, color=MUTED)


def _plot_rows(axis: Axes, file: dict[str, Any]) -> None:
    """Rows used, and rows refused by reason."""
    if not file["rows"]["read"]:
        return
    shown = [("used", file["rows"]["used"], FIRST)]
    shown += [(short(row["reason"], REASON), row["count"], SECOND) for row in file["refused"][:REASONS]]
    names, counts, colors = zip(*shown, strict=True)
    axis.barh(range(len(shown)), counts, color=colors, height=0.6)
    axis.set_yticks(range(len(shown)), names, parse_math=False)
    axis.set_ylim(max(3, len(shown)) - 0.5, -0.5)
    for place, count in enumerate(counts):
        axis.annotate(f" {count:,}", (count, place), va="center", fontsize=8, color=INK)
    axis.set_xlim(0, 1.25 * max(counts))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    axis.set_xlabel("rows", fontsize=8, color=MUTED)


def _save(figure: Figure, path: Path) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=140)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
