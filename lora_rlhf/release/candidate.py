"""Which system of a report a name stands for, and whether its run on disk is still what was evaluated."""

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

REPORT = "report.json"
STAGES = {stage.role: stage.name for stage in WRITERS}  # {role: the stage that makes it}
AGAIN = "evaluate again with --overwrite"


@dataclass(frozen=True)
class SystemName:
    """What was asked for: a system by its name in the report, or the role of a run folder."""

    text: str
    run: Path | None
    role: str | None

    @classmethod
    def of(cls, text: str) -> "SystemName":
        """`RUN` and `RUN:policy` are run folders where there is such a folder; all else is a system's name."""
        folder, _, role = text.rpartition(":")
        if folder and role in (BASE, *STAGES) and Path(folder).is_dir():
            return cls(text, Path(folder), role)
        return cls(text, Path(text) if Path(text).is_dir() else None, None)


@dataclass(frozen=True)
class SystemOnDisk:
    """A system of the report beside what is on disk of it now. The base has no stage."""

    name: str
    run: Path
    stage: str | None
    id: str | None
    adapter: str | None  # sha256
    is_compared: bool  # whether the report holds its adapter's hash, too

    def record(self) -> dict[str, Any]:
        """What a gate's record says of it. The run by its folder's name: a record travels."""
        return {"system": self.name, "run": self.run.resolve().name, "stage": self.stage, "id": self.id} | {
            "adapter_sha256": self.adapter,
            "adapter_compared": self.is_compared,
        }


def find_report(target: SystemName, report: str | None) -> Path:
    """The report to judge by. UserError when none is named and the candidate names no run."""
    if report is not None:
        return Path(report) / REPORT if Path(report).is_dir() else Path(report)
    if target.run is None:
        raise UserError(
            f"gate: candidate {target.text!r} is no run folder, so the report must be named: --report RUN/{REPORT}, or "
            f"--candidate RUN:{target.text}"
        )
    return target.run / REPORT


def find_system(target: SystemName, report: Report, path: Path) -> SystemOnDisk:
    """The system that a name stands for. UserError for none, for a run that is not there, and for one made anew."""
    systems = report.systems
    name = target.text if target.run is None or target.text in systems else _of_run(target, systems, path)
    if name not in systems:
        raise UserError(f"{path}: {name!r} is not among its systems: {', '.join(systems)}")
    recorded = systems[name]
    run = target.run or _run_of(name, recorded, path)
    if recorded.stage is None:
        return SystemOnDisk(name, run, None, None, None, False)
    folder = run / recorded.stage
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder}: {name} of {path} was evaluated there and is not there now; name its folder: RUN:ROLE"
        )
    manifest = read_manifest(folder)
    if manifest["status"] != FINISHED or manifest["id"] != recorded.id:
        raise UserError(
            f"{path} is stale: it is about the {recorded.stage} stage {recorded.id}, and {folder} holds "
            f"{manifest['id']} ({manifest['status']}) now; {AGAIN}"
        )
    adapter, then = adapter_hash(folder), recorded.adapter_sha256
    if then is not None and then != adapter:
        raise UserError(
            f"{path} is stale: it is about an adapter with the sha256 {quote(then)}, and the one in {folder} "
            f"has {adapter} now; {AGAIN}"
        )
    return SystemOnDisk(name, run, recorded.stage, manifest["id"], adapter, then is not None)


def require_unseen(policy: Policy, data: TrainingData, path: Path) -> None:
    """UserError when more of the report's prompts stand in training data than the policy lets pass, or nobody knows."""
    prompts, seen = data.prompts, data.seen
    if prompts and seen and seen / prompts > policy.most_seen:
        raise UserError(
            f"{path}: {seen} of {prompts} prompts stand in training data, a share of {seen / prompts:.3g}; the policy "
            f"allows {policy.most_seen:g} (seen_in_training: at_most): evaluate on prompts that were not trained on"
        )
    unknown = [row.stage for row in data.stages if row.compared != "all"]
    if (unknown or seen is None or prompts is None) and not policy.passes_if_unknown:
        what = f"of {', '.join(unknown)}" if unknown else "of this report"
        raise UserError(
            f"{path}: whether its prompts were trained on is not known for all training data {what}; put the data "
            "where the manifests say and evaluate again, or write unknown: pass under seen_in_training in the policy"
        )


def _of_run(target: SystemName, systems: Mapping[str, SystemRecord], path: Path) -> str:
    """The name under which a run's stage stands in the report: by its id, or else by the run's name."""
    assert target.run is not None
    made = (role for role in reversed(STAGES) if (target.run / STAGES[role]).is_dir())
    role = target.role or next(made, None)
    if role is None:
        raise UserError(f"{target.run}: holds no {' or '.join(STAGES.values())} stage; name a run folder, or RUN:ROLE")
    folder = target.run / STAGES.get(role, role)
    if role in STAGES and (folder / MANIFEST).is_file():
        stage_id = read_manifest(folder)["id"]
        for name, system in systems.items():
            if system.id == stage_id and system.stage == STAGES[role]:
                return name
    is_first_run = path.resolve().parent == target.run.resolve()
    name_of_other_run = f"{target.run.resolve().name}:{role}"
    return name_of_other_run if name_of_other_run in systems or not (is_first_run or role == BASE) else role


def _run_of(name: str, recorded: SystemRecord, path: Path) -> Path:
    """Where the run of a system is: beside the report, or else where the report says."""
    own, _, role = name.rpartition(":")
    beside = path.parent.parent / own if own else path.parent
    is_there = (beside / STAGES.get(role, role) / MANIFEST).is_file()
    return beside if is_there else Path(recorded.run)
