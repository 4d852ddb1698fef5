"""The charts of the HTML report, each an SVG that takes its colours from the page."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lora_rlhf.evaluation.figures import CATALOGUE
from lora_rlhf.evaluation.report_model import Report
from lora_rlhf.evaluation.wording import name_of
from lora_rlhf.render.palette import FAINT, INK, SERIES
from lora_rlhf.render.pictures import svg

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
Interval = tuple[float, float | None, float | None]  # value, low, high


class Chart(NamedTuple):
    """A drawn chart: its title, what it shows in plain words, and the picture."""

    title: str
    meaning: str
    svg: str


def charts(report: Report) -> list[Chart]:
    """Every chart that the report has the data for."""
    drawn = []
    for title, meaning, draw in CHARTS:
        height = HEIGHT + (0.16 * max(0, len(report.categories) - 6) if draw is _by_category else 0)
        with rc_context(FONT):
            picture = Figure(figsize=(WIDTH, height), layout="constrained")
            if draw(picture.subplots(), report):
                drawn.append(Chart(title, meaning, svg(picture, title)))
    return drawn


def draw_win_rates(axis: Axes, report: Report) -> bool:
    """Every pair's win rate with its interval; whether there is any."""
    best = report.win_rates_best_temperature
    series = ((report.win_rates, "at temperature 1"), (best, "each at its best temperature"))
    measured = [(rates, label) for rates, label in series if rates]
    pairs = [pair for pair, rate in report.win_rates.items() if rate.rate is not None]
    for number, (rates, label) in enumerate(measured):
        shift = 0.18 * (number - (len(measured) - 1) / 2)
        rows = [(i + shift, rates[pair]) for i, pair in enumerate(pairs) if pair in rates]
        points = [(y, (rate.rate, rate.low, rate.high)) for y, rate in rows if rate.rate is not None]
        _whiskers(axis, points, SERIES[number], label)
    axis.axvline(0.5, color=FAINT, linewidth=1, linestyle=":")
    axis.set_yticks(range(len(pairs)), [pair.replace("_vs_", "\nagainst ") for pair in pairs])
    axis.set_ylim(len(pairs) - 0.5, -0.5)
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    axis.set_xlabel("prompts won, ties counted half")
    _legend(axis, len(measured) > 1)
    return bool(pairs)


def _by_category(axis: Axes, report: Report) -> bool:
    groups = report.categories
    name = next((n for n in ("score", "win_rate") if any(n in group.figures for group in groups.values())), None)
    systems = list(report.systems) if name == "score" else [report.candidate]
    if name is None or len(groups) < 2:
        return False
    for number, system in enumerate(systems):
        shift = 0.2 * (number - (len(systems) - 1) / 2)
        rows = [(i + shift, group.figures.get(name, {}).get(system)) for i, group in enumerate(groups.values())]
        points = [(y, (row.value, row.low, row.high)) for y, row in rows if row is not None and row.value is not None]
        _whiskers(axis, points, _color(report, system), name_of(system))
    axis.set_yticks(range(len(groups)), [f"{label} ({group.n})" for label, group in groups.items()])
    axis.set_ylim(len(groups) - 0.5, -0.5)
    axis.set_xlabel("mean score by the judge" if name == "score" else CATALOGUE[name].meaning)
    _legend(axis, len(systems) > 1)
    return True


def _reliability(axis: Axes, report: Report) -> bool:
    if report.reward is None:
        return False
    curves = {
        "before, on held-out rankings": report.reward.ordering_before.reliability,
        "after, on new answers": report.reward.ordering_after.reliability,
    }
    axis.plot([0.5, 1], [0.5, 1], color=FAINT, linewidth=1, linestyle=":")
    for color, (label, bins) in zip(SERIES, curves.items(), strict=False):
        points = [(row.confidence, row.accuracy) for row in bins if row.n]
        if points:
            axis.plot(*zip(*points, strict=True), color=color, marker="o", markersize=4, label=label)
    axis.set_xlabel("how sure the reward model was")
    axis.set_ylabel("how often it was right")
    axis.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    axis.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    _legend(axis, True)
    return any(curves.values())


def _parting(axis: Axes, report: Report) -> bool:
    rows = report.audit.by_kl if report.audit else []
    if len(rows) < 2:
        return False
    distances = [row.sqrt_kl for row in rows]
    curves = {"reward model": [row.reward for row in rows], "judge": [row.quality for row in rows]}
    for color, (label, values) in zip(SERIES, curves.items(), strict=False):
        axis.plot(distances, values, color=color, marker="o", markersize=4, label=label)
    axis.set_xlabel("square root of an answer's KL from the reference, nats")
    axis.set_ylabel("mean score")
    _legend(axis, True)
    return True


def _lengths(axis: Axes, report: Report) -> bool:
    if report.lengths is None:
        return False
    for system, counts in report.lengths.counts.items():
        label, color = name_of(system), _color(report, system)
        axis.stairs(counts, report.lengths.edges, color=color, label=label, linewidth=1.5)
    axis.set_xlabel("tokens of an answer")
    axis.set_ylabel("answers")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axis, True)
    return True


CHARTS: Sequence[tuple[str, str, Callable[[Axes, Report], bool]]] = (
    (
        "Who wins",
        "How often the first of two is preferred. Right of the dotted line it wins more than half.",
        draw_win_rates,
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


def _whiskers(axis: Axes, points: Sequence[tuple[float, Interval]], color: str, label: str) -> None:
    """Values at their places on the y axis, with their intervals where there are any."""
    if not points:
        return
    heights, values = [y for y, _ in points], [value for _, (value, _, _) in points]
    below = [0 if low is None else max(0, value - low) for _, (value, low, _) in points]
    above = [0 if high is None else max(0, high - value) for _, (value, _, high) in points]
    axis.errorbar(
        values, heights, xerr=[below, above], fmt="o", markersize=4, capsize=2, linewidth=1.2, color=color, label=label
    )


def _legend(axis: Axes, wanted: bool) -> None:
    if wanted and axis.get_legend_handles_labels()[0]:
        axis.legend(
            fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, columnspacing=1, handlelength=1.2
        )


def _color(report: Report, system: str) -> str:
    """The candidate and the baseline keep their colours, the base is faint, and others follow."""
    chosen = {report.baseline: SERIES[1], report.candidate: SERIES[0]}
    others = [name for name in report.systems if name not in chosen and name != "base"]
    chosen = {"base": FAINT, **{name: SERIES[2 + i % 2] for i, name in enumerate(others)}} | chosen
    return chosen[system]
