"""The commands that repeat each stage with its configuration; paths are those of the package."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lora_rlhf.configs.catalogue import BY_NAME, SFT
from lora_rlhf.configs.values import read_yaml
from lora_rlhf.release.paths import INPUTS, PathMap
from lora_rlhf.runs.folder import CONFIG
from lora_rlhf.system.shown_text import for_markdown

RECIPE = "recipe.yaml"
# {section of a recipe: command}, in the order in which they run.
COMMANDS = {
    "tinyworld": "tinyworld make",
    SFT.name: SFT.name,
    "sample": "sample",
    "label": "tinyworld label",
    **{stage: stage for stage in BY_NAME},  # the first one keeps its place above
    "evaluate": "evaluate",
}
# Settings that belong to one machine or one moment: a repetition starts anew and reports to no tracker.
RESET_SETTINGS: dict[str, Any] = {
    **{"overwrite": False, "resume": False, "allow_changes": False, "report_to": [], "compare": None, "lock": False},
}


class Step(NamedTuple):
    """One command of the repetition, and its configuration."""

    name: str
    command: str
    config: dict[str, Any]


def find_steps(run: Path, report: Mapping[str, Any] | None) -> list[Step]:
    """The steps of the run in order: stages by their config.yaml, others by the recipe, the evaluation by its report.

    Raises UserError for a configuration that cannot be read.
    """
    recipe = read_yaml(run / RECIPE) if (run / RECIPE).is_file() else {}
    configs = {name: values for name, values in recipe.items() if name in COMMANDS and isinstance(values, dict)}
    configs |= {stage: read_yaml(run / stage / CONFIG) for stage in BY_NAME if (run / stage / CONFIG).is_file()}
    if report is not None and isinstance(report.get("config"), dict):
        configs["evaluate"] = report["config"]
    return [Step(name, command, configs[name]) for name, command in COMMANDS.items() if name in configs]


def repeat_config(step: Step, paths: PathMap) -> str:
    """The configuration as YAML, with paths as the package writes them, for a repetition."""
    values = paths.without_paths(step.config)
    return yaml.safe_dump(
        values | {key: value for key, value in RESET_SETTINGS.items() if key in values}, sort_keys=False
    )


def repeat_script(steps: list[Step]) -> str:
    """A shell script that checks the files in inputs/ and runs every step."""
    lines = [
        "#!/usr/bin/env bash",
        "# Repeats every stage. Run it in the folder that holds it; commands.md says what it needs.",
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")"',
        f"[ ! -s {INPUTS}.sha256 ] || sha256sum --check {INPUTS}.sha256",
        *(_step_command(step) for step in steps),
    ]
    return "\n".join(lines) + "\n"


def commands_page(
    name: str, steps: list[Step], input_hashes: Mapping[str, str | None], versions: Mapping[str, Any]
) -> str:
    """commands.md: what to install, which files to put where, and the command of each step."""
    sections = [
        f"# How to repeat {for_markdown(name)}",
        "Unpack the package and work in its folder: the run is made beside these files.",
    ]
    version_lines = "\n".join("- " + for_markdown(f"{package} {version}") for package, version in versions.items())
    sections.append(f"It was made with\n\n{version_lines}")
    sections.append("The same versions on the same kind of machine give the same bits on a CPU.")
    if input_hashes:
        input_lines = "\n".join(
            f"- `{for_markdown(path)}`: sha256 {sha256 or 'unknown'}" for path, sha256 in input_hashes.items()
        )
        sections.append(f"These files were read and are not packed. Put them where this says:\n\n{input_lines}")
    for step in steps:
        sections.append(f"## {step.name}\n\n```bash\n{_step_command(step)}\n```")
    sections.append("`./repeat.sh` does all of it.")
    return "\n\n".join(sections) + "\n"


def _step_command(step: Step) -> str:
    return f"lora-rlhf {step.command} --config {shlex.quote(f'config/{step.name}.yaml')}"
