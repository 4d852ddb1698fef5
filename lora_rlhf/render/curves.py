"""Curves as SVG, drawn alike for the app, the HTML report and the picture of a stage. curves.css sets their colours."""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from lora_rlhf.render.palette import DARK, LIGHT
from lora_rlhf.system.shown_text import for_html

HERE = Path(__file__).parent
STYLE = (HERE / "curves.css").read_text(encoding="utf-8")
SCRIPT = (HERE / "curves.js").read_text(encoding="utf-8")  # of a page: the value under the pointer, and by keyboard
WIDTH, HEIGHT = 320.0, 150.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 8.0, 8.0, 20.0
TICKS = 4
MOST_POINTS = 400  # of a curve as it is drawn
AT_END = 10  # steps whose mean is compared with the target: one step alone may be chance
OFF_TARGET = 2.0  # times its target: more than a controller on its way to the target shows for long
COLUMNS, HEAD, GAP = 3, 34.0, 16.0  # of a picture of several charts

Points = list[tuple[float, float]]


class Curve(NamedTuple):
    """A line in a figure. target: the value that it is steered to. intervals: (x, low, high) of its points."""

    name: str
    points: Points
    target: float | None = None
    intervals: Sequence[tuple[float, float, float]] = ()


class Figure(NamedTuple):
    """A chart before it is drawn. `key` tells it from others. x_name: what its x axis counts; steps can be smoothed."""

    key: str
    title: str
    meaning: str
    curves: Sequence[Curve]
    x_name: str = "step"


class Look(NamedTuple):
    """How figures are drawn. smoothing: the share of a curve that each of its values is the mean of. is_log: y axis."""

    smoothing: float = 0.0
    is_log: bool = False


def curves_html(figures: Iterable[Figure], names: Sequence[str], look: Look | None = None) -> str:
    """The charts of all figures. names: of all curves of the page; a name's place gives its colour."""
    drawn = "".join(_chart_html(figure, names, look or Look()) for figure in figures)
    return f'<div class="curves">{drawn}</div>'


def off_target(curve: Curve) -> str:
    """What to say of a curve that ended far above its target; empty for others."""
    if curve.target is None or curve.target <= 0 or not curve.points:
        return ""
    values = [y for _, y in curve.points[-AT_END:]]
    mean = sum(values) / len(values)
    if mean < OFF_TARGET * curve.target:
        return ""
    when = "now" if len(values) == 1 else f"mean of the last {len(values)}"
    return f"{when}: {short_number(mean)}, {mean / curve.target:.1f} times the target of {short_number(curve.target)}"


def picture(title: str, figures: Sequence[Figure]) -> str:
    """An SVG file of all figures, for light and dark pages. Each figure has one curve."""
    columns = min(COLUMNS, len(figures))
    rows = math.ceil(len(figures) / columns)
    cell_width, cell_height = WIDTH + GAP, HEIGHT + HEAD + GAP
    width, height = columns * cell_width + GAP, rows * cell_height + GAP
    cells = []
    for index, figure in enumerate(figures):
        x, y = GAP + index % columns * cell_width, GAP + index // columns * cell_height
        (curve,) = figure.curves
        mark = off_target(curve)
        last = f'<text class="last" x="{WIDTH:g}" y="12" text-anchor="end">{_last_text(figure, curve)}</text>'
        about = f'<text class="{"mark" if mark else "about"}" x="0" y="27">{for_html(mark or figure.meaning)}</text>'
        cells.append(
            f'<g transform="translate({x:g} {y:g})"><text class="title" x="0" y="12">{for_html(figure.title)}</text>'
            f'{last}{about}<g class="run0" transform="translate(0 {HEAD:g})">{_drawing(figure, [0], Look())}</g></g>'
        )
    light, dark = ("".join(f"--{name}: {colour}; " for name, colour in shades.items()) for shades in (LIGHT, DARK))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="picture" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" role="img" aria-label="{for_html(title)}"><style>'
        f"svg {{ {light}--run0: var(--one); }}\n@media (prefers-color-scheme: dark) {{ svg {{ {dark}}} }}\n{STYLE}"
        f'</style><rect width="100%" height="100%" fill="var(--paper)"/>{"".join(cells)}</svg>\n'
    )


