"""The systems of an evaluation: the finished stages of runs on one base, and the model with all their roles."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lora_rlhf.configs.catalogue import BY_NAME, REWARD, SFT, STAGES, WRITERS, Stage
from lora_rlhf.configs.values import read_yaml
from lora_rlhf.data.chosen_template import is_same_template
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.evaluation.report_model import SystemRecord
from lora_rlhf.model.open import open_base
from lora_rlhf.model.shared import BASE, SharedModel
from lora_rlhf.runs.folder import CONFIG, Parent, adapter_hash, find_stage, has_stage
from lora_rlhf.runs.manifest import read_manifest
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import FieldType, is_number, require

log = logging.getLogger("lora_rlhf")

SAME_BASE = ("source_hash", "quantization")
READ_SETTINGS: dict[str, FieldType] = {
    "reference": ("sft or base", lambda value: value in (SFT.role, BASE)),
    "kl_target": ("a number or null", lambda value: value is None or is_number(value)),
}
NONE_NAMED: Mapping[str, str | None] = MappingProxyType({})


@dataclass(frozen=True)
class RunStages:
    """A run's finished stages by name, in the order in which they run; SFT is among them.

    Each is the one that the newer stages were trained from, where there are any.
    """

    by_name: Mapping[str, Parent]

    @property
    def sft(self) -> Parent:
        return self.by_name[SFT.name]

    @property
    def reward(self) -> Parent | None:
        return self.by_name.get(REWARD.name)

    @property
    def writers(self) -> list[tuple[Stage, Parent]]:
        """The stages whose roles answer prompts, the newest last."""
        return [(stage, self.by_name[stage.name]) for stage in WRITERS if stage.name in self.by_name]

    def setting(self, stage: Stage, name: str) -> Any:
        """A setting that the stage was trained with, one of READ_SETTINGS.

        None where the run has no such stage or the stage no such setting; UserError for a value that it cannot have.
        """
        if stage.name not in self.by_name or not stage.has_setting(name):
            return None
        path = self.by_name[stage.name].folder / CONFIG
        values = {"kl_target": None} | read_yaml(path)
        try:
            require(values, READ_SETTINGS)
        except ValueError as error:
            raise UserError(
                f"{path}: {error}; restore that file, or run {stage.title} again with --overwrite"
            ) from error
        return values[name]

    def reference(self, stage: Stage) -> str | None:
        """The role that the stage was held to; if to none, the role that the newest stage was held to, if any was."""
        references = (self.setting(candidate, "reference") for candidate in (stage, *reversed(STAGES)))
        return next((reference for reference in references if reference is not None), None)

    def seconds(self) -> dict[str, float]:
        """How long each stage took."""
        return {name: stage.manifest["seconds"] for name, stage in self.by_name.items()}


def find_stages(run: str, named: Mapping[str, str | None] = NONE_NAMED) -> RunStages:
    """The stages of a run. named: {stage: its folder}, where a parent of the newest stage is in another run.

    UserError when there is no finished SFT stage, when stages do not belong together, and when a manifest leads to a
    folder that nobody here named.
    """
    newest_first: dict[str, Parent] = {}  # the manifest of a newer stage names its parents
    for stage in reversed(STAGES):
        parent = _find_stage(run, stage, named.get(stage.name), newest_first)
        if parent is not None:
            newest_first[stage.name] = parent
    if SFT.name not in newest_first:
        find_stage(Path(run) / SFT.name, SFT.name)  # says what is missing
    stages = RunStages(dict(reversed(newest_first.items())))
    for parent in stages.by_name.values():
        _require_same_base(stages.sft, parent)
    return stages


@dataclass(frozen=True)
class System:
    """A model that answers the prompts: its name in the report and its role. stage and id are None for the base.

    reference: the role that KL is measured from.
    """

    name: str
    role: str
    run: str
    reference: str
    stage: str | None = None
    id: str | None = None
    adapter: Path | None = None

    def record(self) -> SystemRecord:
        """The system's record in the report; from the adapter's hash, a gate knows whether the report is up to date."""
        adapter = None if self.adapter is None else adapter_hash(self.adapter.parent)
        return SystemRecord(run=self.run, stage=self.stage, id=self.id, adapter_sha256=adapter)


@dataclass(frozen=True)
class Compared:
    """The systems of an evaluation, with the stages of the first run.

    candidate, baseline: the two systems of the verdict. others: the stages of the other runs, by the run's name.
    """

    stages: RunStages
    systems: tuple[System, ...]
    candidate: str
    baseline: str
    others: Mapping[str, RunStages]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the systems, in the report's order."""
        return tuple(system.name for system in self.systems)

    @property
    def pairs(self) -> dict[str, tuple[str, str]]:
        """{A_vs_B: (A, B)}: the candidate with every other, then every other with the baseline; the base comes last."""
        rest = [name for name in self.names if name not in (self.candidate, self.baseline, BASE)]
        order = list(dict.fromkeys([self.candidate, self.baseline, *rest, BASE]))
        return {f"{a}_vs_{b}": (a, b) for i, a in enumerate(order) for b in order[i + 1 :] if i < 2}


