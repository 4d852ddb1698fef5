"""A release note's draft out of a report: what got better, what measurably got worse, and what nobody knows."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lora_rlhf.evaluation.figures import CATALOGUE, Interval
from lora_rlhf.evaluation.report_model import Report
from lora_rlhf.render.tables import markdown_table


class Change(NamedTuple):
    """A figure whose paired interval lies on one side of no change."""

    name: str
    interval: Interval
    is_worse: bool

    def __str__(self) -> str:
        measure = CATALOGUE[self.name]
        difference, low, high = self.interval
        return f"{measure.title} ({measure.unit}): {difference:+.4g} ({low:+.4g} to {high:+.4g}); {measure.meaning}"


def changes(report: Report, candidate: str) -> list[Change]:
    """What moved by more than its 95 % interval, of the figures of which it is known which way is better."""
    moved = []
    for name, row in report.paired.items():
        interval, better = row[candidate].interval if candidate in row else None, CATALOGUE[name].better
        if interval is None or better == "neither":
            continue
        _, low, high = interval
        if low > 0 or high < 0:
            moved.append(Change(name, interval, is_worse=(low > 0) == (better == "lower")))
    return moved


def release_note(name: str, report: Report | None, left_out: Mapping[str, str], gates: Sequence[str]) -> str:
    """The draft, in Markdown. Without a report it says what is missing."""
    parts = [f"# Release note of {name} (draft)"]
    if report is None:
        parts.append("No figures: see what is not in this package.")
    else:
        parts += _from_report(report)
    parts.append(f"## Gate\n\n{_list(gates) or 'No gate was passed or failed.'}")
    if left_out:
        parts.append("## Not in this package\n\n" + _list([f"{what}: {why}" for what, why in left_out.items()]))
    return "\n\n".join(parts) + "\n"


def _from_report(report: Report) -> list[str]:
    moved = changes(report, report.candidate)
    worse, better = ([str(change) for change in moved if change.is_worse is is_worse] for is_worse in (True, False))
    parts = [
        report.verdict,
        f"`{report.candidate}` against `{report.baseline}`, judged by {report.judge_name}.",
        f"## Measured regressions\n\n{_list(worse) or 'None: no figure got worse by more than its 95 % interval.'}",
        f"## Measured improvements\n\n{_list(better) or 'None by more than the 95 % interval.'}",
    ]
    flags = report.audit.flags if report.audit else {}
    if raised := [f"{name}: {flag.why}" for name, flag in flags.items() if flag.raised]:
        parts.append(f"## Raised by the audit\n\n{_list(raised)}")
    if report.questions:
        answers = [f"{row.question} **{row.answer}**: {row.figure}" for row in report.questions]
        parts.append(f"## Did it work?\n\n{_list(answers)}")
    return [*parts, f"## Figures\n\n{_figures(report)}"]


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _figures(report: Report) -> str:
    rows = []
    for name, row in report.figures.items():
        figures = [row.get(system) for system in (report.baseline, report.candidate)]
        cells = [_cell(figure.value, figure.interval) if figure else "" for figure in figures]
        paired = report.paired.get(name, {}).get(report.candidate)
        rows.append([CATALOGUE[name].title, *cells, _cell(paired.difference, paired.interval) if paired else ""])
    header = ["figure", report.baseline, report.candidate, "paired difference"]
    return markdown_table(header, rows, aligned=False)


def _cell(value: float | None, interval: Interval | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if interval is None else "{:.4g} ({:.4g} to {:.4g})".format(*interval)
