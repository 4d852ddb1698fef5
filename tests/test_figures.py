"""The figures of the pages are those of the committed results; benchmarks/figures.py writes them."""

import json
import re
from typing import Any

import pytest
from figures import FIGURE, PAGES, ROOT, figures, updated

TEXTS = figures()


def committed(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_writing_the_figures_again_changes_nothing(path: Any) -> None:
    page = path.read_text()
    assert updated(page, TEXTS) == page, "python benchmarks/figures.py"
    assert re.search(r"^<!-- figure \w+ -->.", page, re.MULTILINE) is None, "Markdown takes such a line for HTML"
    assert page.count("<!-- figure") == page.count("<!-- /figure -->") == len(FIGURE.findall(page))


def test_a_changed_figure_is_written_within_a_line_and_in_a_table() -> None:
    page = "It took <!-- figure s -->5.0<!-- /figure --> s.\n\n<!-- figure t -->\n| 5 |\n<!-- /figure -->\n"
    changed = "It took <!-- figure s -->6.0<!-- /figure --> s.\n\n<!-- figure t -->\n| 6 |\n| 7 |\n<!-- /figure -->\n"
    assert updated(page, {"s": "6.0", "t": "| 6 |\n| 7 |"}) == changed


def test_every_figure_stands_on_a_page() -> None:
    assert {name for path in PAGES for name, _ in FIGURE.findall(path.read_text())} == TEXTS.keys()


def test_the_results_are_what_the_sentences_around_the_figures_say() -> None:
    load = committed("demo")["load"]
    assert load["answered"] == load["prompts"]
    for name in ("llama-4x256", "tinyworld"):
        for row in committed(f"mixed_roles_{name}")["measured"].values():
            same, total = row["same_responses"].split(" of ")
            assert same == total
    for row in committed("plan_accuracy_cpu")["rows"]:
        for stage in row["stages"].values():
            assert abs(stage["predicted"]["peak"] / stage["peak"] - 1 - stage["error"]) < 1e-3
    for name in ("kill", "kill_dpo"):
        kill = committed(name)
        assert kill["all_identical"] and kill["unreadable"] == 0
