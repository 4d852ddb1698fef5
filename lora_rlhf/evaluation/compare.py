"""Two reports side by side: which figures moved beyond their intervals. Only what was measured alike compares."""

from lora_rlhf.evaluation.report_model import Comparison, FrozenSet, MovedFigure, PromptSet, Report, Sets
from lora_rlhf.evaluation.wording import direction
from lora_rlhf.system.errors import UserError


def require_comparable(earlier: Report, sets: Sets, judge: str, path: str) -> None:
    """UserError, before anything is generated, where prompts, probes, questions or judge are others than before."""
    pairs = {
        "prompts": (earlier.sets.prompts, sets.prompts),
        "probes": (earlier.sets.probes, sets.probes),
        "choices": (earlier.sets.choices, sets.choices),
        "text": (earlier.sets.text, sets.text),
    }
    faults = []
    for name, (then, now) in pairs.items():
        if _hash(then) != _hash(now):
            faults.append(f"{name} {_hash(then)[:16]} then and {_hash(now)[:16]} now")
    if earlier.judge_name != judge:
        faults.append(f"judge {earlier.judge_name} then and {judge} now")
    if faults:
        raise UserError(
            f"{path}: not comparable: {'; '.join(faults)}. Evaluate both on the same sets, by the same judge"
        )


def compare_reports(earlier: Report, report: Report, path: str) -> Comparison:
    """Which figures moved since the earlier report, which lies at `path`.

    A figure moved where its interval and the earlier one do not touch: a careful test, for two intervals that touch may
    still differ. Systems are compared by name, the candidates with each other whatever their names.
    """
    names = {system: system for system in report.systems if system in earlier.systems}
    names[report.candidate] = earlier.candidate
    compared, moved = 0, []
    for name, row in report.figures.items():
        for system, after in row.items():
            before = earlier.figures.get(name, {}).get(names.get(system, ""))
            if before is None or before.interval is None or after.interval is None:
                continue
            compared += 1
            (value_before, low_before, high_before), (value, low, high) = before.interval, after.interval
            if low > high_before or high < low_before:
                verdict = direction(name, value > value_before)
                moved.append(MovedFigure(figure=name, system=system, before=before, after=after, verdict=verdict))
    return Comparison(with_=path, compared=compared, moved=moved)


def _hash(prompts: PromptSet | FrozenSet | None) -> str:
    return "none" if prompts is None else prompts.content_hash
