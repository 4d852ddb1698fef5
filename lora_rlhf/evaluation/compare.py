"""Compares two reports that were made on the same sets by the same judge: which figures moved."""

from lora_rlhf.evaluation.report_model import Comparison, FrozenSet, MovedFigure, PromptSet, Report, Sets
from lora_rlhf.evaluation.wording import direction_word
from lora_rlhf.system.errors import UserError


def require_comparable(earlier: Report, sets: Sets, judge: str, path: str) -> None:
    """Raises UserError if prompts, probes, questions, text or judge differ from the earlier report's."""
    pairs = {
        "prompts": (earlier.sets.prompts, sets.prompts),
        "probes": (earlier.sets.probes, sets.probes),
        "choices": (earlier.sets.choices, sets.choices),
        "text": (earlier.sets.text, sets.text),
        "tools": (earlier.sets.tools, sets.tools),
        "grounded": (earlier.sets.grounded, sets.grounded),
        "refusals": (earlier.sets.refusals, sets.refusals),
    }
    faults = []
    for name, (old_set, new_set) in pairs.items():
        if _content_hash(old_set) != _content_hash(new_set):
            faults.append(f"{name} {_content_hash(old_set)[:16]} then and {_content_hash(new_set)[:16]} now")
    if earlier.judge_name != judge:
        faults.append(f"judge {earlier.judge_name} then and {judge} now")
    if faults:
        raise UserError(
            f"{path}: not comparable: {'; '.join(faults)}. Evaluate both on the same sets, by the same judge"
        )


def compare_reports(earlier: Report, report: Report, path: str) -> Comparison:
    """Which figures moved since the earlier report, which is at `path`.

    A figure moved if its interval and the earlier one do not touch. This is a careful test: two intervals that touch
    may still differ. Systems are compared by name; the two candidates are compared whatever their names.
    """
    earlier_names = {system: system for system in report.systems if system in earlier.systems}
    earlier_names[report.candidate] = earlier.candidate
    num_compared, moved_figures = 0, []
    for name, row in report.figures.items():
        for system, after in row.items():
            before = earlier.figures.get(name, {}).get(earlier_names.get(system, ""))
            if before is None or before.interval is None or after.interval is None:
                continue
            num_compared += 1
            (value_before, low_before, high_before), (value, low, high) = before.interval, after.interval
            if low > high_before or high < low_before:
                verdict = direction_word(name, value > value_before)
                moved_figures.append(
                    MovedFigure(figure=name, system=system, before=before, after=after, verdict=verdict)
                )
    return Comparison(with_=path, compared=num_compared, moved=moved_figures)


def _content_hash(prompts: PromptSet | FrozenSet | None) -> str:
    return "none" if prompts is None else prompts.content_hash
