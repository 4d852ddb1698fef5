"""Two reports side by side: what moved beyond its interval, which way is better, and what does not compare."""

from dataclasses import replace
from typing import Any

import pytest

from lora_rlhf.evaluation.compare import compare_reports, require_comparable
from lora_rlhf.evaluation.report_model import Comparison
from lora_rlhf.system.errors import UserError
from tests.support.reports import a_report, figure, report_of


def moved(name: str, before: float, after: float, half: float = 0.02) -> list[Any]:
    earlier, later = a_report(), a_report()
    earlier["figures"][name]["policy"] = figure(before, half)
    later["figures"][name]["policy"] = figure(after, half)
    comparison = compare_reports(report_of(earlier), report_of(later), "x")
    return [(row.figure, row.system, row.verdict) for row in comparison.moved]


def test_a_figure_moves_where_the_intervals_do_not_touch() -> None:
    assert moved("score", 0.5, 0.55) == [("score", "policy", "better")]
    assert moved("score", 0.5, 0.45) == [("score", "policy", "worse")]
    assert moved("toxicity", 0.5, 0.55) == [("toxicity", "policy", "worse")]
    assert moved("length", 0.5, 0.55) == [("length", "policy", "higher")]
    assert moved("score", 0.5, 0.539) == []


def test_the_candidates_are_compared_whatever_their_names() -> None:
    earlier, later = a_report(), a_report()
    later["systems"]["new:policy"] = later["systems"]["policy"]
    later["candidate"] = "new:policy"
    later["figures"] = {"score": {"new:policy": figure(0.9), "sft": figure(0.3)}}
    before = report_of(earlier)
    comparison = compare_reports(before, report_of(later), "x")
    assert comparison.compared == 2 and [row.system for row in comparison.moved] == ["new:policy"]
    assert comparison.moved[0].before == before.figures["score"]["policy"]


def test_figures_without_an_interval_are_not_compared() -> None:
    earlier, later = a_report(), a_report()
    later["figures"] = {"score": {"policy": figure(0.9, None)}}
    comparison = compare_reports(report_of(earlier), report_of(later), "x")
    assert comparison == Comparison(with_="x", compared=0, moved=[])


@pytest.mark.parametrize("name", ["prompts", "probes"])
def test_other_sets_and_other_judges_do_not_compare(name: str) -> None:
    earlier = report_of(a_report())
    require_comparable(earlier, earlier.sets, "gold", "old.json")
    sets = replace(earlier.sets, **{name: replace(getattr(earlier.sets, name), content_hash="f" * 64)})
    with pytest.raises(
        UserError, match=rf"old\.json: not comparable: {name} \d{{16}} then and f{{16}} now\. Evaluate both"
    ):
        require_comparable(earlier, sets, "gold", "old.json")
    with pytest.raises(UserError, match="judge gold then and endpoint now"):
        require_comparable(earlier, earlier.sets, "endpoint", "old.json")
    with pytest.raises(UserError, match=r"probes .* then and none now"):
        require_comparable(earlier, replace(earlier.sets, probes=None), "gold", "old.json")
