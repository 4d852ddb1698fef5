"""The charts of the HTML report, each an SVG that takes its colours from the page."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lora_rlhf.evaluation.figures import CATALOGUE
from lora_rlhf.evaluation.report_model import Report
from lora_rlhf.evaluation.wording import system_text
from lora_rlhf.render.palette import FAINT, INK, SERIES
from lora_rlhf.render.pictures import svg_element

CHART_WIDTH, HEIGHT = 4.6, 3.0  # inches: with 9-point letters, readable on a phone too
STYLE: Any = {
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
    """A drawn chart: its title, its meaning in plain words, and the picture."""

    title: str
    meaning: str
    svg: str


def draw_charts(report: Report) -> list[Chart]:
    """Draws every chart for which the report has data."""
    charts = []
    for title, meaning, draw_chart in CHART_DRAWERS:
        height = HEIGHT + (0.16 * max(0, len(report.categories) - 6) if draw_chart is _draw_category_chart else 0)
        with rc_context(STYLE):
            figure = Figure(figsize=(CHART_WIDTH, height), layout="constrained")
            if draw_chart(figure.subplots(), report):
                charts.append(Chart(title, meaning, svg_element(figure, title)))
    return charts


def draw_win_rate_chart(axis: Axes, report: Report) -> bool:
    """Draws every pair's win rate with its interval. False if there is none, as for all charts below."""
    best_rates = report.win_rates_best_temperature
    all_series = ((report.win_rates, "at temperature 1"), (best_rates, "each at its best temperature"))
    series_with_data = [(rates, label) for rates, label in all_series if rates]
    pairs = [pair for pair, rate in report.win_rates.items() if rate.rate is not None]
    for number, (rates, label) in enumerate(series_with_data):
        shift = 0.18 * (number - (len(series_with_data) - 1) / 2)
        rows = [(i + shift, rates[pair]) for i, pair in enumerate(pairs) if pair in rates]
        points = [(y, (rate.rate, rate.low, rate.high)) for y, rate in rows if rate.rate is not None]
        _draw_intervals(axis, points, SERIES[number], label)
    axis.axvline(0.5, color=FAINT, linewidth=1, linestyle=":")
    axis.set_yticks(range(len(pairs)), [pair.replace("_vs_", "\nagainst ") for pair in pairs])
    axis.set_ylim(len(pairs) - 0.5, -0.5)
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    axis.set_xlabel("prompts won, ties counted half")
    _draw_legend(axis, len(series_with_data) > 1)
    return bool(pairs)


def _draw_category_chart(axis: Axes, report: Report) -> bool:
    """Draws the mean score, or the win rate, of each category."""
    groups = report.categories
    measured_names = {name for group in groups.values() for name in group.figures}
    figure_name = next((name for name in ("score", "win_rate") if name in measured_names), None)
    systems = list(report.systems) if figure_name == "score" else [report.candidate]
    if figure_name is None or len(groups) < 2:
        return False
    for number, system in enumerate(systems):
        shift = 0.2 * (number - (len(systems) - 1) / 2)
        rows = [(i + shift, group.figures.get(figure_name, {}).get(system)) for i, group in enumerate(groups.values())]
        points = [(y, (row.value, row.low, row.high)) for y, row in rows if row is not None and row.value is not None]
        _draw_intervals(axis, points, _system_color(report, system), system_text(system))
    axis.set_yticks(range(len(groups)), [f"{label} ({group.n})" for label, group in groups.items()])
    axis.set_ylim(len(groups) - 0.5, -0.5)
    axis.set_xlabel("mean score by the judge" if figure_name == "score" else CATALOGUE[figure_name].meaning)
    _draw_legend(axis, len(systems) > 1)
    return True


def _draw_reliability_chart(axis: Axes, report: Report) -> bool:
    """Draws how often the reward model was right, by how sure it was."""
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
    _draw_legend(axis, True)
    return any(curves.values())


