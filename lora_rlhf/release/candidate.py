"""Finds the system of a report that a name means, and checks that its run on disk is still the evaluated one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_rlhf.configs.catalogue import BASE, WRITERS
from lora_rlhf.evaluation.report_model import Report, SystemRecord, TrainingData
from lora_rlhf.release.policy import Policy
from lora_rlhf.runs.folder import adapter_hash
from lora_rlhf.runs.manifest import FINISHED, MANIFEST, read_manifest
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import quote

REPORT_FILE = "report.json"
STAGE_BY_ROLE = {stage.role: stage.name for stage in WRITERS}  # {role: the stage that makes it}
EVALUATE_AGAIN = "evaluate again with --overwrite"


@dataclass(frozen=True)
class SystemName:
    """The name of a system as the user wrote it: its name in the report, or a run folder with or without a role."""

    text: str
    run: Path | None
    role: str | None

    @classmethod
    def parse(cls, text: str) -> "SystemName":
        """Reads `RUN` and `RUN:policy` as run folders if such a folder exists; any other text is a system's name."""
        folder, _, role = text.rpartition(":")
        if folder and role in (BASE, *STAGE_BY_ROLE) and Path(folder).is_dir():
            return cls(text, Path(folder), role)
        return cls(text, Path(text) if Path(text).is_dir() else None, None)


@dataclass(frozen=True)
class SystemOnDisk:
    """A system of the report, and its stage on disk. The base has no stage."""

    name: str
    run: Path
    stage: str | None
    id: str | None
    adapter: str | None  # sha256
    is_compared: bool  # whether the report holds its adapter's hash, which was compared

    def record_entry(self) -> dict[str, Any]:
        """The system's entry in a gate's record. Of the run it has only the folder's name: records are shared."""
        return {"system": self.name, "run": self.run.resolve().name, "stage": self.stage, "id": self.id} | {
            "adapter_sha256": self.adapter,
            "adapter_compared": self.is_compared,
        }


def find_report(system_name: SystemName, report: str | None) -> Path:
    """The path of the report. Raises UserError if no report is named and the candidate names no run."""
    if report is not None:
        return Path(report) / REPORT_FILE if Path(report).is_dir() else Path(report)
    if system_name.run is None:
        raise UserError(
            f"gate: candidate {system_name.text!r} is no run folder, so the report must be named: --report "
            f"RUN/{REPORT_FILE}, or --candidate RUN:{system_name.text}"
        )
    return system_name.run / REPORT_FILE


def find_system(system_name: SystemName, report: Report, path: Path) -> SystemOnDisk:
    """The system that a name means. Raises UserError if there is none, or if its stage is missing or newer."""
    systems = report.systems
    name = (
        system_name.text
        if system_name.run is None or system_name.text in systems
        else _name_of_run(system_name, systems, path)
    )
    if name not in systems:
        raise UserError(f"{path}: {name!r} is not among its systems: {', '.join(systems)}")
    record = systems[name]
    run = system_name.run or _find_run(name, record, path)
    if record.stage is None:
        return SystemOnDisk(name, run, None, None, None, False)
    folder = run / record.stage
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder}: {name} of {path} was evaluated there and is not there now; name its folder: RUN:ROLE"
        )
    manifest = read_manifest(folder)
    if manifest["status"] != FINISHED or manifest["id"] != record.id:
        raise UserError(
            f"{path} is stale: it is about the {record.stage} stage {record.id}, and {folder} holds "
            f"{manifest['id']} ({manifest['status']}) now; {EVALUATE_AGAIN}"
        )
    adapter_sha256, recorded_hash = adapter_hash(folder), record.adapter_sha256
    if recorded_hash is not None and recorded_hash != adapter_sha256:
        raise UserError(
            f"{path} is stale: it is about an adapter with the sha256 {quote(recorded_hash)}, and the one in {folder} "
            f"has {adapter_sha256} now; {EVALUATE_AGAIN}"
        )
    return SystemOnDisk(name, run, record.stage, manifest["id"], adapter_sha256, recorded_hash is not None)


def require_unseen(policy: Policy, data: TrainingData, path: Path) -> None:
    """Raises UserError if training data hold more of the report's prompts than allowed, or if that is unknown."""
    num_prompts, num_seen = data.prompts, data.seen
    if num_prompts and num_seen and num_seen / num_prompts > policy.max_share_seen:
        raise UserError(
            f"{path}: {num_seen} of {num_prompts} prompts stand in training data, a share of "
            f"{num_seen / num_prompts:.3g}; the policy allows {policy.max_share_seen:g} (seen_in_training: "
            "at_most): evaluate on prompts that were not trained on"
        )
    unknown_stages = [row.stage for row in data.stages if row.compared != "all"]
    if (unknown_stages or num_seen is None or num_prompts is None) and not policy.passes_if_unknown:
        description = f"of {', '.join(unknown_stages)}" if unknown_stages else "of this report"
        raise UserError(
            f"{path}: whether its prompts were trained on is not known for all training data {description}; put the "
            "data where the manifests say and evaluate again, or write unknown: pass under seen_in_training in the "
            "policy"
        )


def _name_of_run(system_name: SystemName, systems: Mapping[str, SystemRecord], path: Path) -> str:
    """The name of a run's stage in the report: found by its id, or else made of the run's name."""
    assert system_name.run is not None
    existing_roles = (role for role in reversed(STAGE_BY_ROLE) if (system_name.run / STAGE_BY_ROLE[role]).is_dir())
    role = system_name.role or next(existing_roles, None)
    if role is None:
        raise UserError(
            f"{system_name.run}: holds no {' or '.join(STAGE_BY_ROLE.values())} stage; name a run folder, or RUN:ROLE"
        )
    folder = system_name.run / STAGE_BY_ROLE.get(role, role)
    if role in STAGE_BY_ROLE and (folder / MANIFEST).is_file():
        stage_id = read_manifest(folder)["id"]
        for name, system in systems.items():
            if system.id == stage_id and system.stage == STAGE_BY_ROLE[role]:
                return name
    is_first_run = path.resolve().parent == system_name.run.resolve()
    name_of_other_run = f"{system_name.run.resolve().name}:{role}"
    return name_of_other_run if name_of_other_run in systems or not (is_first_run or role == BASE) else role


def _find_run(name: str, record: SystemRecord, path: Path) -> Path:
    """The folder of a system's run: beside the report, or else where the report says."""
    run_name, _, role = name.rpartition(":")
    neighbour = path.parent.parent / run_name if run_name else path.parent
    is_there = (neighbour / STAGE_BY_ROLE.get(role, role) / MANIFEST).is_file()
    return neighbour if is_there else Path(record.run)
