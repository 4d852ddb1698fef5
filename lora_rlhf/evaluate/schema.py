"""The shape of report.json, format 2: what every written report is held to, and how one is read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_rlhf.evaluate.figures import CATALOGUE
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import Kind, is_number, read_object, require

FORMAT = 2

_NUMBER: Kind = ("a number", is_number)
_MAYBE: Kind = ("a number or null", lambda value: value is None or is_number(value))
_COUNT: Kind = ("a whole number of at least 0", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 0)
_TEXT: Kind = ("text", lambda value: isinstance(value, str))
_MAYBE_TEXT: Kind = ("text or null", lambda value: value is None or isinstance(value, str))
_OBJECT: Kind = ("an object in braces", lambda value: isinstance(value, dict))
_LIST: Kind = ("a list", lambda value: isinstance(value, list))
_ANSWER: Kind = ("yes, no or unknown", lambda value: value in ("yes", "no", "unknown"))
_RAISED: Kind = ("true, false or null", lambda value: value is None or isinstance(value, bool))

REPORT: Mapping[str, Kind] = {
    "created": _TEXT,
    "config": _OBJECT,
    "base": _OBJECT,
    "systems": _OBJECT,
    "candidate": _TEXT,
    "baseline": _TEXT,
    "judge": _OBJECT,
    "sets": _OBJECT,
    "training_data": _OBJECT,
    "figures": _OBJECT,
    "paired": _OBJECT,
    "win_rates": _OBJECT,
    "questions": _LIST,
    "verdict": _TEXT,
    "left_out": _OBJECT,
    "seconds": _OBJECT,
    "peak_rss_gib": _NUMBER,
    "peak_gpu_gib": _NUMBER,
}
SYSTEM: Mapping[str, Kind] = {"run": _TEXT, "stage": _MAYBE_TEXT, "id": _MAYBE_TEXT}
FIGURE: Mapping[str, Kind] = {"value": _MAYBE, "low": _MAYBE, "high": _MAYBE, "n": _COUNT}
PAIRED: Mapping[str, Kind] = {"difference": _MAYBE, "low": _MAYBE, "high": _MAYBE, "p": _MAYBE, "n": _COUNT}
WIN_RATE: Mapping[str, Kind] = {
    **{name: _MAYBE for name in ("rate", "low", "high", "p")},
    **{name: _COUNT for name in ("n", "wins", "ties", "losses")},
}
FLAG: Mapping[str, Kind] = {"raised": _RAISED, "why": _TEXT}
QUESTION: Mapping[str, Kind] = {"question": _TEXT, "answer": _ANSWER, "figure": _TEXT}
SET: Mapping[str, Kind] = {"content_hash": _TEXT}


def read_report(path: str | Path) -> dict[str, Any]:
    """A report.json, or the one in a folder. UserError for what is none of this format, with the field at fault."""
    place = Path(path)
    place = place / "report.json" if place.is_dir() else place
    way_out = "give a report.json that `lora-rlhf evaluate` wrote"
    report = read_object(place, way_out)
    if report.get("format") != FORMAT:
        older = "format" not in report and "win_rate" in report
        what = "an older version's report: evaluate that run again" if older else f"no report of format {FORMAT}"
        raise UserError(f"{place} cannot be used: it is {what}, or {way_out}")
    try:
        require_report(report)
    except ValueError as error:
        raise UserError(f"{place} cannot be used: {error}; {way_out}") from error
    return report


def require_report(report: Mapping[str, Any]) -> None:
    """ValueError for the first field of a report that is missing or not as this format has it."""
    require(report, REPORT)
    systems = report["systems"]
    _each(systems, SYSTEM, "systems")
    for role in ("candidate", "baseline"):
        if report[role] not in systems:
            raise ValueError(f"{role!r} is {report[role]!r}, which is none of the systems: {', '.join(systems)}")
    require(report["judge"], {"name": _TEXT}, "judge.")
    _each(report["sets"], SET, "sets")
    _require_figures(report["figures"], FIGURE, systems, "figures")
    _require_figures(report["paired"], PAIRED, systems, "paired")
    _each(report["win_rates"], WIN_RATE, "win_rates")
    for key in ("categories", "languages"):
        _each(report.get(key, {}), {"n": _COUNT, "figures": _OBJECT, "win_rates": _OBJECT}, key)
        for name, group in report.get(key, {}).items():
            _require_figures(group["figures"], FIGURE, systems, f"{key}.{name}.figures")
            _require_figures(group.get("paired", {}), PAIRED, systems, f"{key}.{name}.paired")
            _each(group["win_rates"], WIN_RATE, f"{key}.{name}.win_rates")
    for name, task in report.get("tasks", {}).items():
        _each({name: task}, {"figures": _OBJECT, "paired": _OBJECT}, "tasks")
        _each(task["figures"], FIGURE, f"tasks.{name}.figures")
        _each(task["paired"], PAIRED, f"tasks.{name}.paired")
    _each(report.get("audit", {}).get("flags", {}), FLAG, "audit.flags")
    for i, question in enumerate(report["questions"]):
        _each({str(i): question}, QUESTION, "questions")
    _each({"reasons": report["left_out"]}, dict.fromkeys(report["left_out"], _TEXT), "left_out")


def _require_figures(
    figures: Mapping[str, Any], kinds: Mapping[str, Kind], systems: Mapping[str, Any], at: str
) -> None:
    for name, row in figures.items():
        if name not in CATALOGUE:
            raise ValueError(f"{at}.{name}: there is no figure of that name")
        if not isinstance(row, dict):
            raise ValueError(f"{at}.{name} is not an object in braces")
        if unknown := [system for system in row if system not in systems]:
            raise ValueError(f"{at}.{name} has {unknown[0]!r}, which is none of the systems")
        _each(row, kinds, f"{at}.{name}")


def _each(rows: Mapping[str, Any], kinds: Mapping[str, Kind], at: str) -> None:
    for name, row in rows.items():
        if not isinstance(row, dict):
            raise ValueError(f"{at}.{name} is not an object in braces")
        require(row, kinds, f"{at}.{name}.")
