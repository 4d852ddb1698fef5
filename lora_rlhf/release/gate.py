"""The gate: a report, a policy and two systems in; the reason table, a decision and a signed-off record out."""

import dataclasses
import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lora_rlhf import __version__
from lora_rlhf.configs.values import check
from lora_rlhf.evaluation.report_model import read_report
from lora_rlhf.release.candidate import SystemName, SystemOnDisk, find_report, find_system, require_unseen
from lora_rlhf.release.config import GateConfig
from lora_rlhf.release.policy import PACKAGED, read_policy
from lora_rlhf.release.record import write_record
from lora_rlhf.release.rules import FAIL, PASS, Row, judge, passed
from lora_rlhf.render.tables import columns
from lora_rlhf.system.disk import sha256_of
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.typed_json import to_json


@dataclass(frozen=True)
class Decision:
    """What the gate decided, why, and where it is recorded."""

    passed: bool
    text: str  # the reason table and the sentence
    record: Path


def gate(config: GateConfig) -> Decision:
    """Judges the candidate and writes RUN/gate/TIME-DECISION.json.

    UserError before anything is written: a policy with faults, a report that is not there or of another format, a
    system that is not in it, a report that is stale or whose prompts were trained on.
    """
    check(config)
    policy_file = PACKAGED if config.policy is None else Path(config.policy)
    policy = read_policy(policy_file)
    target = SystemName.of(config.candidate)
    path = find_report(target, config.report)
    report = read_report(path)
    candidate = find_system(target, report, path)
    baseline = find_system(SystemName.of(config.baseline), report, path)
    if candidate.name == baseline.name:
        raise UserError(f"gate: candidate and baseline are both {candidate.name} of {path}: name two systems")
    require_unseen(policy, report.training_data, path)
    rows = judge(policy, to_json(report), candidate.name, baseline.name)
    when = datetime.now(UTC)
    record = {
        "decision": PASS if passed(rows) else FAIL,
        "time": when.isoformat(timespec="seconds"),
        "signed_off_by": config.signed_off_by or login(),
        "version": __version__,
        "report": {"name": path.name, "sha256": sha256_of(path), "created": report.created},
        "policy": {"name": policy_file.name, "sha256": sha256_of(policy_file), "text": policy.source},
        "candidate": candidate.record(),
        "baseline": baseline.record(),
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    text = _text(rows, candidate, baseline)
    return Decision(passed(rows), text, write_record(candidate.run, record, when))


def _text(rows: Sequence[Row], candidate: SystemOnDisk, baseline: SystemOnDisk) -> str:
    lines = [table(rows), ""]
    if not candidate.is_compared and candidate.stage:
        lines += ["The report does not hold the candidate's adapter hash: only the stage's id was compared.", ""]
    failed = [row.figure for row in rows if row.decision == FAIL]
    if not failed:
        lines.append(f"{candidate.name} may replace {baseline.name}: the win rate and every guard pass.")
    else:
        which = f"{len(failed)} of {len(rows)} rules" if len(rows) > 1 else "the rule"
        lines.append(f"{candidate.name} may not replace {baseline.name}: {which} fail: {', '.join(failed)}.")
    return "\n".join(lines)


def table(rows: Sequence[Row]) -> str:
    """The reason table: figure, needed, found with its interval, pass or FAIL."""
    header = ("figure", "needed", "found", "")
    cells = [(row.figure, row.needed, row.found, "pass" if row.decision == PASS else "FAIL") for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(columns([header, rule, *cells], "<<<<", gap="  "))


def login() -> str | None:
    """Who is logged in, as the system knows it."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run as a number without a name
        return None


def summary(record: dict[str, Any]) -> str:
    """One line on a record, for a history or a note."""
    return f"{record['decision']} on {record.get('time')}, signed off by {record.get('signed_off_by') or 'nobody'}"
