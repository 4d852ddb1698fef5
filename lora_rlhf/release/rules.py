"""What a rule finds in a report, and whether that is enough."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from lora_rlhf.evaluate.figures import CATALOGUE
from lora_rlhf.release.policy import ANY, PAIRS, Policy, Rule
from lora_rlhf.system.untrusted import is_number

PASS, FAIL = "pass", "fail"
CENTRES = ("value", "rate", "difference", "mean")  # what the middle of an interval is called
FLAGS, LEFT_OUT_FLAGS = ("audit", "flags"), ("audit", "left_out")
OF_CANDIDATE = ("audit", "reward")  # sections that are about the report's own candidate alone


class Interval(NamedTuple):
    """A figure as far as the report has it; None is what it has not."""

    value: float | None
    low: float | None
    high: float | None


class Missing(Exception):
    """The report does not hold what a rule asks for; the message says what."""


@dataclass(frozen=True)
class Row:
    """One line of the reason table."""

    rule: str
    figure: str
    needed: str
    found: str
    decision: str
    value: float | None = None
    low: float | None = None
    high: float | None = None


def judge(policy: Policy, report: dict[str, Any], candidate: str, baseline: str) -> list[Row]:
    """A row for each rule, or for each place that a rule's path with `*` fits, in the policy's order.

    A place that another rule names in full is left to that one.
    """
    named = {rule.path for rule in policy.rules}
    rows = []
    for rule in policy.rules:
        places = [path for path in _expanded(report, rule.path) if path == rule.path or path not in named]
        is_covered = not places and any(path in named for path in _expanded(report, rule.path))
        rows += [_judge(rule, path, report, candidate, baseline) for path in places or [rule.path] if not is_covered]
    return rows


def passed(rows: list[Row]) -> bool:
    """Whether every rule passed."""
    return bool(rows) and all(row.decision == PASS for row in rows)


def _judge(rule: Rule, path: tuple[str, ...], report: dict[str, Any], candidate: str, baseline: str) -> Row:
    name = ".".join(path)
    try:
        if rule.at_least is None and rule.at_most is None:
            raised, why = _flag(report, path, candidate)
            return Row(
                rule.name, name, rule.needed, f"raised: {why}" if raised else "not raised", FAIL if raised else PASS
            )
        interval = _figure(rule, path, report, candidate, baseline)
        end = getattr(interval, rule.end)
        if end is None:
            raise Missing("no value" if rule.end == "value" else f"no {rule.end} end of an interval")
    except Missing as gap:
        reason = f"not reported: {gap}"
        if rule.passes_if_missing:
            return Row(rule.name, name, rule.needed, f"{reason}; passes, as the policy says", PASS)
        return Row(rule.name, name, rule.needed, reason, FAIL)
    enough = end >= rule.at_least if rule.at_least is not None else end <= rule.at_most
    return Row(rule.name, name, rule.needed, _shown(interval), PASS if enough else FAIL, *interval)


def _expanded(report: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The paths that one with `*` stands for in this report; itself where it has none.

    What the audit left out counts: a flag that could not be told is missing, not lowered.
    """
    if ANY not in path:
        yield path
        return
    at = path.index(ANY)
    nodes = [_walk(report, path[:at])]
    if path[:at] == FLAGS:
        nodes.append(_walk(report, LEFT_OUT_FLAGS))
    for name in dict.fromkeys(name for node in nodes if isinstance(node, dict) for name in node):
        yield from _expanded(report, (*path[:at], name, *path[at + 1 :]))


def _walk(report: Any, path: tuple[str, ...]) -> Any:
    """What stands at the end of a path; None when the path breaks off."""
    for step in path:
        if not isinstance(report, dict) or step not in report:
            return None
        report = report[step]
    return report


def _figure(rule: Rule, path: tuple[str, ...], report: dict[str, Any], candidate: str, baseline: str) -> Interval:
    """The candidate's figure, as the rule compares it. Raises Missing."""
    if len(path) == 1 and path[0] in PAIRS:
        return _of_pair(report, ("win_rates",), PAIRS[path[0]], candidate, baseline)
    full = ("figures", *path) if len(path) == 1 and path[0] in CATALOGUE else path
    _require_own(report, full, candidate)
    if rule.compare == "paired":
        return _paired(report, full, candidate, baseline)
    node = _walk(report, full)
    if isinstance(node, dict) and any("_vs_" in name for name in node):
        return _of_pair(report, full, (), candidate, baseline)
    one = _interval(report, full, candidate)
    if rule.compare == "value":
        return one
    other = _interval(report, full, baseline)
    return _difference(one, other) if rule.compare == "difference" else _ratio(one, other)


