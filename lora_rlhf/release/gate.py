"""The gate: judges two systems of a report by a policy, and writes the decision with its reasons as a record."""

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
from lora_rlhf.release.policy import PACKAGED_POLICY, read_gate_policy
from lora_rlhf.release.record import write_record
from lora_rlhf.release.rules import FAIL, PASS, Row, apply_rules, is_passed
from lora_rlhf.render.tables import wrapped
from lora_rlhf.system.disk import sha256_of
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.typed_json import to_json


@dataclass(frozen=True)
class Decision:
    """The gate's decision, its reasons as text, and the path of its record."""

    is_passed: bool
    text: str  # the reason table and the sentence
    record: Path


def gate(config: GateConfig) -> Decision:
    """Judges the candidate and writes RUN/gate/TIME-DECISION.json.

    Raises UserError before it writes: for faults of the policy, a report that is missing or of another format, a system
    that is not in it, a report that is stale, or prompts that were trained on.
    """
    check(config)
    policy_file = PACKAGED_POLICY if config.policy is None else Path(config.policy)
    policy = read_gate_policy(policy_file)
    candidate_name = SystemName.parse(config.candidate)
    path = find_report(candidate_name, config.report)
    report = read_report(path)
    candidate = find_system(candidate_name, report, path)
    baseline = find_system(SystemName.parse(config.baseline), report, path)
    if candidate.name == baseline.name:
        raise UserError(f"gate: candidate and baseline are both {candidate.name} of {path}: name two systems")
    require_unseen(policy, report.training_data, path)
    rows = apply_rules(policy, to_json(report), candidate.name, baseline.name)
    now = datetime.now(UTC)
    record = {
        "decision": PASS if is_passed(rows) else FAIL,
        "time": now.isoformat(timespec="seconds"),
        "signed_off_by": config.signed_off_by or login_name(),
        "version": __version__,
        "report": {"name": path.name, "sha256": sha256_of(path), "created": report.created},
        "policy": {
            "name": policy_file.name,
            "sha256": sha256_of(policy_file, follow_links=True),
            "text": policy.source,
        },
        "candidate": candidate.record_entry(),
        "baseline": baseline.record_entry(),
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    text = _decision_text(rows, candidate, baseline)
    return Decision(is_passed(rows), text, write_record(candidate.run, record, now))


def _decision_text(rows: Sequence[Row], candidate: SystemOnDisk, baseline: SystemOnDisk) -> str:
    """The reason table, and a sentence with the decision."""
    lines = [reason_table(rows), ""]
    if not candidate.is_compared and candidate.stage:
        lines += ["The report does not hold the candidate's adapter hash: only the stage's id was compared.", ""]
    failed_figures = [row.figure for row in rows if row.decision == FAIL]
    if not failed_figures:
        lines.append(f"{candidate.name} may replace {baseline.name}: the win rate and every guard pass.")
    else:
        failed_part = f"{len(failed_figures)} of {len(rows)} rules" if len(rows) > 1 else "the rule"
        lines.append(
            f"{candidate.name} may not replace {baseline.name}: {failed_part} fail: {', '.join(failed_figures)}."
        )
    return "\n".join(lines)


def reason_table(rows: Sequence[Row]) -> str:
    """Of each rule: pass or FAIL and its figure, then what was needed and what was found, with its interval.

    Rules that the policy lets pass without a figure are named at the end, in one line.
    """
    lines = []
    for row in rows:
        if not row.is_let_pass:
            lines.append(wrapped(f"{'pass' if row.decision == PASS else 'FAIL'}  {row.figure}"))
            lines += [wrapped(f"      needed {row.needed}"), wrapped(f"      found  {row.found}")]
    if let_pass := [row.figure for row in rows if row.is_let_pass]:
        lines.append(wrapped(f"pass  not reported, which the policy lets pass: {', '.join(let_pass)}"))
    return "\n".join(lines)


def login_name() -> str | None:
    """The name of the user who runs this process; None if the system knows no name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container can run under a user id without a name
        return None


def summarize_record(record: dict[str, Any]) -> str:
    """One line on a record, for a history or a note."""
    return f"{record['decision']} on {record.get('time')}, signed off by {record.get('signed_off_by') or 'nobody'}"
