"""The README and docs/: their commands parse, their flags exist and their links lead somewhere."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from lora_rlhf.cli.commands import COMMANDS
from lora_rlhf.cli.main import parse

ROOT = Path(__file__).parent.parent
PATHS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
PAGES = {path.name: path.read_text() for path in PATHS}
FOREIGN = ("python ", "hf ", "accelerate ", "vllm ", "ollama ", "scripts/test.sh ", "ruff ")
LINES = [line for page in PAGES.values() for line in page.replace("\\\n", " ").splitlines()]
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
    ours = [span for span in spans if not span.startswith(FOREIGN)]
    flags = {flag.replace("-", "_") for span in ours for flag in re.findall(r"--([a-z_-]+)", span)}
    assert len(flags) > 20
    assert flags - known <= {"help", "config", "print_config", "verbose", "debug"}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    folder = ROOT if (ROOT / name).exists() else ROOT / "docs"
    local = [target for target in re.findall(r"\]\(([^)#]+)\)", PAGES[name]) if not target.startswith("http")]
    assert local
    assert [target for target in local if not (folder / target).exists()] == []