def _interval(report: dict[str, Any], path: tuple[str, ...], system: str) -> Interval:
    """The figure at a path: of a system, where figures stand by system there. Raises Missing."""
    node = _walk(report, path)
    if node is None:
        raise Missing(_reason(report, path))
    if is_number(node):
        return Interval(float(node), None, None)
    if isinstance(node, dict) and not any(name in node for name in CENTRES):
        if system not in node:
            raise Missing(f"{'.'.join(path)} has none of {system}")
        node = node[system]
    return _of(node, ".".join(path))


def _of(node: Any, place: str) -> Interval:
    if not isinstance(node, dict):
        raise Missing(f"{place} is no figure")
    value = next((node[name] for name in CENTRES if name in node), None)
    interval = Interval(*(_number(number) for number in (value, node.get("low"), node.get("high"))))
    if interval.value is None:
        raise Missing(f"{place} has no value")
    return interval


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def _of_pair(
    report: dict[str, Any], path: tuple[str, ...], inner: tuple[str, ...], candidate: str, baseline: str
) -> Interval:
    """The rate at which the candidate beats the baseline; from the other way round, what is left of 1."""
    pairs = _walk(report, path)
    if not isinstance(pairs, dict):
        raise Missing(_reason(report, path))
    if (node := _walk(pairs, (f"{candidate}_vs_{baseline}", *inner))) is not None:
        return _of(node, ".".join(path))
    if (node := _walk(pairs, (f"{baseline}_vs_{candidate}", *inner))) is not None:
        rate, low, high = _of(node, ".".join(path))
        return Interval(*(None if number is None else 1 - number for number in (rate, high, low)))
    raise Missing(f"{'.'.join((*path, f'{candidate}_vs_{baseline}', *inner))} is not there")


def _paired(report: dict[str, Any], path: tuple[str, ...], candidate: str, baseline: str) -> Interval:
    """The difference over the same prompts, which a report holds against its own baseline. Raises Missing."""
    place = tuple("paired" if step == "figures" else step for step in path)
    if baseline == report["baseline"]:
        return _interval(report, place, candidate)
    if candidate == report["baseline"]:
        value, low, high = _interval(report, place, baseline)
        return Interval(*(None if number is None else -number for number in (value, high, low)))
    raise Missing(f"paired differences are to {report['baseline']}, evaluate again with --baseline {baseline}")


def _difference(one: Interval, other: Interval) -> Interval:
    """Of two figures, as if they were independent: Zou and Donner (Statistics in Medicine 27, 2008), MOVER."""
    (a, a_low, a_high), (b, b_low, b_high) = one, other
    if a is None or b is None:
        return Interval(None, None, None)
    if a_low is None or a_high is None or b_low is None or b_high is None:
        return Interval(a - b, None, None)
    return Interval(a - b, a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low))


def _ratio(one: Interval, other: Interval) -> Interval:
    """Of two figures above 0: the difference of their logarithms. Raises Missing for one that is not above 0."""
    if any(number is not None and number <= 0 for number in (one.value, other.value)):
        raise Missing("a ratio needs two values above 0; compare the difference")
    logs = [Interval(*(None if n is None or n <= 0 else math.log(n) for n in interval)) for interval in (one, other)]
    _, low, high = (None if number is None else math.exp(number) for number in _difference(*logs))
    return Interval(one.value / other.value, low, high) if one.value and other.value else Interval(None, None, None)


def _flag(report: dict[str, Any], path: tuple[str, ...], candidate: str) -> tuple[bool, str]:
    """(whether it is raised, why). Raises Missing for what is no flag."""
    _require_own(report, path, candidate)
    node = _walk(report, path)
    if node is None:
        raise Missing(_reason(report, path))
    if isinstance(node, dict) and "raised" not in node and candidate in node:
        node = node[candidate]
    if not isinstance(node, dict) or not isinstance(node.get("raised"), bool):
        raise Missing(f"{'.'.join(path)} does not say whether it is raised")
    return node["raised"], str(node.get("why", "no reason given"))


def _require_own(report: dict[str, Any], path: tuple[str, ...], candidate: str) -> None:
    if path[0] in OF_CANDIDATE and candidate != report["candidate"]:
        raise Missing(f"{path[0]} is of {report['candidate']}, evaluate again with --candidate {candidate}")


def _reason(report: dict[str, Any], path: tuple[str, ...]) -> str:
    """Why something is not in a report: what the report says of that, or else that it is not there."""
    of_audit: Any = _walk(report, LEFT_OUT_FLAGS) if path[:2] == FLAGS else None
    for left_out in (of_audit, report.get("left_out")):
        for name in (*reversed(path), path[0]):
            if isinstance(left_out, dict) and name in left_out:
                return str(left_out[name])
    return f"{'.'.join(path)} is not there"


def _shown(interval: Interval) -> str:
    value, low, high = (("?" if number is None else f"{number:.4g}") for number in interval)
    return value if interval.low is None and interval.high is None else f"{value} ({low} to {high})"
