"""Two reports side by side: which figures moved beyond their intervals. Only what was measured alike compares."""

from collections.abc import Mapping
from typing import Any

from lora_rlhf.evaluate.figures import CATALOGUE
from lora_rlhf.system.errors import UserError

Report = Mapping[str, Any]
COMPARED_SETS = ("prompts", "probes", "choices", "text")


def require_comparable(earlier: Report, sets: Mapping[str, Any], judge: str, place: str) -> None:
    """UserError, before anything is generated, where prompts, probes, questions or judge are others than before."""
    faults = []
    for name in COMPARED_SETS:
        then, now = (found.get(name, {}).get("content_hash") for found in (earlier["sets"], sets))
        if then != now:
            faults.append(f"{name} {_short(then)} then and {_short(now)} now")
    if (then := earlier["judge"]["name"]) != judge:
        faults.append(f"judge {then} then and {judge} now")
    if faults:
        raise UserError(
            f"{place}: not comparable: {'; '.join(faults)}. Evaluate both on the same sets, by the same judge"
        )


def compare_reports(earlier: Report, report: Report, place: str) -> dict[str, Any]:
    """{with, compared, moved: [{figure, system, before, after, verdict}]}.

    A figure moved where its interval and the earlier one do not touch: a careful test, for two intervals that touch may
    still differ. Systems are compared by name, the candidates with each other whatever their names.
    """
    names = {system: system for system in report["systems"] if system in earlier["systems"]}
    names[report["candidate"]] = earlier["candidate"]
    compared, moved = 0, []
    for name, row in report["figures"].items():
        for system, after in row.items():
            before = earlier["figures"].get(name, {}).get(names.get(system))
            if before is None or None in (before["low"], before["high"], after["low"], after["high"]):
                continue
            compared += 1
            if after["low"] > before["high"] or after["high"] < before["low"]:
                verdict = _verdict(name, after["value"] > before["value"])
                moved.append({"figure": name, "system": system, "before": before, "after": after, "verdict": verdict})
    return {"with": place, "compared": compared, "moved": moved}


def _verdict(name: str, up: bool) -> str:
    better = CATALOGUE[name].better
    if better == "neither":
        return "higher" if up else "lower"
    return "better" if up == (better == "higher") else "worse"


def _short(content_hash: str | None) -> str:
    return "none" if content_hash is None else content_hash[:16]