def find_systems(config: EvaluateConfig) -> Compared:
    """The systems that a configuration asks for.

    UserError as of `find_stages`; for runs on different bases (with both hashes), two runs of one name, and a candidate
    or baseline that is not there.
    """
    stages = find_stages(config.run, config.parents)
    trained = _systems_of(config.run, stages, "", "")
    systems = [System(BASE, BASE, config.run, trained[0].reference), *trained]
    others = {}
    for number, run in enumerate(config.other_runs, start=1):
        name = Path(os.path.realpath(run)).name
        if any(system.name.startswith(f"{name}:") for system in systems):
            raise UserError(f"{run}: another of the runs is called {name!r} too; rename one of the two folders")
        others[name] = find_stages(run)
        _require_same_base(stages.sft, others[name].sft)
        twin_roles = {}  # {role of this run: role of the same stage in a run before}
        for system in _systems_of(run, others[name], f"{name}:", f"other{number}_"):
            if twin := next((s for s in systems if s.id == system.id), None):
                log.info("%s is the same stage as %s and is not generated twice", system.name, twin.name)
                twin_roles[system.role] = twin.role
            else:
                systems.append(replace(system, reference=twin_roles.get(system.reference, system.reference)))
    names = [system.name for system in systems]
    newest, oldest = trained[-1].name, trained[0].name
    candidate = _system_name(config.candidate, "--candidate", names, newest)
    baseline = _system_name(config.baseline, "--baseline", names, oldest if candidate != oldest else BASE)
    if candidate == baseline:
        raise UserError(f"candidate and baseline are both {candidate!r}: name two systems")
    return Compared(stages, tuple(systems), candidate, baseline, others)


def open_model(
    compared: Compared, device: str, model: SharedModel | None, trust_remote_code: bool = False
) -> SharedModel:
    """The base with the adapters of all systems. Adapters that the given model holds already stay as they are."""
    stages = compared.stages
    if model is None:
        model = open_base(stages.sft.manifest["base"], device, trust_remote_code=trust_remote_code)
    elif model.base.source_hash != stages.sft.manifest["base"]["source_hash"]:
        raise UserError(f"{stages.sft.folder} was trained on another base than {model.base.spec.name!r} as loaded")
    else:
        model.tokenizer.chat_template = stages.sft.manifest["base"]["chat_template"] or model.tokenizer.chat_template
    adapters = [(system.role, system.adapter) for system in compared.systems]
    if stages.reward is not None:
        adapters.append((REWARD.role, stages.reward.adapter))
    for role, adapter in adapters:
        if adapter is not None and role not in model.roles:
            model.load_role(role, adapter)
    return model


def _systems_of(run: str, stages: RunStages, name: str, role: str) -> list[System]:
    """The models of a run that answer prompts, `name` and `role` before their names and roles."""
    systems = []
    for stage, parent in stages.writers:
        reference = stages.reference(stage) or SFT.role
        systems.append(
            System(
                name + stage.role,
                role + stage.role,
                run,
                BASE if reference == BASE else role + reference,
                stage.name,
                parent.manifest["id"],
                parent.adapter,
            )
        )
    return systems


def _system_name(name: str | None, flag: str, names: Sequence[str], default: str) -> str:
    """The system that a flag names, or the default. UserError for a name that no system has."""
    if name is not None and name not in names:
        raise UserError(f"{flag} {name!r} is none of the systems: {', '.join(names)}")
    return name or default


def _find_stage(run: str, stage: Stage, named: str | None, newer: Mapping[str, Parent]) -> Parent | None:
    """The stage that the newer ones started from: the named one, the run's own, or where a newer manifest says.

    Without newer ones, the named one or the run's own, if it has one.
    """
    records = [
        (BY_NAME[name], parent.manifest["parents"][stage.name])
        for name, parent in newer.items()
        if not BY_NAME[name].scores and stage.name in parent.manifest["parents"]
    ]
    folder = Path(named or f"{run}/{stage.name}")
    if named is None:
        is_here = has_stage(run, stage.name)
        if records and not (is_here and read_manifest(folder)["id"] == records[0][1]["id"]):
            folder = _followed(run, stage, *records[0])
        elif not is_here:
            return None
    parent = find_stage(folder, stage.name)
    for child, record in records:
        if parent.manifest["id"] != record["id"]:
            raise UserError(
                f"{parent.folder}: this {stage.name} stage (id {parent.manifest['id']}) was made after "
                f"{child.model_name}, which was trained from another (id {record['id']}); run `lora-rlhf {child.name} "
                f"--run {run} --overwrite` first"
            )
    return parent


def _followed(run: str, stage: Stage, child: Stage, record: Mapping[str, Any]) -> Path:
    """The folder that the child's manifest records for a parent: relative to the run, or in older ones to the working
    folder.

    UserError for one outside the folder that holds the run: a run may come from anybody, and does not say what is
    opened here. Links are resolved; a run that is one itself stands both where it is named and where it leads.
    """
    recorded = record["folder"]
    inside = Path(run) / recorded
    folder = inside if os.path.exists(inside) else Path(recorded)
    around = {os.path.realpath(Path(run).parent), str(Path(os.path.realpath(run)).parent)}
    real = Path(os.path.realpath(folder))
    if ".." in Path(recorded).parts or not any(real.is_relative_to(root) for root in around):
        raise UserError(
            f"{run}/{child.name}/manifest.json: {child.model_name}'s {stage.name} stage is recorded at {recorded!r}, "
            f"which is not followed outside {' or '.join(sorted(around))}; if it is yours, name it with "
            f"--{stage.name}, or copy that stage to {run}/{stage.name}"
        )
    return folder


def _require_same_base(sft: Parent, stage: Parent) -> None:
    """UserError with what differs, both hashes of the bases' files among it."""
    bases = sft.manifest["base"], stage.manifest["base"]
    differences = [
        f"{name} {bases[0].get(name)!r} and {bases[1].get(name)!r}"
        for name in SAME_BASE
        if bases[0].get(name) != bases[1].get(name)
    ]
    if not is_same_template(*bases):
        differences.append("their chat templates (or the arguments of these) differ")
    if differences:
        raise UserError(f"{sft.folder} and {stage.folder} were not trained on the same base: {'; '.join(differences)}")