def _draw_audit_chart(axis: Axes, report: Report) -> bool:
    """Draws mean reward and mean quality of the candidate's answers, by their distance from the reference."""
    rows = report.audit.by_kl if report.audit else []
    if len(rows) < 2:
        return False
    distances = [row.sqrt_kl for row in rows]
    curves = {"reward model": [row.reward for row in rows], "judge": [row.quality for row in rows]}
    for color, (label, values) in zip(SERIES, curves.items(), strict=False):
        axis.plot(distances, values, color=color, marker="o", markersize=4, label=label)
    axis.set_xlabel("square root of an answer's KL from the reference, nats")
    axis.set_ylabel("mean score")
    _draw_legend(axis, True)
    return True


def _draw_length_chart(axis: Axes, report: Report) -> bool:
    """Draws how many answers of each system have which length."""
    if report.lengths is None:
        return False
    for system, counts in report.lengths.counts.items():
        label, color = system_text(system), _system_color(report, system)
        axis.stairs(counts, report.lengths.edges, color=color, label=label, linewidth=1.5)
    axis.set_xlabel("tokens of an answer")
    axis.set_ylabel("answers")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    _draw_legend(axis, True)
    return True


def _draw_refusal_chart(axis: Axes, report: Report) -> bool:
    """Draws each system's trade-off of over- and under-refusal, and where the system itself stands."""
    if report.refusals is None:
        return False
    for system, curve in report.refusals.curves.items():
        color = _system_color(report, system)
        over, under = [point.over for point in curve.points], [point.under for point in curve.points]
        axis.plot(over, under, color=color, linewidth=1.5, label=system_text(system))
        own = [report.figures.get(name, {}).get(system) for name in ("over_refusal", "under_refusal")]
        ends = [figure.value for figure in own if figure is not None and figure.value is not None]
        if len(ends) == 2:
            axis.plot(*ends, color=color, marker="o", markersize=6, clip_on=False)
    axis.set_xlabel("over-refusal: to be answered, declined")
    axis.set_ylabel("under-refusal")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    axis.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    _draw_legend(axis, True)
    return True


CHART_DRAWERS: Sequence[tuple[str, str, Callable[[Axes, Report], bool]]] = (
    (
        "Who wins",
        "How often the first of two is preferred. Right of the dotted line it wins more than half.",
        draw_win_rate_chart,
    ),
    ("By category", "The same prompts by what they ask for; lines are 95 % intervals.", _draw_category_chart),
    (
        "Can the reward model be trusted",
        "On the dotted line, the reward model is right as often as it is sure. Below it, it is too sure of itself.",
        _draw_reliability_chart,
    ),
    (
        "Where reward and judge part",
        "The candidate's answers by how far they are from the reference. Reward up and judge down is reward hacking.",
        _draw_audit_chart,
    ),
    (
        "What is declined",
        "Points: what each declines by itself. Lines: if prompts were declined from some probability of a refusal on.",
        _draw_refusal_chart,
    ),
    ("How long answers are", "A reward can often be raised by length alone.", _draw_length_chart),
)


def _draw_intervals(axis: Axes, points: Sequence[tuple[float, Interval]], color: str, label: str) -> None:
    """Draws values at their heights, with their intervals if there are any."""
    if not points:
        return
    heights, values = [y for y, _ in points], [value for _, (value, _, _) in points]
    widths_below = [0 if low is None else max(0, value - low) for _, (value, low, _) in points]
    widths_above = [0 if high is None else max(0, high - value) for _, (value, _, high) in points]
    axis.errorbar(
        values,
        heights,
        xerr=[widths_below, widths_above],
        fmt="o",
        markersize=4,
        capsize=2,
        linewidth=1.2,
        color=color,
        label=label,
    )


def _draw_legend(axis: Axes, has_legend: bool) -> None:
    if has_legend and axis.get_legend_handles_labels()[0]:
        axis.legend(
            fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, columnspacing=1, handlelength=1.2
        )


def _system_color(report: Report, system: str) -> str:
    """A system's colour: fixed for candidate and baseline, faint for the base, then the others in order."""
    colors = {report.baseline: SERIES[1], report.candidate: SERIES[0]}
    other_names = [name for name in report.systems if name not in colors and name != "base"]
    colors = {"base": FAINT, **{name: SERIES[2 + i % 2] for i, name in enumerate(other_names)}} | colors
    return colors[system]
