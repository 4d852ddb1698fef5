"""The README: its commands parse, its links lead somewhere, and its figures are those of the committed results."""

import dataclasses
import json
import re
import shlex
import statistics
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.cli.commands import COMMANDS
from lora_rlhf.cli.main import parse

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
LINES = [line for page in PAGES.values() for line in page.splitlines()]
COMMAND_LINES = [line.split("#")[0].strip() for line in LINES if line.startswith("lora-rlhf ")]


def committed(name: str) -> dict[str, Any]:
    """A result as it is committed."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


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
    cost = committed("quickstart")
    assert f"{cost['wall_seconds'] / 60:.1f} minutes and {cost['peak_rss_gib']:.1f} GiB" in README
    now = cost["win_rate_best_temperature"]["policy_vs_sft"]
    assert f"has\n{now['rate']:.1%} ({now['low']:.1%} to {now['high']:.1%}) there" in README


def test_the_speed_of_the_data_check_is_the_committed_one() -> None:
    check = committed("data_check")["check"]
    told = f"{check['mb_per_s']:.0f} MB of JSONL a second in {check['peak_mb']} MB of memory"
    assert told in " ".join(README.split())


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    folder = ROOT if name == "README.md" else ROOT / "docs"
    local = [target for target in re.findall(r"\]\(([^)#]+)\)", PAGES[name]) if not target.startswith("http")]
    assert local
    assert [target for target in local if not (folder / target).exists()] == []


def test_figures_are_those_of_the_committed_results() -> None:
    results = committed("quality")
    rows = re.findall(r"^\| (policy vs sft|policy vs base|sft vs base) \| ([^|]+) \| ([^|]+) \|$", README, re.MULTILINE)
    assert len(rows) == 3
    for name, *cells in rows:
        for key, cell in zip(("scores", "scores_best_temperature"), cells, strict=True):
            rate = results["pooled"][key][name.replace(" ", "_")]
            assert cell.strip() == f"{rate['rate']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})"


def test_the_page_on_evaluation_says_what_was_measured() -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text()
    found = committed("evaluation")
    assert f"answer {found['prompts']} prompts and {found['probes']} probes" in page
    assert f"{found['wall_seconds'] / 60:.1f} minutes and\n{found['peak_rss_gib']:.2f} GiB" in page


def test_the_page_on_the_app_says_what_was_measured() -> None:
    page = " ".join((ROOT / "docs" / "demo.md").read_text().split())
    found = committed("demo")
    start = {name: statistics.median(values) for name, values in found["start"].items()}
    equal, natural, load = (found[name] for name in ("columns_of_equal_length", "columns_as_they_end", "load"))
    assert f"page is there {start['first_page_s']:.1f} s after the command" in page
    assert f"ready to be asked after {start['columns_s']:.1f} s" in page
    assert f"first words {start['first_tokens_s']:.2f} s after Enter" in page
    assert f"{equal['tokens']} tokens, drawn together, are there {equal['times_as_fast']:.1f} times as fast" in page
    assert f"there it is {natural['times_as_fast']:.1f} times, of {natural['most_possible']:.1f} that" in page
    assert load["answered"] == load["prompts"] and f"got all {load['answered']} answers" in page
    assert f"{load['resident_mib'][0]:.0f} MiB of memory after the first twenty" in page
    assert f"and {load['resident_mib'][-1]:.0f} MiB at the end" in page


def test_the_page_on_exports_says_what_was_measured() -> None:
    page = (ROOT / "docs" / "export.md").read_text()
    for name, row in (("export", "`lora-rlhf export`"), ("peft", "PEFT's `merge_and_unload`, `save_pretrained`")):
        found = committed("export")[name]
        size = f"{found['layers']} | {found['gb']:.1f} | {found['peak_rss_gib']:.2f} GiB"
        assert f"| {row} | {size} | {found['seconds_per_gb']:.1f} | {found['times_a_copy']:.1f} |" in page


@pytest.mark.parametrize(("name", "shape"), [("llama-4x256", "llama-4x256"), ("tinyworld", "tiny world")])
def test_the_page_on_speed_says_what_several_roles_cost(name: str, shape: str) -> None:
    page = (ROOT / "docs" / "speed.md").read_text()
    for asked, found in committed(f"mixed_roles_{name}")["measured"].items():
        merged = found["mixed_against"].get("one after the other, merged weights")
        cells = f"{found['mixed_against']['one after the other']:.2f} | {'' if merged is None else f'{merged:.2f}'}"
        assert f"| {shape} | {asked} | {cells}".rstrip() in page
        given, of = found["same_responses"].split(" of ")
        assert given == of
