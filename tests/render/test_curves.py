"""Curves: what is kept of them, their axes, and what is said where one leaves its target."""

import xml.etree.ElementTree as ET

import pytest

from lora_rlhf.render.curves import (
    Curve,
    Figure,
    Look,
    curves_html,
    off_target,
    picture,
    round_ticks,
    smooth,
    thin_points,
)


def figure(*curves: Curve) -> Figure:
    return Figure("rollout/kl", "KL <b>", "nats", curves)


def test_thinning_keeps_every_spike_and_the_ends() -> None:
    points = [(float(x), 0.0) for x in range(10_000)]
    points[4321], points[0], points[-1] = (4321.0, 9.0), (0.0, 1.0), (9999.0, -1.0)
    kept = thin_points(points, 100)
    assert len(kept) <= 100
    assert {points[4321], points[0], points[-1]} <= set(kept)
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)
    assert thin_points(points[:5], 100) == points[:5]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.5, 1.0]),
        (0.0, 40.0, [0, 10, 20, 30, 40]),
        (-1.2, 3.1, [-2, 0, 2, 4]),
        (0.0, 0.0, [0, 0.5, 1.0]),
    ],
)
def test_ticks_are_round_and_span_the_values(low: float, high: float, expected: list[float]) -> None:
    assert round_ticks(low, high) == pytest.approx(expected)


def test_smoothing_takes_the_mean_around_each_value_and_keeps_the_ends() -> None:
    points = [(float(x), float(y)) for x, y in enumerate([1, 5, 0, 9, 4, 2])]
    assert smooth(points, 0.0) == points
    expected = [1, 2, 14 / 3, 13 / 3, 5, 2]
    assert [y for _, y in smooth(points, 0.34)] == pytest.approx(expected)


def test_a_curve_at_five_times_its_target_is_marked_with_both_numbers() -> None:
    points = [(float(step), 6.0) for step in range(20)] + [(float(step), 30.0) for step in range(20, 30)]
    high, usual = Curve("a", points, 6.0), Curve("a", points[:20], 6.0)
    assert off_target(high) == "mean of the last 10: 30, 5.0 times the target of 6" and off_target(usual) == ""
    assert 'class="chart off"' in curves_html([figure(high)], ["a"]) and "5.0 times" in curves_html(
        [figure(high)], ["a"]
    )
    assert "off" not in curves_html([figure(usual)], ["a"])
    assert off_target(Curve("a", points)) == "" and off_target(Curve("a", points, 0.0)) == ""


def test_a_log_scale_is_drawn_where_all_values_are_above_0() -> None:
    def heights(points: list[tuple[float, float]], is_log: bool) -> list[float]:
        html = curves_html([figure(Curve("a", points))], ["a"], Look(is_log=is_log))
        svg = ET.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
        (line,) = svg.iter("polyline")
        return [float(pair.split(",")[1]) for pair in line.attrib["points"].split()]

    points = [(1.0, 1.0), (2.0, 10.0), (3.0, 1000.0)]
    low, middle, high = heights(points, True)
    assert (low - middle) * 2 == pytest.approx(middle - high, abs=0.2)
    low, middle, high = heights(points, False)
    assert (low - middle) * 100 < middle - high
    assert "not on a log scale" in curves_html([figure(Curve("a", [(1.0, 0.0)]))], ["a"], Look(is_log=True))


def test_a_picture_is_a_whole_svg_of_texts() -> None:
    root = ET.fromstring(picture("ppo <in> runs", [figure(Curve("a", [(1.0, 2.0), (2.0, 40.0)], 4.0))] * 4))
    texts = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("KL <b>") == 4 and any("5.2 times the target" in text for text in texts)
    assert root.attrib["aria-label"] == "ppo <in> runs"
