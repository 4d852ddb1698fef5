"""The command that repeats each stage, with the configuration that it had; paths are those of the package."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lora_rlhf.configs.catalogue import BY_NAME, SFT
from lora_rlhf.configs.values import read_yaml
from lora_rlhf.release.paths import INPUTS, PathMap
from lora_rlhf.runs.folder import CONFIG

RECIPE = "recipe.yaml"
# In the order in which they run: the section of a recipe, and the command.
COMMANDS = {
    "tinyworld": "tinyworld make",
    SFT.name: SFT.name,
    "sample": "sample",
    "label": "tinyworld label",
    **{stage: stage for stage in BY_NAME},  # the first one keeps its place above
    "evaluate": "evaluate",
}
# What belongs to the machine or the moment: the repetition begins afresh and reports to nobody.
AFRESH: dict[str, Any] = {
    **{"overwrite": False, "resume": False, "allow_changes": False, "report_to": [], "compare": None, "lock": False},
}


class Step(NamedTuple):
    """One command of the repetition and its configuration, as it was."""

    name: str
    command: str
    config: dict[str, Any]


def find_steps(run: Path, report: Mapping[str, Any] | None) -> list[Step]:
    """What was run, in order: each stage by its own config.yaml, the rest by the recipe, the evaluation by its report.

    UserError for a configuration that cannot be read.
    """
    recipe = read_yaml(run / RECIPE) if (run / RECIPE).is_file() else {}
    configs = {name: values for name, values in recipe.items() if name in COMMANDS and isinstance(values, dict)}
    configs |= {stage: read_yaml(run / stage / CONFIG) for stage in BY_NAME if (run / stage / CONFIG).is_file()}
    if report is not None and isinstance(report.get("config"), dict):
        configs["evaluate"] = report["config"]
    return [Step(name, command, configs[name]) for name, command in COMMANDS.items() if name in configs]


def afresh(step: Step, paths: PathMap) -> str:
    """The configuration as YAML, with paths as the package writes them."""
    values = paths.clean(step.config)
    return yaml.safe_dump(values | {key: value for key, value in AFRESH.items() if key in values}, sort_keys=False)


def repeat_script(steps: list[Step]) -> str:
    """A shell script that runs every step, after it has checked what was put in inputs/."""
    lines = [
        "#!/usr/bin/env bash",
        "# Repeats every stage. Run it in the folder that holds it; commands.md says what it needs.",
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")"',
        f"[ ! -s {INPUTS}.sha256 ] || sha256sum --check {INPUTS}.sha256",
        *(_command(step) for step in steps),
    ]
    return "\n".join(lines) + "\n"


def commands_page(name: str, steps: list[Step], needed: Mapping[str, str | None], versions: Mapping[str, Any]) -> str:
    """commands.md: what to install, what to put where, and each stage's command."""
    parts = [
        f"# How to repeat {name}",
        "Unpack the package and work in its folder: the run is made beside these files.",
    ]
    listed = "\n".join(f"- {package} {version}" for package, version in versions.items())
    parts.append(f"It was made with\n\n{listed}")
    parts.append("The same versions on the same kind of machine give the same bits on a CPU.")
    if needed:
        rows = "\n".join(f"- `{path}`: sha256 {sha256 or 'unknown'}" for path, sha256 in needed.items())
        parts.append(f"These files were read and are not packed. Put them where this says:\n\n{rows}")
    for step in steps:
        parts.append(f"## {step.name}\n\n```bash\n{_command(step)}\n```")
    parts.append("`./repeat.sh` does all of it.")
    return "\n\n".join(parts) + "\n"


def _command(step: Step) -> str:
    return f"lora-rlhf {step.command} --config {shlex.quote(f'config/{step.name}.yaml')}"
