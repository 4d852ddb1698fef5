"""The page about the plan: its figures are those of the committed results."""

import json
from pathlib import Path

from lora_rlhf.plan.config import PlanConfig
from lora_rlhf.plan.report import show_table

ROOT = Path(__file__).parents[2]
PAGE = " ".join((ROOT / "docs" / "plan.md").read_text().split())
RESULTS = ROOT / "benchmarks" / "results"


def test_the_accuracy_is_the_committed_one() -> None:
    result = json.loads((RESULTS / "plan_accuracy_cpu.json").read_text())
    errors = [stage["error"] for row in result["rows"] for stage in row["stages"].values()]
    within = sum(-0.05 <= error <= 0.10 for error in errors)
    assert f"are between {min(errors):+.1%} and {max(errors):+.1%}" in PAGE
    assert f"{within} of {len(errors)} are within 5 % under and 10 % over" in PAGE
    assert f"{len(result['rows'])} settings" in PAGE
    for row in result["rows"]:
        for stage in row["stages"].values():
            assert abs(stage["predicted"]["peak"] / stage["peak"] - 1 - stage["error"]) < 1e-3


def test_the_table_is_the_committed_one() -> None:
    rows = json.loads((RESULTS / "plan_table.json").read_text())
    assert " ".join(show_table(PlanConfig(table=True), rows).split()) in PAGE