def _chart_html(figure: Figure, names: Sequence[str], look: Look) -> str:
    """One chart of a page: title, last values, curves, what it means, and a mark where it left its target."""
    places = [names.index(curve.name) for curve in figure.curves]
    last = [_last_text(figure, curve) for curve in figure.curves]
    last_html = " ".join(f'<span class="run{place}">{text}</span>' for place, text in zip(places, last, strict=True))
    marks = [(curve.name, mark) for curve in figure.curves if (mark := off_target(curve))]
    marks_html = "".join(
        f'<p class="mark">{for_html(f"{name}: {mark}" if len(figure.curves) > 1 else mark)}</p>' for name, mark in marks
    )
    if look.is_log and figure.x_name == "step" and not _can_be_log(figure):
        marks_html += '<p class="meaning">has values that are not above 0: not on a log scale</p>'
    return (
        f'<figure class="chart{" off" if marks else ""}" data-key="{for_html(figure.key)}"><figcaption>'
        f'<span>{for_html(figure.title)}</span><span class="now">{last_html}</span><output class="at" hidden></output>'
        f"</figcaption>{_interactive_svg(figure, places, look)}{marks_html}"
        f'<p class="meaning">{for_html(figure.meaning)}</p></figure>'
    )


def _interactive_svg(figure: Figure, places: Sequence[int], look: Look) -> str:
    """The curves with the numbers that curves.js reads out: for assistive software a slider over the steps."""
    scales = _scales(figure, look)
    data = [
        {"place": place, "name": curve.name, "points": [[x, _rounded(y)] for x, y in thin_points(curve.points)]}
        for place, curve in zip(places, figure.curves, strict=True)
    ]
    frame = {"x": [scales.left, scales.x_scale], "y": [scales.low, scales.y_scale], "log": scales.is_log}
    frame |= {"box": [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM], "unit": figure.x_name, "curves": data}
    x_values = [x for curve in figure.curves for x, _ in curve.points]
    last = ", ".join(f"{curve.name} {short_number(curve.points[-1][1])}" for curve in figure.curves)
    said = {
        "aria-label": figure.title,
        "aria-valuemin": f"{min(x_values):g}",
        "aria-valuemax": f"{max(x_values):g}",
        "aria-valuenow": f"{max(x_values):g}",
        "aria-valuetext": f"last: {last}",
        "data-frame": json.dumps(frame),
    }
    attributes = " ".join(f'{name}="{for_html(value)}"' for name, value in said.items())
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" tabindex="0" role="slider" {attributes}>'
        f'{_drawing(figure, places, look)}<g class="cursor"></g></svg>'
    )


def _last_text(figure: Figure, curve: Curve) -> str:
    """The last value of a curve; a distribution has none."""
    if figure.x_name == "score":
        return ""
    return short_number(curve.points[-1][1])


def _drawing(figure: Figure, places: Sequence[int], look: Look) -> str:
    """Grid and curves of a figure as SVG elements."""
    scales = _scales(figure, look)
    curves = (
        _curve_svg(figure, curve, scales, place, look) for curve, place in zip(figure.curves, places, strict=True)
    )
    return f"{_grid_svg(scales)}{''.join(curves)}"


class _Scales:
    """Converts a metric's numbers to coordinates in the picture."""

    def __init__(self, x_values: Sequence[float], y_values: Sequence[float], is_log: bool) -> None:
        self.is_log = is_log
        to_axis: Callable[[float], float] = math.log10 if is_log else float
        heights = [to_axis(y) for y in y_values]
        self.x_ticks = round_ticks(min(x_values), max(x_values))
        self.y_ticks = _log_ticks(min(heights), max(heights)) if is_log else round_ticks(min(heights), max(heights))
        self.left, right = min(x_values), max(x_values)
        self.low, high = (
            min(to_axis(self.y_ticks[0]), min(heights)),
            max(to_axis(self.y_ticks[-1]), max(heights)),
        )
        self.x_scale = (WIDTH - LEFT - RIGHT) / ((right - self.left) or 1.0)
        self.y_scale = (HEIGHT - TOP - BOTTOM) / ((high - self.low) or 1.0)

    def to_x(self, value: float) -> float:
        return LEFT + (value - self.left) * self.x_scale

    def to_y(self, value: float) -> float:
        return HEIGHT - BOTTOM - ((math.log10(value) if self.is_log else value) - self.low) * self.y_scale


