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

INIT = "init"  # a reference: the policy that another one goes on from
SAME_BASE = ("source_hash", "quantization")
READ_SETTINGS: dict[str, FieldType] = {
    "reference": ("sft, base or init", lambda value: value in (SFT.role, BASE, INIT)),
    "kl_target": ("a number or null", lambda value: value is None or is_number(value)),
}
NO_FOLDERS: Mapping[str, str | None] = MappingProxyType({})


@dataclass(frozen=True)
class RunStages:
    """A run's finished stages by name, in the order in which they run. There is always an SFT stage.

    If there are newer stages, each stage is the one from which they were trained.
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

    def read_setting(self, stage: Stage, name: str) -> Any:
        """Reads a setting of the stage, one of READ_SETTINGS, from its config.yaml.

        Returns None if the run lacks the stage or the stage the setting. Raises UserError for an invalid value.
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

    def reference_role(self, stage: Stage) -> str | None:
        """The role from which the stage's KL was measured, or else that of the newest stage with a KL; or None."""
        references = (self.read_setting(candidate, "reference") for candidate in (stage, *reversed(STAGES)))
        found = next((reference for reference in references if reference is not None), None)
        return SFT.role if found == INIT else found  # a report shows how far a policy is from the SFT model

    def seconds_by_stage(self) -> dict[str, float]:
        """{stage: the duration of its training in seconds}."""
        return {name: stage.manifest["seconds"] for name, stage in self.by_name.items()}


def find_stages(run: str, folder_by_stage: Mapping[str, str | None] = NO_FOLDERS) -> RunStages:
    """Finds the stages of a run. folder_by_stage: the folders of parents of the newest stage that are in another run.

    Raises UserError if there is no finished SFT stage, if stages do not belong together, and if a manifest names a
    folder outside the one around the run.
    """
    newest_first: dict[str, Parent] = {}  # the manifest of a newer stage names its parents
    for stage in reversed(STAGES):
        parent = _find_parent(run, stage, folder_by_stage.get(stage.name), newest_first)
        if parent is not None:
            newest_first[stage.name] = parent
    if SFT.name not in newest_first:
        find_stage(Path(run) / SFT.name, SFT.name)  # raises an error that names what is missing
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

    def to_record(self) -> SystemRecord:
        """The system's record in the report; from the adapter's hash, a gate knows whether the report is up to date."""
        adapter = None if self.adapter is None else adapter_hash(self.adapter.parent)
        return SystemRecord(run=self.run, stage=self.stage, id=self.id, adapter_sha256=adapter)


@dataclass(frozen=True)
class SystemSet:
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
        other_names = [name for name in self.names if name not in (self.candidate, self.baseline, BASE)]
        order = list(dict.fromkeys([self.candidate, self.baseline, *other_names, BASE]))
        # Only the first two, candidate and baseline, are compared with all that follow them.
        return {f"{a}_vs_{b}": (a, b) for i, a in enumerate(order[:2]) for b in order[i + 1 :]}


def find_systems(config: EvaluateConfig) -> SystemSet:
    """Finds the systems of a configuration.

    Raises the errors of `find_stages`, and UserError for runs on different bases (with both hashes), for two runs of
    one name, and for a candidate or baseline that does not exist.
    """
    stages = find_stages(config.run, config.parents)
    trained_systems = _trained_systems(config.run, stages, "", "")
    systems = [System(BASE, BASE, config.run, trained_systems[0].reference), *trained_systems]
    others = {}
    for number, run in enumerate(config.other_runs, start=1):
        name = Path(os.path.realpath(run)).name
        if any(system.name.startswith(f"{name}:") for system in systems):
            raise UserError(f"{run}: another of the runs is called {name!r} too; rename one of the two folders")
        others[name] = find_stages(run)
        _require_same_base(stages.sft, others[name].sft)
        twin_roles = {}  # {role of this run: role of the same stage in a run before}
        for system in _trained_systems(run, others[name], f"{name}:", f"other{number}_"):
            if twin := next((earlier for earlier in systems if earlier.id == system.id), None):
                log.info("%s is the same stage as %s and is not generated twice", system.name, twin.name)
                twin_roles[system.role] = twin.role
            else:
                systems.append(replace(system, reference=twin_roles.get(system.reference, system.reference)))
    names = [system.name for system in systems]
    newest, oldest = trained_systems[-1].name, trained_systems[0].name
    candidate = _choose_system_name(config.candidate, "--candidate", names, newest)
    baseline = _choose_system_name(config.baseline, "--baseline", names, oldest if candidate != oldest else BASE)
    if candidate == baseline:
        raise UserError(f"candidate and baseline are both {candidate!r}: name two systems")
    return SystemSet(stages, tuple(systems), candidate, baseline, others)


