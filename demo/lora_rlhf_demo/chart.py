"""Curves as small SVG charts. The page's style sets colours and sizes, so they fit light, dark and a phone."""

import math
from collections.abc import Sequence

from lora_rlhf_demo.show import safe
from lora_rlhf_demo.watch import Curve, Figure, Sample, StageState

WIDTH, HEIGHT = 320.0, 150.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 8.0, 8.0, 20.0
TICKS = 4


def legend(runs: Sequence[str]) -> str:
    """The colour of each run."""
    items = (f'<li><i class="run{index}"></i>{safe(run)}</li>' for index, run in enumerate(runs))
    return f'<ul class="legend">{"".join(items)}</ul>'


def charts(figures: Sequence[Figure], runs: Sequence[str]) -> str:
    """All figures; `runs` give the colours."""
    return f'<div class="charts">{"".join(_chart(figure, runs) for figure in figures)}</div>'


def states(states: Sequence[StageState]) -> str:
    """The state of every stage, as a table."""
    rows = "".join(
        f"<tr><td>{safe(run)}</td><td>{safe(stage)}</td><td>{safe(state)}</td>"
        f"<td>{'' if step is None else f'{step:,}'}</td></tr>"
        for run, stage, state, step in states
    )
    head = "<tr><th>Run</th><th>Stage</th><th>State</th><th>Step</th></tr>"
    return f'<table class="states">{head}{rows}</table>' if rows else ""


def samples(samples: Sequence[Sample], with_names: bool) -> str:
    """The answers to fixed prompts over time. with_names: show which run each is from."""
    cards = []
    for run, prompt, responses in samples:
        name = f'<span class="who">{safe(run)}</span>' if with_names else ""
        rows = "".join(
            f'<li><span class="step">{step:,}</span><div class="text" dir="auto">{safe(text)}</div></li>'
            for step, text in responses
        )
        question = f'<div class="text asked" dir="auto">{safe(prompt)}</div>'
        cards.append(f'<article class="sample">{name}{question}<ol>{rows}</ol></article>')
    return f'<div class="samples">{"".join(cards)}</div>' if cards else ""


def _chart(figure: Figure, runs: Sequence[str]) -> str:
    plot, curves = figure
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points] + [c.target for c in curves if c.target is not None]
    across, up = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    frame = _Frame(min(xs), max(xs), min(up[0], min(ys)), max(up[-1], max(ys)))
    lines = [_curve(curve, frame, runs.index(curve.run)) for curve in curves]
    last = ", ".join(f"{curve.run} {number(curve.points[-1][1])}" for curve in curves)
    now = " ".join(f'<span class="run{runs.index(curve.run)}">{number(curve.points[-1][1])}</span>' for curve in curves)
    description = f"{plot.title}, last: {last}"
    return (
        f'<figure class="chart"><figcaption title="{safe(plot.meaning)}"><span>{safe(plot.title)}</span>'
        f'<span class="now">{now}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{safe(description)}">'
        f"{_grid(frame, across, up)}{''.join(lines)}</svg>"
        f'<p class="meaning">{safe(plot.meaning)}</p></figure>'
    )


class _Frame:
    """The scales of a chart: from a metric's numbers to coordinates in the picture."""

    def __init__(self, left: float, right: float, low: float, high: float) -> None:
        self.left, self.low = left, low
        self.across = (WIDTH - LEFT - RIGHT) / ((right - left) or 1.0)
        self.up = (HEIGHT - TOP - BOTTOM) / ((high - low) or 1.0)

    def x(self, value: float) -> float:
        return LEFT + (value - self.left) * self.across

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.low) * self.up


def _grid(frame: _Frame, across: Sequence[float], up: Sequence[float]) -> str:
    rows = "".join(
        f'<line class="grid" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{frame.y(tick):.1f}" y2="{frame.y(tick):.1f}"/>'
        f'<text class="tick" x="{LEFT - 6:g}" y="{frame.y(tick) + 3:.1f}" text-anchor="end">{number(tick)}</text>'
        for tick in up
    )
    columns = "".join(
        f'<text class="tick" x="{min(frame.x(tick), WIDTH - RIGHT - 6):.1f}" y="{HEIGHT - 5:g}" text-anchor="middle">'
        f"{number(tick)}</text>"
        for tick in across
        if LEFT - 1 <= frame.x(tick) <= WIDTH - RIGHT + 1
    )
    return rows + columns


def _curve(curve: Curve, frame: _Frame, colour: int) -> str:
    line = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in curve.points)
    target = ""
    if curve.target is not None:
        y = frame.y(curve.target)
        target = f'<line class="target run{colour}" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
    if len(curve.points) == 1:
        x, y = frame.x(curve.points[0][0]), frame.y(curve.points[0][1])
        return f'{target}<circle class="run{colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'
    return f'{target}<polyline class="run{colour}" points="{line}"/>'


def ticks(low: float, high: float, most: int = TICKS) -> list[float]:
    """Round numbers 1, 2 or 5 times a power of ten apart, from at most `low` to at least `high`."""
    if high <= low:
        step = 10.0 ** math.floor(math.log10(abs(low) or 1.0))
        low, high = (low - step / 2, high + step / 2) if low else (0.0, 1.0)
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def number(value: float) -> str:
    """A number in few characters."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.1e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
