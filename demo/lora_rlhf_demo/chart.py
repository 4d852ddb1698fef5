"""Curves as small SVG charts. The page's style sets colours and sizes, so they fit light, dark and a phone."""

import math
from collections.abc import Sequence

from lora_rlhf_demo.show import safe_html
from lora_rlhf_demo.watch import Curve, Figure, Sample, StageState

WIDTH, HEIGHT = 320.0, 150.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 8.0, 8.0, 20.0
TICKS = 4


def legend_html(runs: Sequence[str]) -> str:
    """The list of runs, each with its colour."""
    items = (f'<li><i class="run{index}"></i>{safe_html(run)}</li>' for index, run in enumerate(runs))
    return f'<ul class="legend">{"".join(items)}</ul>'


def charts_html(figures: Sequence[Figure], runs: Sequence[str]) -> str:
    """The charts of all figures. `runs`: all runs of the page; a run's position gives its colour."""
    return f'<div class="charts">{"".join(_chart_html(figure, runs) for figure in figures)}</div>'


def states_table(stage_states: Sequence[StageState]) -> str:
    """The state of every stage, as a table; empty without stages."""
    rows = "".join(
        f"<tr><td>{safe_html(run)}</td><td>{safe_html(stage)}</td><td>{safe_html(state)}</td>"
        f"<td>{'' if step is None else f'{step:,}'}</td></tr>"
        for run, stage, state, step in stage_states
    )
    head = "<tr><th>Run</th><th>Stage</th><th>State</th><th>Step</th></tr>"
    return f'<table class="states">{head}{rows}</table>' if rows else ""


def samples_html(samples: Sequence[Sample], has_run_names: bool) -> str:
    """The answers to fixed prompts over time; empty without samples. has_run_names: show the run of each sample."""
    cards = []
    for run, prompt, responses in samples:
        name = f'<span class="who">{safe_html(run)}</span>' if has_run_names else ""
        rows = "".join(
            f'<li><span class="step">{step:,}</span><div class="text" dir="auto">{safe_html(text)}</div></li>'
            for step, text in responses
        )
        question = f'<div class="text asked" dir="auto">{safe_html(prompt)}</div>'
        cards.append(f'<article class="sample">{name}{question}<ol>{rows}</ol></article>')
    return f'<div class="samples">{"".join(cards)}</div>' if cards else ""


def _chart_html(figure: Figure, runs: Sequence[str]) -> str:
    """The chart of one figure: its title, the last value of each curve, and the curves as SVG."""
    plot, curves = figure
    x_values = [x for curve in curves for x, _ in curve.points]
    y_values = [y for curve in curves for _, y in curve.points] + [c.target for c in curves if c.target is not None]
    x_ticks, y_ticks = round_ticks(min(x_values), max(x_values)), round_ticks(min(y_values), max(y_values))
    scales = _Scales(min(x_values), max(x_values), min(y_ticks[0], min(y_values)), max(y_ticks[-1], max(y_values)))
    lines = [_curve_svg(curve, scales, runs.index(curve.run)) for curve in curves]
    last_values = ", ".join(f"{curve.run} {short_number(curve.points[-1][1])}" for curve in curves)
    last_values_html = " ".join(
        f'<span class="run{runs.index(curve.run)}">{short_number(curve.points[-1][1])}</span>' for curve in curves
    )
    description = f"{plot.title}, last: {last_values}"
    return (
        f'<figure class="chart"><figcaption title="{safe_html(plot.meaning)}"><span>{safe_html(plot.title)}</span>'
        f'<span class="now">{last_values_html}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{safe_html(description)}">'
        f"{_grid_svg(scales, x_ticks, y_ticks)}{''.join(lines)}</svg>"
        f'<p class="meaning">{safe_html(plot.meaning)}</p></figure>'
    )


class _Scales:
    """Converts a metric's numbers to coordinates in the picture."""

    def __init__(self, left: float, right: float, low: float, high: float) -> None:
        self.left, self.low = left, low
        self.x_scale = (WIDTH - LEFT - RIGHT) / ((right - left) or 1.0)
        self.y_scale = (HEIGHT - TOP - BOTTOM) / ((high - low) or 1.0)

    def to_x(self, value: float) -> float:
        return LEFT + (value - self.left) * self.x_scale

    def to_y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.low) * self.y_scale


def _grid_svg(scales: _Scales, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
    """A horizontal line and a number for each y tick, and a number for each x tick that is in the picture."""
    rows = "".join(
        f'<line class="grid" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{LEFT - 6:g}" y="{y + 3:.1f}" text-anchor="end">{short_number(tick)}</text>'
        for tick, y in zip(y_ticks, map(scales.to_y, y_ticks), strict=True)
    )
    columns = "".join(
        f'<text class="tick" x="{min(x, WIDTH - RIGHT - 6):.1f}" y="{HEIGHT - 5:g}" text-anchor="middle">'
        f"{short_number(tick)}</text>"
        for tick, x in zip(x_ticks, map(scales.to_x, x_ticks), strict=True)
        if LEFT - 1 <= x <= WIDTH - RIGHT + 1
    )
    return rows + columns


def _curve_svg(curve: Curve, scales: _Scales, colour: int) -> str:
    """One curve and its target line; a curve with a single point is drawn as a dot."""
    line_points = " ".join(f"{scales.to_x(x):.1f},{scales.to_y(y):.1f}" for x, y in curve.points)
    target = ""
    if curve.target is not None:
        y = scales.to_y(curve.target)
        target = f'<line class="target run{colour}" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
    if len(curve.points) == 1:
        x, y = scales.to_x(curve.points[0][0]), scales.to_y(curve.points[0][1])
        return f'{target}<circle class="run{colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'
    return f'{target}<polyline class="run{colour}" points="{line_points}"/>'


def round_ticks(low: float, high: float, max_steps: int = TICKS) -> list[float]:
    """Numbers 1, 2 or 5 times a power of ten apart, from at most `low` to at least `high`.

    There are about `max_steps` of them.
    """
    if high <= low:
        step = 10.0 ** math.floor(math.log10(abs(low) or 1.0))
        low, high = (low - step / 2, high + step / 2) if low else (0.0, 1.0)
    min_step = (high - low) / max_steps
    power = 10.0 ** math.floor(math.log10(min_step))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= min_step * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def short_number(value: float) -> str:
    """A number as text of few characters."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.1e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