def open_model(
    system_set: SystemSet, device: str, model: SharedModel | None, trust_remote_code: bool = False
) -> SharedModel:
    """Loads the base and the adapters of all systems. Roles that the given model already has are not loaded again."""
    stages = system_set.stages
    if model is None:
        model = open_base(stages.sft.manifest["base"], device, trust_remote_code=trust_remote_code)
    elif model.base.source_hash != stages.sft.manifest["base"]["source_hash"]:
        raise UserError(f"{stages.sft.folder} was trained on another base than {model.base.spec.name!r} as loaded")
    else:
        model.tokenizer.chat_template = stages.sft.manifest["base"]["chat_template"] or model.tokenizer.chat_template
    adapters = [(system.role, system.adapter) for system in system_set.systems]
    if stages.reward is not None:
        adapters.append((REWARD.role, stages.reward.adapter))
    for role, adapter in adapters:
        if adapter is not None and role not in model.roles:
            model.load_role(role, adapter)
    return model


def _trained_systems(run: str, stages: RunStages, name_prefix: str, role_prefix: str) -> list[System]:
    """The models of a run that answer prompts, with these prefixes before their names and roles."""
    systems = []
    for stage, parent in stages.writers:
        reference = stages.reference_role(stage) or SFT.role
        systems.append(
            System(
                name_prefix + stage.role,
                role_prefix + stage.role,
                run,
                BASE if reference == BASE else role_prefix + reference,
                stage.name,
                parent.manifest["id"],
                parent.adapter,
            )
        )
    return systems


def _choose_system_name(name: str | None, flag: str, names: Sequence[str], default: str) -> str:
    """The system that a flag names, or the default. Raises UserError for a name that no system has."""
    if name is not None and name not in names:
        raise UserError(f"{flag} {name!r} is none of the systems: {', '.join(names)}")
    return name or default


def _find_parent(run: str, stage: Stage, folder: str | None, newer: Mapping[str, Parent]) -> Parent | None:
    """Finds the stage from which the newer ones were trained; None if there is none.

    It is in `folder` if given, else in the run, or else in the folder that a newer stage's manifest records.
    """
    child_records = [
        (BY_NAME[name], parent.manifest["parents"][stage.name])
        for name, parent in newer.items()
        if not BY_NAME[name].scores and stage.name in parent.manifest["parents"]
    ]
    path = Path(folder or f"{run}/{stage.name}")
    if folder is None:
        is_in_run = has_stage(run, stage.name)
        if child_records:
            child, record = child_records[0]
            if not is_in_run or read_manifest(path)["id"] != record["id"]:
                path = _recorded_folder(run, stage, child, record)
        elif not is_in_run:
            return None
    parent = find_stage(path, stage.name)
    for child, record in child_records:
        if parent.manifest["id"] != record["id"]:
            raise UserError(
                f"{parent.folder}: this {stage.name} stage (id {parent.manifest['id']}) was made after "
                f"{child.model_name}, which was trained from another (id {record['id']}); run `lora-rlhf {child.name} "
                f"--run {run} --overwrite` first"
            )
    return parent


def _recorded_folder(run: str, stage: Stage, child: Stage, record: Mapping[str, Any]) -> Path:
    """The folder that the child's manifest records for a parent.

    It is relative to the run, or in older manifests to the working folder. Raises UserError for a folder outside the
    one around the run: a run may come from anybody, so its manifest must not choose which files are opened. Links are
    resolved; for a run that is a link, the folders around the link and around its target are allowed.
    """
    recorded = record["folder"]
    path_in_run = Path(run) / recorded
    folder = path_in_run if os.path.exists(path_in_run) else Path(recorded)
    allowed_roots = {os.path.realpath(Path(run).parent), str(Path(os.path.realpath(run)).parent)}
    real_path = Path(os.path.realpath(folder))
    if ".." in Path(recorded).parts or not any(real_path.is_relative_to(root) for root in allowed_roots):
        raise UserError(
            f"{run}/{child.name}/manifest.json: {child.model_name}'s {stage.name} stage is recorded at {recorded!r}, "
            f"which is not followed outside {' or '.join(sorted(allowed_roots))}; if it is yours, name it with "
            f"--{stage.name}, or copy that stage to {run}/{stage.name}"
        )
    return folder


def _require_same_base(sft: Parent, stage: Parent) -> None:
    """Raises UserError with the differences if the stages have different bases."""
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
