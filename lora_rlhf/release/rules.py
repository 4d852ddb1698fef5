"""What a rule finds in a report, and whether that is enough."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lora_rlhf.evaluation.figures import CATALOGUE
from lora_rlhf.release.policy import ANY, PAIRS, Policy, Rule
from lora_rlhf.system.untrusted import is_number

PASS, FAIL = "pass", "fail"
CENTRES = ("value", "rate", "difference", "mean")  # what the middle of an interval is called
FLAGS, LEFT_OUT_FLAGS = ("audit", "flags"), ("audit", "left_out")
OF_CANDIDATE = ("audit", "reward")  # sections that are about the report's own candidate alone

Path = tuple[str, ...]  # names of the report, from the outermost to the innermost


class Measurement(NamedTuple):
    """A figure as far as the report has it; None is what it has not."""

    value: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        value, low, high = (("?" if number is None else f"{number:.4g}") for number in self)
        return value if self.low is None and self.high is None else f"{value} ({low} to {high})"

    def reversed_from(self, total: float) -> "Measurement":
        """The total less this."""
        ends = (self.value, self.high, self.low)
        return Measurement(*(None if number is None else total - number for number in ends))


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


def judge(policy: Policy, report: Mapping[str, Any], candidate: str, baseline: str) -> list[Row]:
    """A row for each rule, or for each path that a rule's path with `*` stands for, in the policy's order.

    report: as JSON, since a policy names figures by where they stand in it. A path that another rule names in full is
    left to that one.
    """
    values = _Values(report, candidate, baseline)
    named = {rule.path for rule in policy.rules}
    rows = []
    for rule in policy.rules:
        expanded = list(values.expand(rule.path))
        paths = [path for path in expanded if path == rule.path or path not in named]
        if not paths and not expanded:
            paths = [rule.path]
        rows += [_judge(rule, path, values) for path in paths]
    return rows


def passed(rows: Sequence[Row]) -> bool:
    """Whether every rule passed."""
    return bool(rows) and all(row.decision == PASS for row in rows)


def _judge(rule: Rule, path: Path, values: "_Values") -> Row:
    figure = ".".join(path)
    try:
        if rule.at_least is None and rule.at_most is None:
            is_raised, why = values.flag(path)
            finding, decision = (f"raised: {why}", FAIL) if is_raised else ("not raised", PASS)
            return Row(rule.name, figure, rule.needed, finding, decision)
        measurement = values.measure(rule, path)
        end = measurement[Measurement._fields.index(rule.end)]
        if end is None:
            raise Missing("no value" if rule.end == "value" else f"no {rule.end} end of an interval")
    except Missing as gap:
        finding = f"not reported: {gap}"
        if rule.passes_if_missing:
            return Row(rule.name, figure, rule.needed, f"{finding}; passes, as the policy says", PASS)
        return Row(rule.name, figure, rule.needed, finding, FAIL)
    is_enough = (rule.at_least is None or end >= rule.at_least) and (rule.at_most is None or end <= rule.at_most)
    return Row(rule.name, figure, rule.needed, str(measurement), PASS if is_enough else FAIL, *measurement)


@dataclass(frozen=True)
class _Values:
    """What stands in a report, and the two systems that are compared. Methods raise Missing for what is not there."""

    report: Mapping[str, Any]
    candidate: str
    baseline: str

    def expand(self, path: Path) -> Iterator[Path]:
        """The paths that one with `*` stands for in this report; itself where it has none.

        What the audit left out counts: a flag that could not be told is missing, not lowered.
        """
        if ANY not in path:
            yield path
            return
        at = path.index(ANY)
        nodes = [_walk(self.report, path[:at])]
        if path[:at] == FLAGS:
            nodes.append(_walk(self.report, LEFT_OUT_FLAGS))
        for name in dict.fromkeys(name for node in nodes if isinstance(node, dict) for name in node):
            yield from self.expand((*path[:at], name, *path[at + 1 :]))

    def measure(self, rule: Rule, path: Path) -> Measurement:
        """The candidate's figure, as the rule compares it."""
        if len(path) == 1 and path[0] in PAIRS:
            return self._of_pair(("win_rates",), PAIRS[path[0]])
        full = ("figures", *path) if len(path) == 1 and path[0] in CATALOGUE else path
        self._require_own_candidate(full)
        if rule.compare == "paired":
            return self._paired(full)
        node = _walk(self.report, full)
        if isinstance(node, dict) and any("_vs_" in name for name in node):
            return self._of_pair(full, ())
        candidate = self._of_system(full, self.candidate)
        if rule.compare == "value":
            return candidate
        baseline = self._of_system(full, self.baseline)
        return _difference(candidate, baseline) if rule.compare == "difference" else _ratio(candidate, baseline)

    def flag(self, path: Path) -> tuple[bool, str]:
        """(whether it is raised, why)."""
        self._require_own_candidate(path)
        node = self._at(path)
        if isinstance(node, dict) and "raised" not in node and self.candidate in node:
            node = node[self.candidate]
        if not isinstance(node, dict) or not isinstance(node.get("raised"), bool):
            raise Missing(f"{'.'.join(path)} does not say whether it is raised")
        return node["raised"], str(node.get("why", "no reason given"))

    def _of_system(self, path: Path, system: str) -> Measurement:
        """The figure at a path: of a system, where figures stand by system there."""
        node = self._at(path)
        if is_number(node):
            return Measurement(float(node), None, None)
        if isinstance(node, dict) and not any(name in node for name in CENTRES):
            if system not in node:
                raise Missing(f"{'.'.join(path)} has none of {system}")
            node = node[system]
        return _measurement(node, ".".join(path))

    def _of_pair(self, path: Path, inner: Path) -> Measurement:
        """The rate at which the candidate beats the baseline; from the other way round, what is left of 1."""
        pairs = self._at(path)
        if not isinstance(pairs, dict):
            raise Missing(self._reason(path))
        pair = f"{self.candidate}_vs_{self.baseline}"
        if (node := _walk(pairs, (pair, *inner))) is not None:
            return _measurement(node, ".".join(path))
        if (node := _walk(pairs, (f"{self.baseline}_vs_{self.candidate}", *inner))) is not None:
            return _measurement(node, ".".join(path)).reversed_from(1)
        raise Missing(f"{'.'.join((*path, pair, *inner))} is not there")

    def _paired(self, path: Path) -> Measurement:
        """The difference over the same prompts, which a report holds against its own baseline."""
        paired, own_baseline = tuple("paired" if step == "figures" else step for step in path), self.report["baseline"]
        if self.baseline == own_baseline:
            return self._of_system(paired, self.candidate)
        if self.candidate == own_baseline:
            return self._of_system(paired, self.baseline).reversed_from(0)
        raise Missing(f"paired differences are to {own_baseline}, evaluate again with --baseline {self.baseline}")

    def _at(self, path: Path) -> Any:
        node = _walk(self.report, path)
        if node is None:
            raise Missing(self._reason(path))
        return node

    def _require_own_candidate(self, path: Path) -> None:
        if path[0] in OF_CANDIDATE and self.candidate != self.report["candidate"]:
            again = f"evaluate again with --candidate {self.candidate}"
            raise Missing(f"{path[0]} is of {self.report['candidate']}, {again}")

    def _reason(self, path: Path) -> str:
        """Why something is not in a report: what the report says of that, or else that it is not there."""
        of_audit = _walk(self.report, LEFT_OUT_FLAGS) if path[:2] == FLAGS else None
        for left_out in (of_audit, self.report.get("left_out")):
            for name in (*reversed(path), path[0]):
                if isinstance(left_out, dict) and name in left_out:
                    return str(left_out[name])
        return f"{'.'.join(path)} is not there"


