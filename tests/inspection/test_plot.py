"""The picture of a report, as matplotlib lays it out: nothing hides anything, and no panel is blank."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lora_rlhf.inspection import plot
from lora_rlhf.inspection.check import check_data
from lora_rlhf.inspection.config import CheckConfig
from lora_rlhf.inspection.plot import axis_marks, plot_report

DEMONSTRATIONS = [{"prompt": f"Question {n}?", "completion": "word " * (n + 1)} for n in range(40)]


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """drawn(rows, settings) -> the three panels of the picture of a file with these rows."""

    def draw(rows: list[Any], **settings: Any) -> list[Any]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        figures: list[Figure] = []
        monkeypatch.setattr(plot, "save_png", lambda figure, _: figures.append(figure))
        plot_report(check_data(CheckConfig(files=(str(path),), **settings)), tmp_path / "x.png")
        FigureCanvasAgg(figures[0]).draw()
        return figures[0].axes

    return draw


def limits(axis: Any) -> list[Any]:
    return [line for line in axis.lines if "limit" in line.get_label()]


def gaps(line: Any) -> set[int]:
    """Where a line is not drawn, in points from its beginning, over one period of its dashes."""
    offset, (on, off) = line._unscaled_dash_pattern
    return {(place - offset) % (on + off) for place in range(on, on + off)}


def test_equal_limits_are_both_seen(drawn: Any) -> None:
    axis = drawn(DEMONSTRATIONS, model="tinyworld", max_prompt_tokens=32, max_response_tokens=32)[0]
    one, other = limits(axis)
    assert one.get_xdata()[0] == other.get_xdata()[0] == 32
    assert one.get_color() != other.get_color()
    assert gaps(one) and gaps(one).isdisjoint(gaps(other))
    assert [line.get_label() for line in (one, other)] == ["prompt limit 32", "response limit 32"]


def test_the_legend_stands_above_the_bars_and_below_the_name(drawn: Any) -> None:
    axis = drawn(DEMONSTRATIONS, model="tinyworld")[0]
    legend, bars = axis.get_legend().get_window_extent(), axis.get_window_extent()
    assert bars.y1 <= legend.y0
    assert legend.y1 <= axis._left_title.get_window_extent().y0 + 1


@pytest.mark.parametrize("rows", [DEMONSTRATIONS, DEMONSTRATIONS[30:31], [{"prompt": "a"}]])
def test_the_axis_of_lengths_has_several_labels(drawn: Any, rows: list[Any]) -> None:
    axis = drawn(rows)[0]
    low, high = axis.get_xlim()
    labels = [tick.get_text() for tick in axis.get_xticklabels()]
    assert len([tick for tick in axis.get_xticks() if low <= tick <= high]) >= 2 and all(labels)


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (1, 1000, [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]),
        (15.2, 280, [20, 50, 100, 200]),
        (27.1, 31.9, [28, 29, 30, 31]),
        (34.8, 47.9, [35, 38, 41, 44, 47]),
        (0.97, 2.1, [1, 2]),
    ],
)
def test_round_numbers(low: float, high: float, marks: list[int]) -> None:
    assert axis_marks(low, high) == marks


def test_a_panel_without_its_figure_says_so(drawn: Any) -> None:
    lengths, responses, used = drawn(DEMONSTRATIONS)
    assert [text.get_text() for text in responses.texts] == ["no rankings"]
    assert [text.get_text() for text in lengths.texts] == []
    lengths, responses, used = drawn(["no object"])
    assert [text.get_text() for text in lengths.texts] == ["no row is used"]
    assert used.has_data()