def _scales(figure: Figure, look: Look) -> _Scales:
    x_values = [x for curve in figure.curves for x, _ in curve.points]
    return _Scales(x_values, list(_heights(figure)), look.is_log and figure.x_name == "step" and _can_be_log(figure))


def _heights(figure: Figure) -> Iterable[float]:
    """All that the y axis must hold."""
    for curve in figure.curves:
        yield from (y for _, y in curve.points)
        yield from (end for _, *ends in curve.intervals for end in ends)
        if curve.target is not None:
            yield curve.target


def _can_be_log(figure: Figure) -> bool:
    return all(height > 0 for height in _heights(figure))


def _grid_svg(scales: _Scales) -> str:
    """A horizontal line and a number for each y tick, and a number for each x tick that is in the picture."""
    rows = "".join(
        f'<line class="grid" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{LEFT - 6:g}" y="{y + 3:.1f}" text-anchor="end">{short_number(tick)}</text>'
        for tick, y in zip(scales.y_ticks, map(scales.to_y, scales.y_ticks), strict=True)
    )
    columns = "".join(
        f'<text class="tick" x="{min(x, WIDTH - RIGHT - 6):.1f}" y="{HEIGHT - 5:g}" text-anchor="middle">'
        f"{short_number(tick)}</text>"
        for tick, x in zip(scales.x_ticks, map(scales.to_x, scales.x_ticks), strict=True)
        if LEFT - 1 <= x <= WIDTH - RIGHT + 1
    )
    return rows + columns


def _curve_svg(figure: Figure, curve: Curve, scales: _Scales, place: int, look: Look) -> str:
    """One curve, its target line and its intervals; a curve with a single point is drawn as a dot."""
    parts = []
    if curve.target is not None:
        y = scales.to_y(curve.target)
        parts.append(
            f'<line class="target run{place}" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
    for at, low, high in curve.intervals:
        x, ends = scales.to_x(at), f'y1="{scales.to_y(low):.1f}" y2="{scales.to_y(high):.1f}"'
        parts.append(f'<line class="interval run{place}" x1="{x:.1f}" x2="{x:.1f}" {ends}/>')
    is_smoothed = look.smoothing > 0 and figure.x_name == "step" and len(curve.points) > 2
    lines = [("", curve.points)]
    if is_smoothed:
        lines = [(" raw", curve.points), ("", smooth(curve.points, look.smoothing))]
    for kind, points in lines:
        shown = [(scales.to_x(x), scales.to_y(y)) for x, y in thin_points(points)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in shown)
        parts.append(f'<polyline class="run{place}{kind}" points="{line}"/>')
        if len(shown) == 1 or curve.intervals:
            parts += [f'<circle class="run{place}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in shown]
    return "".join(parts)


def smooth(points: Points, share: float) -> Points:
    """Each value as the mean of a window around it, of that share of the curve; the window is shorter at both ends."""
    reach = round(share * len(points) / 2)
    sums = list(itertools.accumulate((y for _, y in points), initial=0.0))
    smoothed = []
    for i, (x, _) in enumerate(points):
        near = min(reach, i, len(points) - 1 - i)
        smoothed.append((x, (sums[i + near + 1] - sums[i - near]) / (2 * near + 1)))
    return smoothed


def thin_points(points: Points, max_points: int = MOST_POINTS) -> Points:
    """At most `max_points` points: the lowest and the highest of equal parts of the curve, so that no spike is lost."""
    if len(points) <= max_points:
        return list(points)
    extremes = []
    num_parts = max_points // 2
    for number in range(num_parts):
        part = points[len(points) * number // num_parts : len(points) * (number + 1) // num_parts]
        extremes += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return extremes


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


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten around the logarithms `low` to `high`; where these are close to each other, steps between too."""
    first, last = math.floor(low), math.ceil(high)
    if last - first > TICKS:
        step = math.ceil((last - first) / TICKS)
        return [10.0**power for power in range(first, last + step, step)]
    ticks = [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5)]
    inside = [tick for tick in ticks if low - 0.31 <= math.log10(tick) <= high + 0.31]
    return inside if len(inside) <= 2 * TICKS else [10.0**power for power in range(first, last + 1)]


def short_number(value: float) -> str:
    """A number as text of few characters."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.1e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _rounded(value: float) -> float:
    """Five digits of it: as many as a person reads off a chart."""
    return float(f"{value:.5g}")
