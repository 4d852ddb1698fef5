"""A recipe: one YAML file with a section for each step, read and checked as a whole before anything starts."""

import dataclasses
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_rlhf.configs.catalogue import BY_ROLE, SFT, STAGES, WRITERS
from lora_rlhf.configs.common import StageConfig
from lora_rlhf.configs.marks import COMMON, fields_with_mark, former_names, mark_by_field, with_new_names
from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.configs.values import check, from_dict, read_yaml
from lora_rlhf.data.locate import locate
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.release.exports import MANIFEST
from lora_rlhf.runs.folder import has_stage
from lora_rlhf.system.errors import UserError
from lora_rlhf.tinyworld.config import LabelConfig, TinyworldConfig

Section = TinyworldConfig | LabelConfig | StageConfig | ExportConfig

# In the order in which they run.
KINDS: dict[str, type[Section]] = {
    "tinyworld": TinyworldConfig,
    SFT.name: SFT.config,
    "sample": SampleConfig,
    "label": LabelConfig,
    **{stage.name: stage.config for stage in STAGES},  # the first one keeps its place above
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
}
WITHOUT_STAGE = ("tinyworld", "label", "export")  # these sections alone make no recipe


def read_recipe(
    source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> dict[str, Section]:
    """The configuration of each section of the recipe, in the order in which the sections run.

    UserError with every fault: unknown keys, values out of range, input files that do not exist and that no earlier
    section writes.
    """
    source_name = "recipe" if isinstance(source, Mapping) else str(source)
    common = dict.fromkeys(name for kind in KINDS.values() for name in fields_with_mark(kind, COMMON))
    former = {old: new for kind in KINDS.values() for old, new in former_names(kind).items() if new in common}
    values = with_new_names(
        former, source if isinstance(source, Mapping) else read_yaml(source, follow_links=True), source_name
    )
    values |= overrides or {}
    run = values.get("run")
    if not isinstance(run, str) or not run:
        raise UserError(f"{source_name}: run is {run!r}; name a run folder, for example run: runs/first, or give --run")
    known = (*common, *KINDS)
    unknown = [key for key in values if key not in known]
    faults = [f"{source_name}: unknown key {key!r}; at the top may stand: {', '.join(known)}" for key in unknown]
    if not any(name in values for name in KINDS if name not in WITHOUT_STAGE):
        faults.append(f"{source_name}: no stage to run; add a section: {', '.join(KINDS)}")
    configs: dict[str, Section] = {}
    for name in (name for name in KINDS if name in values):
        try:
            configs[name] = _read_section(name, values, source_name)
            check(configs[name])
        except UserError as error:
            faults.append(str(error))
    evaluation = configs.get("evaluate")
    newest = next((configs[stage.name] for stage in reversed(WRITERS) if stage.name in configs), None)
    if isinstance(evaluation, EvaluateConfig) and newest is not None:  # it takes the parents that training named
        parents: dict[str, Any] = {
            name: folder or vars(newest).get(name) for name, folder in evaluation.parents.items()
        }
        configs["evaluate"] = dataclasses.replace(evaluation, **parents)
    if len(configs) == sum(name in values for name in KINDS):  # with a faulty section, it is not known who writes what
        faults += [*_missing_inputs(configs, source_name), *_export_faults(configs, source_name)]
    if faults:
        raise UserError("\n".join(faults))
    return configs


def _read_section(name: str, values: Mapping[str, Any], source_name: str) -> Section:
    """The configuration of one section: its own keys over those at the top of the recipe."""
    section = values[name] if values[name] is not None else {}
    if not isinstance(section, dict):
        raise UserError(f"{source_name}: {name} is {section!r}, expected keys and values")
    kind, run = KINDS[name], values["run"]
    for key, instead in mark_by_field(kind, "not_in_recipe").items():
        if key in section:
            raise UserError(f"{source_name}: {name}: {key} has no place here; {instead.format(run=run, name=name)}")
    section = with_new_names(former_names(kind), section, f"{source_name}: {name}")
    merged = {key: values[key] for key in fields_with_mark(kind, COMMON) if key in values} | section
    if kind is ExportConfig:
        merged["folder"] = run
    filled = {key: value.replace("{run}", run) if isinstance(value, str) else value for key, value in merged.items()}
    return from_dict(kind, filled, f"{source_name}: {name}")


def _missing_inputs(configs: Mapping[str, Section], source_name: str) -> list[str]:
    """A fault for each input file that neither exists nor is written by an earlier section."""
    faults, written = [], set()
    for name, config in configs.items():
        for key, words in mark_by_field(type(config), "input_file").items():
            value = getattr(config, key)
            if value is None or value in words or Path(value) in written:
                continue
            try:
                locate(value)
            except UserError as error:
                faults.append(f"{source_name}: {name}: {key}: {error}; and no section before it writes it")
        written |= set(outputs(config))
    return faults


def _export_faults(configs: Mapping[str, Section], source_name: str) -> list[str]:
    """Why there will be nothing to export, or no place to write it to."""
    config = configs.get("export")
    if not isinstance(config, ExportConfig) or config.to is None:
        return []
    stage, to, faults = BY_ROLE[config.role].name, Path(config.to), []
    if stage not in configs and not has_stage(config.folder, stage):
        faults.append(f"role is {config.role!r}, but no section makes it, and it is not in {config.folder}")
    if os.path.lexists(to) and not (to / MANIFEST).is_file():
        faults.append(f"to: {to} is there and holds no export; remove it, or name another")
    return [f"{source_name}: export: {fault}" for fault in faults]


def next_steps_text(configs: Mapping[str, Section], has_demo: bool) -> str:
    """Where the results of a recipe are, and the commands that use them."""
    run = Path(next(config.run for config in configs.values() if isinstance(config, StageConfig)))
    evaluation, export = configs.get("evaluate"), configs.get("export")
    lines = []
    if isinstance(evaluation, EvaluateConfig):
        lines.append(f"report: {Path(evaluation.folder) / 'report.html'}")
    if isinstance(export, ExportConfig):
        lines.append(f"export: {export.to} (its README.md says what it is and how to run it)")
    if any(stage.name in configs or has_stage(run, stage.name) for stage in WRITERS):
        lines.append(f"next:   {program()} chat {run}")
    if has_demo:
        root = "" if run.parent == Path("runs") else f" --root {run.parent}"
        lines.append(f"        {program()} demo{root}")
    return "\n".join(["", *lines])


def program() -> str:
    """This program as the shell finds it: its name, or the path that it was called by where its name is not found."""
    is_on_path = shutil.which("lora-rlhf") is not None or Path(sys.argv[0]).name != "lora-rlhf"
    return "lora-rlhf" if is_on_path else sys.argv[0]


def outputs(config: Section) -> list[Path]:
    """The data files that a step writes."""
    if isinstance(config, TinyworldConfig):
        return list(config.path_by_set.values())
    if isinstance(config, SampleConfig):
        return [Path(config.to)]
    if isinstance(config, LabelConfig):
        return [Path(path) for path in (config.to, config.agreement_to) if path is not None]
    return []
