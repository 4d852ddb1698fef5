"""The README: its commands parse, its links lead somewhere, and its figures are those of the committed results."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest

from lora_rlhf.cli import COMMANDS, parse

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks" / "results" / "quality.json"
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
LINES = [line for page in PAGES.values() for line in page.splitlines()]
COMMAND_LINES = [line.split("#")[0].strip() for line in LINES if line.startswith("lora-rlhf ")]


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_command_parses(line: str) -> None:
    words = shlex.split(line)[1:]
    name = next(name for name in COMMANDS if words[: len(name.split())] == name.split())
    config = parse(name, words[len(name.split()) :])
    given = {word.removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}
    assert given <= {field.name for field in dataclasses.fields(config)}


def test_flags_in_the_text_exist() -> None:
    known = {field.name for command in COMMANDS.values() for field in dataclasses.fields(command.kind)}
    plain = [re.sub(r"```.*?```", "", page, flags=re.DOTALL) for page in PAGES.values()]
    spans = [span for page in plain for span in re.findall(r"`([^`]+)`", page)]
    ours = [span for span in spans if not span.startswith(("python ", "hf ", "accelerate ", "vllm ", "ollama "))]
    flags = {flag.replace("-", "_") for span in ours for flag in re.findall(r"--([a-z_-]+)", span)}
    assert len(flags) > 20
    assert flags - known <= {"help", "config", "print_config"}


def test_the_quickstarts_cost_is_the_committed_one() -> None:
    cost = json.loads((RESULTS.parent / "quickstart.json").read_text())
    assert f"{cost['wall_seconds'] / 60:.1f} minutes and {cost['peak_rss_gib']:.1f} GiB" in README


def test_the_speed_of_the_data_check_is_the_committed_one() -> None:
    check = json.loads((RESULTS.parent / "data_check.json").read_text())["check"]
    told = f"{check['mb_per_s']:.0f} MB of JSONL a second in {check['peak_mb']} MB of memory"
    assert told in " ".join(README.split())


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    folder = ROOT if name == "README.md" else ROOT / "docs"
    local = [target for target in re.findall(r"\]\(([^)#]+)\)", PAGES[name]) if not target.startswith("http")]
    assert local
    assert [target for target in local if not (folder / target).exists()] == []


def test_figures_are_those_of_the_committed_results() -> None:
    results = json.loads(RESULTS.read_text())
    rows = re.findall(r"^\| (policy vs sft|policy vs base|sft vs base) \| ([^|]+) \| ([^|]+) \|$", README, re.MULTILINE)
    assert len(rows) == 3
    for name, *cells in rows:
        for key, cell in zip(("scores", "scores_best_temperature"), cells, strict=True):
            rate = results["pooled"][key][name.replace(" ", "_")]
            assert cell.strip() == f"{rate['rate']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})"


def test_the_page_on_evaluation_says_what_was_measured() -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text()
    found = json.loads((RESULTS.parent / "evaluation.json").read_text())
    assert f"answer {found['prompts']} prompts and {found['probes']} probes" in page
    assert f"{found['wall_seconds'] / 60:.1f} minutes and\n{found['peak_rss_gib']:.2f} GiB" in page