def _walk(node: Any, path: Path) -> Any:
    """What stands at the end of a path; None when the path breaks off."""
    for step in path:
        if not isinstance(node, dict) or step not in node:
            return None
        node = node[step]
    return node


def _measurement(node: Any, name: str) -> Measurement:
    if not isinstance(node, dict):
        raise Missing(f"{name} is no figure")
    middle = next((node[centre] for centre in CENTRES if centre in node), None)
    numbers = (float(value) if is_number(value) else None for value in (middle, node.get("low"), node.get("high")))
    measurement = Measurement(*numbers)
    if measurement.value is None:
        raise Missing(f"{name} has no value")
    return measurement


def _difference(first: Measurement, second: Measurement) -> Measurement:
    """Of two figures, as if they were independent: Zou and Donner (Statistics in Medicine 27, 2008), MOVER."""
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    if a is None or b is None:
        return Measurement(None, None, None)
    if a_low is None or a_high is None or b_low is None or b_high is None:
        return Measurement(a - b, None, None)
    return Measurement(a - b, a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low))


def _ratio(first: Measurement, second: Measurement) -> Measurement:
    """Of two figures above 0: the difference of their logarithms. Raises Missing for one that is not above 0."""
    if not first.value or not second.value or min(first.value, second.value) <= 0:
        raise Missing("a ratio needs two values above 0; compare the difference")
    first_logs, second_logs = (
        Measurement(*(None if number is None or number <= 0 else math.log(number) for number in measurement))
        for measurement in (first, second)
    )
    _, low, high = (None if number is None else math.exp(number) for number in _difference(first_logs, second_logs))
    return Measurement(first.value / second.value, low, high)
