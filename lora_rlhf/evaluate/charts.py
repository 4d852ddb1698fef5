"""The charts of the HTML report, each an SVG that takes its colours from the page."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lora_rlhf.evaluate.figures import CATALOGUE
from lora_rlhf.evaluate.wording import name_of

Report = Mapping[str, Any]
Chart = tuple[str, str, str]  # title, what it shows in plain words, SVG

# What is drawn with, and the page's variable that takes its place, so that a dark page has light ink.
COLORS = {
    "#101010": "var(--ink)",
    "#808080": "var(--faint)",
    "#2060a0": "var(--one)",
    "#c06020": "var(--two)",
    "#208060": "var(--three)",
    "#a04080": "var(--four)",
}
INK, FAINT, *SERIES = COLORS
WIDTH, HEIGHT = 4.6, 3.0  # inches: with 9-point letters, readable on a phone too
FONT: Any = {
    "text.parse_math": False,  # a dollar in a category is a dollar
    "svg.fonttype": "none",  # letters stay letters
    "svg.hashsalt": "lora-rlhf",  # the same report, the same page
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def charts(report: Report) -> list[Chart]:
    """Every chart that the report has the data for."""
    found = []
    for title, meaning, draw in CHARTS:
        height = HEIGHT + (0.16 * max(0, len(report.get("categories", {})) - 6) if draw is _by_category else 0)
        with rc_context(FONT):
            picture = Figure(figsize=(WIDTH, height), layout="constrained")
            if draw(picture.subplots(), report):
                found.append((title, meaning, _svg(picture, title)))
    return found


def _win_rates(axis: Axes, report: Report) -> bool:
    series = [("win_rates", "at temperature 1"), ("win_rates_best_temperature", "each at its best temperature")]
    present = [(report[key], label) for key, label in series if report.get(key)]
    pairs = [pair for pair, rate in report["win_rates"].items() if rate["rate"] is not None]
    for number, (rates, label) in enumerate(present):
        shift = 0.18 * (number - (len(present) - 1) / 2)
        there = [(place + shift, rates[pair]) for place, pair in enumerate(pairs) if pair in rates]
        _whiskers(axis, [(y, r["rate"], r["low"], r["high"]) for y, r in there], SERIES[number], label)
    axis.axvline(0.5, color=FAINT, linewidth=1, linestyle=":")
    axis.set_yticks(range(len(pairs)), [pair.replace("_vs_", "\nagainst ") for pair in pairs])
    axis.set_ylim(len(pairs) - 0.5, -0.5)
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    axis.set_xlabel("prompts won, ties counted half")
    _legend(axis, len(present) > 1)
    return bool(pairs)


def _by_category(axis: Axes, report: Report) -> bool:
    categories = report.get("categories", {})
    name = next((n for n in ("score", "win_rate") if any(n in c["figures"] for c in categories.values())), None)
    systems = list(report["systems"]) if name == "score" else [report["candidate"]]
    if name is None or len(categories) < 2:
        return False
    for number, system in enumerate(systems):
        shift = 0.2 * (number - (len(systems) - 1) / 2)
        rows = [(place + shift, c["figures"].get(name, {}).get(system)) for place, c in enumerate(categories.values())]
        points = [(y, r["value"], r["low"], r["high"]) for y, r in rows if r is not None and r["value"] is not None]
        _whiskers(axis, points, _color(report, system), name_of(system))
    axis.set_yticks(range(len(categories)), [f"{label} ({c['n']})" for label, c in categories.items()])
    axis.set_ylim(len(categories) - 0.5, -0.5)
    axis.set_xlabel("mean score by the judge" if name == "score" else CATALOGUE[name].meaning)
    _legend(axis, len(systems) > 1)
    return True


def _reliability(axis: Axes, report: Report) -> bool:
    curves = [(when, report.get("reward", {}).get(when, {}).get("reliability")) for when in ("before", "after")]
    labels = {"before": "before, on held-out rankings", "after": "after, on new answers"}
    axis.plot([0.5, 1], [0.5, 1], color=FAINT, linewidth=1, linestyle=":")
    for number, (when, bins) in enumerate(curves):
        points = [(one["confidence"], one["accuracy"]) for one in bins or () if one["n"]]
        if points:
            axis.plot(*zip(*points, strict=True), color=SERIES[number], marker="o", markersize=4, label=labels[when])
    axis.set_xlabel("how sure the reward model was")
    axis.set_ylabel("how often it was right")
    axis.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    axis.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    _legend(axis, True)
    return any(bins for _, bins in curves)


def _parting(axis: Axes, report: Report) -> bool:
    rows = report.get("audit", {}).get("by_kl", [])
    for number, (key, label) in enumerate((("reward", "reward model"), ("quality", "judge"))):
        points = [(row["sqrt_kl"], row[key]) for row in rows]
        if points:
            axis.plot(*zip(*points, strict=True), color=SERIES[number], marker="o", markersize=4, label=label)
    axis.set_xlabel("square root of an answer's KL from the reference, nats")
    axis.set_ylabel("mean score")
    _legend(axis, True)
    return len(rows) > 1


def _lengths(axis: Axes, report: Report) -> bool:
    found = report.get("lengths", {})
    for system, counts in found.get("counts", {}).items():
        axis.stairs(counts, found["edges"], color=_color(report, system), label=name_of(system), linewidth=1.5)
    axis.set_xlabel("tokens of an answer")
    axis.set_ylabel("answers")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axis, True)
    return bool(found)


CHARTS: Sequence[tuple[str, str, Callable[[Axes, Report], bool]]] = (
    (
        "Who wins",
        "How often the first of two is preferred. Right of the dotted line it wins more than half.",
        _win_rates,
    ),
    ("By category", "The same prompts by what they ask for; lines are 95 % intervals.", _by_category),
    (
        "Can the reward model be trusted",
        "On the dotted line, the reward model is right as often as it is sure. Below it, it is too sure of itself.",
        _reliability,
    ),
    (
        "Where reward and judge part",
        "The candidate's answers by how far they are from the reference. Reward up and judge down is reward hacking.",
        _parting,
    ),
    ("How long answers are", "A reward can often be raised by length alone.", _lengths),
)


def _whiskers(axis: Axes, points: Sequence[tuple[float, float, Any, Any]], color: str, label: str) -> None:
    """Points with their intervals: (place, value, low, high), low and high None where there is none."""
    if not points:
        return
    places, values = [p[0] for p in points], [p[1] for p in points]
    below = [0 if low is None else max(0, value - low) for _, value, low, _ in points]
    above = [0 if high is None else max(0, high - value) for _, value, _, high in points]
    axis.errorbar(
        values, places, xerr=[below, above], fmt="o", markersize=4, capsize=2, linewidth=1.2, color=color, label=label
    )


def _legend(axis: Axes, wanted: bool) -> None:
    if wanted and axis.get_legend_handles_labels()[0]:
        axis.legend(
            fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, columnspacing=1, handlelength=1.2
        )


def _color(report: Report, system: str) -> str:
    """The candidate and the baseline keep their colours, the base is faint, and others follow."""
    chosen = {report["baseline"]: SERIES[1], report["candidate"]: SERIES[0]}
    others = [name for name in report["systems"] if name not in chosen and name != "base"]
    chosen = {"base": FAINT, **{name: SERIES[2 + i % 2] for i, name in enumerate(others)}} | chosen
    return chosen[system]


def _svg(picture: Figure, title: str) -> str:
    """The picture as an SVG element: no XML header, named for screen readers, its colours the page's."""
    file = io.StringIO()
    picture.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", text, count=1)
    for color, variable in COLORS.items():
        text = text.replace(color, variable)
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1).strip()
