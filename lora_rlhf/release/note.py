"""A release note's draft out of a report: what got better, what measurably got worse, and what nobody knows."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lora_rlhf.evaluate.figures import CATALOGUE


class Change(NamedTuple):
    """A figure whose paired interval lies on one side of no change."""

    name: str
    difference: float
    low: float
    high: float
    is_worse: bool


def changes(report: Mapping[str, Any], candidate: str) -> list[Change]:
    """What moved by more than its 95 % interval, of the figures of which it is known which way is better."""
    found = []
    for name, row in report.get("paired", {}).items():
        one, kind = row.get(candidate), CATALOGUE.get(name)
        if one is None or kind is None or kind.better == "neither":
            continue
        if None in (one["difference"], one["low"], one["high"]):
            continue
        if one["low"] > 0 or one["high"] < 0:
            is_worse = (one["low"] > 0) == (kind.better == "lower")
            found.append(Change(name, one["difference"], one["low"], one["high"], is_worse))
    return found


def release_note(name: str, report: Mapping[str, Any] | None, left_out: Mapping[str, str], gates: Sequence[str]) -> str:
    """The draft, in Markdown. Without a report it says what is missing."""
    parts = [f"# Release note of {name} (draft)"]
    if report is None:
        parts.append("No figures: see what is not in this package.")
    else:
        parts += _from_report(report)
    parts.append("## Gate\n\n" + ("\n".join(f"- {line}" for line in gates) or "No gate was passed or failed."))
    if left_out:
        lines = [f"- {what}: {why}" for what, why in left_out.items()]
        parts.append("## Not in this package\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _from_report(report: Mapping[str, Any]) -> list[str]:
    candidate, baseline = report["candidate"], report["baseline"]
    parts = [report["verdict"]] if "verdict" in report else []
    parts.append(
        f"`{candidate}` against `{baseline}`, judged by {report.get('judge', {}).get('name', 'an unknown judge')}."
    )
    moved = changes(report, candidate)
    worse, better = ([_line(one) for one in moved if one.is_worse is is_worse] for is_worse in (True, False))
    unmoved = "None: no figure got worse by more than its 95 % interval."
    parts.append("## Measured regressions\n\n" + ("\n".join(worse) or unmoved))
    parts.append("## Measured improvements\n\n" + ("\n".join(better) or "None by more than the 95 % interval."))
    if raised := [f"- {flag}: {one.get('why', '')}" for flag, one in _flags(report) if one.get("raised")]:
        parts.append("## Raised by the audit\n\n" + "\n".join(raised))
    if questions := report.get("questions"):
        lines = [f"- {one.get('question')} **{one.get('answer')}**: {one.get('figure')}" for one in questions]
        parts.append("## Did it work?\n\n" + "\n".join(lines))
    parts.append("## Figures\n\n" + _figures(report, candidate, baseline))
    return parts


def _flags(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    flags = report.get("audit", {}).get("flags", {})
    return [(name, one) for name, one in flags.items() if isinstance(one, dict)] if isinstance(flags, dict) else []


def _line(one: Change) -> str:
    kind = CATALOGUE[one.name]
    return f"- {kind.title} ({kind.unit}): {one.difference:+.4g} ({one.low:+.4g} to {one.high:+.4g}); {kind.meaning}"


def _figures(report: Mapping[str, Any], candidate: str, baseline: str) -> str:
    rows = [f"| figure | {baseline} | {candidate} | paired difference |", "|---|---|---|---|"]
    for name, row in report["figures"].items():
        title = CATALOGUE[name].title if name in CATALOGUE else name
        paired = report.get("paired", {}).get(name, {}).get(candidate)
        cells = (_cell(row.get(baseline), "value"), _cell(row.get(candidate), "value"), _cell(paired, "difference"))
        rows.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _cell(one: Mapping[str, Any] | None, key: str) -> str:
    if one is None or one[key] is None:
        return ""
    bounds = "" if None in (one["low"], one["high"]) else f" ({one['low']:.4g} to {one['high']:.4g})"
    return f"{one[key]:.4g}{bounds}"
