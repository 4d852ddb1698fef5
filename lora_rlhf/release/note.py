"""Drafts a release note from a report: figures that got better, figures that got worse, and what is missing."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lora_rlhf.evaluation.figures import CATALOGUE, Interval
from lora_rlhf.evaluation.report_model import Report, report_for_markdown
from lora_rlhf.render.tables import markdown_table
from lora_rlhf.system.shown_text import for_markdown


class Change(NamedTuple):
    """A figure whose paired interval does not contain 0."""

    name: str
    interval: Interval
    is_worse: bool

    def __str__(self) -> str:
        measure = CATALOGUE[self.name]
        difference, low, high = self.interval
        return f"{measure.title} ({measure.unit}): {difference:+.4g} ({low:+.4g} to {high:+.4g}); {measure.meaning}"


def significant_changes(report: Report, candidate: str) -> list[Change]:
    """The figures that changed by more than their 95 % interval, if a direction of theirs is better."""
    changes = []
    for name, paired_by_system in report.paired.items():
        interval, better = (
            paired_by_system[candidate].interval if candidate in paired_by_system else None,
            CATALOGUE[name].better,
        )
        if interval is None or better == "neither":
            continue
        _, low, high = interval
        if low > 0 or high < 0:
            changes.append(Change(name, interval, is_worse=(low > 0) == (better == "lower")))
    return changes


def release_note_text(name: str, report: Report | None, left_out: Mapping[str, str], gate_lines: Sequence[str]) -> str:
    """The draft, in Markdown. Without a report it names what is missing."""
    parts = [f"# Release note of {for_markdown(name)} (draft)"]
    if report is None:
        parts.append("No figures: see what is not in this package.")
    else:
        parts += _report_sections(report_for_markdown(report))
    parts.append(f"## Gate\n\n{_bullet_list(list(map(for_markdown, gate_lines))) or 'No gate was passed or failed.'}")
    if left_out:
        parts.append(
            "## Not in this package\n\n"
            + _bullet_list([for_markdown(f"{name}: {reason}") for name, reason in left_out.items()])
        )
    return "\n\n".join(parts) + "\n"


def _report_sections(report: Report) -> list[str]:
    """The sections of the note that come from the report."""
    changes = significant_changes(report, report.candidate)
    worse, better = ([str(change) for change in changes if change.is_worse is is_worse] for is_worse in (True, False))
    parts = [
        report.verdict,
        f"`{report.candidate}` against `{report.baseline}`, judged by {report.judge_name}.",
        "## Measured regressions\n\n"
        + (_bullet_list(worse) or "None: no figure got worse by more than its 95 % interval."),
        f"## Measured improvements\n\n{_bullet_list(better) or 'None by more than the 95 % interval.'}",
    ]
    flags = report.audit.flags if report.audit else {}
    if raised_flags := [f"{name}: {flag.why}" for name, flag in flags.items() if flag.raised]:
        parts.append(f"## Raised by the audit\n\n{_bullet_list(raised_flags)}")
    if report.questions:
        answers = [f"{row.question} **{row.answer}**: {row.figure}" for row in report.questions]
        parts.append(f"## Did it work?\n\n{_bullet_list(answers)}")
    return [*parts, f"## Figures\n\n{_figure_table(report)}"]


def _bullet_list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _figure_table(report: Report) -> str:
    """A Markdown table of all figures of baseline and candidate, with their paired differences."""
    rows = []
    for name, row in report.figures.items():
        figures = [row.get(system) for system in (report.baseline, report.candidate)]
        cells = [_figure_text(figure.value, figure.interval) if figure else "" for figure in figures]
        paired = report.paired.get(name, {}).get(report.candidate)
        rows.append([CATALOGUE[name].title, *cells, _figure_text(paired.difference, paired.interval) if paired else ""])
    header = ["figure", report.baseline, report.candidate, "paired difference"]
    return markdown_table(header, rows, aligned=False)


def _figure_text(value: float | None, interval: Interval | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if interval is None else "{:.4g} ({:.4g} to {:.4g})".format(*interval)
