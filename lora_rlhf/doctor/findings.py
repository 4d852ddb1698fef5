"""A finding, and how findings are printed: aligned lines for people, or JSON."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lora_rlhf.system.disk import finite

GIB = 2**30

Status = Literal["ok", "note", "problem"]

STATUS_WIDTH = len("problem") + 1
CHECK_WIDTH = 16
COLORS: dict[Status, int] = {"ok": 32, "note": 33, "problem": 31}  # the terminal's own green, yellow and red


@dataclass(frozen=True)
class Finding:
    """The result of one check: what was found, and what to do about it.

    ok: works. note: works, with something to know. problem: something needed does not work.
    `values` are the figures behind the words, for --json; sizes are in GiB. `command` repairs it.
    """

    check: str
    status: Status
    found: str
    advice: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""


def to_gib(size: float) -> float:
    """Bytes in GiB, rounded for printing."""
    return round(size / GIB, 1)


def finding_lines(finding: Finding, has_color: bool, width: int) -> str:
    """The finding as lines for a terminal that is `width` columns wide; the advice is below the result.

    A command stays on one line, however long, so that it can be copied.
    """
    indent = " " * (STATUS_WIDTH + CHECK_WIDTH)
    lines = _wrap_text(finding.found, width - len(indent))
    if finding.advice:
        first_line, *more_lines = _wrap_text(finding.advice, width - len(indent) - 3)
        lines += [f"-> {first_line}", *(f"   {row}" for row in more_lines)]
    if finding.command:
        lines.append(f"-> {finding.command}")
    status = f"{finding.status:<{STATUS_WIDTH}}"
    if has_color:
        status = f"\x1b[{COLORS[finding.status]}m{status}\x1b[0m"
    return "\n".join([f"{status}{finding.check:<{CHECK_WIDTH}}{lines[0]}", *(indent + row for row in lines[1:])])


def summary_line(findings: Sequence[Finding]) -> str:
    """The last line: whether everything that is needed works."""
    problems, notes = (sum(finding.status == status for finding in findings) for status in ("problem", "note"))
    counts = [f"{count} {word}{'s' * (count > 1)}" for count, word in ((problems, "problem"), (notes, "note")) if count]
    suffix = f" ({' and '.join(counts)})" if counts else ""
    return ("not everything that is needed works" if problems else "everything that is needed works") + suffix


def findings_json(findings: Sequence[Finding]) -> str:
    """All findings, and under "ok" whether none is a problem."""
    report = {"ok": has_no_problem(findings), "findings": [asdict(finding) for finding in findings]}
    return json.dumps(finite(report), indent=2, allow_nan=False)


def has_no_problem(findings: Sequence[Finding]) -> bool:
    """Whether everything that is needed works."""
    return all(finding.status != "problem" for finding in findings)


def _wrap_text(text: str, width: int) -> list[str]:
    # names and paths stay in one piece
    return textwrap.wrap(text, max(width, 30), break_long_words=False, break_on_hyphens=False) or [""]
