"""What the committed results of the zoo say, and docs/models.md, which is written from them."""

import json
from typing import Any

from zoo import PAGE, RESULT, page, works

from tests.zoo.checkpoints import CHECKPOINTS


def outcomes() -> dict[str, Any]:
    committed: dict[str, Any] = json.loads(RESULT.read_text())["outcomes"]
    return committed


def test_every_architecture_trains_or_is_refused_before_it() -> None:
    steps = {name: outcome["steps"] for name, outcome in outcomes().items()}
    assert steps.keys() == CHECKPOINTS.keys(), "python benchmarks/zoo.py"
    assert len(steps) >= 90
    assert [(name, step) for name in steps for step, text in steps[name].items() if text.startswith("breaks")] == []
    working = {name for name, outcome in outcomes().items() if works(outcome)}
    assert len(working) >= 80
    for name in steps.keys() - working:
        assert steps[name]["plan"].startswith("refused") and steps[name]["sft"].startswith("refused"), name


def test_what_trains_computes_what_plain_transformers_and_peft_compute() -> None:
    for name, outcome in outcomes().items():
        if works(outcome):
            figures = outcome["figures"]
            assert figures["logprob_gap"] < 1e-4 and figures["greedy_rows_plain"] == 4, name
            assert figures["export_gap"] < 1e-3 and figures["adapter_gap"] < 1e-3, name


def test_the_page_is_written_from_the_results() -> None:
    assert page(json.loads(RESULT.read_text())) == PAGE.read_text(), "python benchmarks/zoo.py --docs"
