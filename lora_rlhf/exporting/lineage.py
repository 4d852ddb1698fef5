"""How a model was made, as its run folder records it: stages, data, settings, results and the evaluation."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_rlhf.configs.catalogue import BY_ROLE, ancestors
from lora_rlhf.configs.values import read_yaml
from lora_rlhf.evaluation.report_model import Report, read_report
from lora_rlhf.runs.folder import CONFIG, has_stage
from lora_rlhf.runs.manifest import read_manifest
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import is_number

REPORT_FILE = "report.json"


@dataclass(frozen=True)
class Stage:
    """A finished stage: its manifest and its config, as they are in its folder."""

    name: str
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def results(self) -> Mapping[str, Any]:
        results: Mapping[str, Any] = self.manifest["results"]
        return results


@dataclass(frozen=True)
class Lineage:
    """The stages that made a role, in order, and the run's evaluation; None if it has none that can be read."""

    stages: tuple[Stage, ...]
    report: Report | None

    def find_stage(self, name: str) -> Stage | None:
        return next((stage for stage in self.stages if stage.name == name), None)


def read_lineage(run: Path, role: str) -> Lineage:
    """The stages of a role that are in the run folder, and its report. Stages in other folders are left out."""
    stages = []
    for name in (stage.name for stage in ancestors(BY_ROLE[role])):
        if has_stage(run, name):
            folder = run / name
            config = read_yaml(folder / CONFIG) if os.path.isfile(folder / CONFIG) else {}
            stages.append(Stage(name, read_manifest(folder), config))
    return Lineage(tuple(stages), _read_report(run / REPORT_FILE))


def _read_report(path: Path) -> Report | None:
    """The report; None if there is none, or if its format is another one."""
    try:
        return read_report(path) if os.path.isfile(path) else None
    except UserError:
        return None


def nested_value(value: Any, *keys: str) -> Any:
    """The value at the end of these keys of nested objects; None if a key is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def named_numbers(value: Any, *names: str) -> tuple[float, ...] | None:
    """The numbers with these names in an object; None unless all of them are there."""
    values = [nested_value(value, name) for name in names]
    return tuple(values) if all(map(is_number, values)) else None
