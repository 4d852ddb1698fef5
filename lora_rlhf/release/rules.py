"""Applies the rules of a policy to a report."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lora_rlhf.evaluation.figures import CATALOGUE
from lora_rlhf.release.policy import ANY, PAIR_FIGURES, Policy, Rule
from lora_rlhf.system.untrusted import is_number

PASS, FAIL = "pass", "fail"
CENTRE_KEYS = ("value", "rate", "difference", "mean")  # keys of an interval's middle
FLAGS_PATH, LEFT_OUT_FLAGS = ("audit", "flags"), ("audit", "left_out")
CANDIDATE_SECTIONS = ("audit", "reward")  # sections that are about the report's own candidate alone

Path = tuple[str, ...]  # names of the report, from the outermost to the innermost


class Measurement(NamedTuple):
    """A figure with its interval; None for a part that the report does not have."""

    value: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        value, low, high = (("?" if number is None else f"{number:.4g}") for number in self)
        return value if self.low is None and self.high is None else f"{value} ({low} to {high})"

    def subtracted_from(self, total: float) -> "Measurement":
        """`total` minus this measurement."""
        reversed_ends = (self.value, self.high, self.low)
        return Measurement(*(None if number is None else total - number for number in reversed_ends))


class Missing(Exception):
    """The report does not hold the figure of a rule; the message names it."""


@dataclass(frozen=True)
class Row:
    """One line of the reason table. is_let_pass: the report does not hold the figure, and the policy lets that pass."""

    rule: str
    figure: str
    needed: str
    found: str
    decision: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    is_let_pass: bool = False


def apply_rules(policy: Policy, report: Mapping[str, Any], candidate: str, baseline: str) -> list[Row]:
    """A row for each rule, in the policy's order; a rule whose path has `*` gives a row for each path that it matches.

    report: as JSON, because a policy names figures by their place in it. A path that another rule names in full is
    judged by that rule only.
    """
    report_values = _ReportValues(report, candidate, baseline)
    full_paths = {rule.path for rule in policy.rules}
    rows = []
    for rule in policy.rules:
        matching_paths = list(report_values.matching_paths(rule.path))
        paths = [path for path in matching_paths if path == rule.path or path not in full_paths]
        if not matching_paths:
            paths = [rule.path]  # the report has no such figure: the row says so
        rows += [_apply_rule(rule, path, report_values) for path in paths]
    return rows


def is_passed(rows: Sequence[Row]) -> bool:
    """Whether there are rows, and all of them pass."""
    return bool(rows) and all(row.decision == PASS for row in rows)


def _apply_rule(rule: Rule, path: Path, report_values: "_ReportValues") -> Row:
    """The row of a rule for one path."""
    figure = ".".join(path)
    try:
        if rule.at_least is None and rule.at_most is None:
            is_raised, reason = report_values.flag_state(path)
            finding, decision = (f"raised: {reason}", FAIL) if is_raised else ("not raised", PASS)
            return Row(rule.name, figure, rule.needed, finding, decision)
        measurement = report_values.compared_figure(rule, path)
        end = measurement[Measurement._fields.index(rule.end)]
        if end is None:
            raise Missing("no value" if rule.end == "value" else f"no {rule.end} end of an interval")
    except Missing as missing:
        finding = f"not reported: {missing}"
        if rule.passes_if_missing:
            finding += "; passes, as the policy says"
            return Row(rule.name, figure, rule.needed, finding, PASS, is_let_pass=True)
        return Row(rule.name, figure, rule.needed, finding, FAIL)
    is_enough = (rule.at_least is None or end >= rule.at_least) and (rule.at_most is None or end <= rule.at_most)
    return Row(rule.name, figure, rule.needed, str(measurement), PASS if is_enough else FAIL, *measurement)


@dataclass(frozen=True)
class _ReportValues:
    """The values of a report for the two compared systems. Methods raise Missing if a value is not in the report."""

    report: Mapping[str, Any]
    candidate: str
    baseline: str

    def matching_paths(self, path: Path) -> Iterator[Path]:
        """Yields the paths that a path with `*` matches in this report; a path without `*` itself.

        Flags that the audit left out are matched too: a flag that could not be computed is missing, which is not the
        same as not raised.
        """
        if ANY not in path:
            yield path
            return
        position = path.index(ANY)
        nodes = [_value_at_path(self.report, path[:position])]
        if path[:position] == FLAGS_PATH:
            nodes.append(_value_at_path(self.report, LEFT_OUT_FLAGS))
        for name in dict.fromkeys(name for node in nodes if isinstance(node, dict) for name in node):
            yield from self.matching_paths((*path[:position], name, *path[position + 1 :]))

    def compared_figure(self, rule: Rule, path: Path) -> Measurement:
        """The candidate's figure, compared as the rule says."""
        if len(path) == 1 and path[0] in PAIR_FIGURES:
            return self._pair_figure(("win_rates",), PAIR_FIGURES[path[0]])
        full_path = ("figures", *path) if len(path) == 1 and path[0] in CATALOGUE else path
        self._require_report_candidate(full_path)
        if rule.compare == "paired":
            return self._paired_difference(full_path)
        node = _value_at_path(self.report, full_path)
        if isinstance(node, dict) and any("_vs_" in name for name in node):
            return self._pair_figure(full_path, ())
        candidate = self._system_figure(full_path, self.candidate)
        if rule.compare == "value":
            return candidate
        baseline = self._system_figure(full_path, self.baseline)
        return (
            _difference_interval(candidate, baseline)
            if rule.compare == "difference"
            else _ratio_interval(candidate, baseline)
        )

    def flag_state(self, path: Path) -> tuple[bool, str]:
        """(whether the flag is raised, why)."""
        self._require_report_candidate(path)
        node = self._value_at(path)
        if isinstance(node, dict) and "raised" not in node and self.candidate in node:
            node = node[self.candidate]
        if not isinstance(node, dict) or not isinstance(node.get("raised"), bool):
            raise Missing(f"{'.'.join(path)} does not say whether it is raised")
        return node["raised"], str(node.get("why", "no reason given"))

    def _system_figure(self, path: Path, system: str) -> Measurement:
        """The figure at a path; if the report has one for each system there, the system's."""
        node = self._value_at(path)
        if is_number(node):
            return Measurement(float(node), None, None)
        if isinstance(node, dict) and not any(name in node for name in CENTRE_KEYS):
            if system not in node:
                raise Missing(f"{'.'.join(path)} has none of {system}")
            node = node[system]
        return _read_measurement(node, ".".join(path))

    def _pair_figure(self, path: Path, path_in_pair: Path) -> Measurement:
        """The rate at which the candidate beats the baseline: as reported, or 1 minus the reverse rate."""
        pairs = self._value_at(path)
        if not isinstance(pairs, dict):
            raise Missing(self._missing_reason(path))
        pair = f"{self.candidate}_vs_{self.baseline}"
        if (node := _value_at_path(pairs, (pair, *path_in_pair))) is not None:
            return _read_measurement(node, ".".join(path))
        if (node := _value_at_path(pairs, (f"{self.baseline}_vs_{self.candidate}", *path_in_pair))) is not None:
            return _read_measurement(node, ".".join(path)).subtracted_from(1)
        raise Missing(f"{'.'.join((*path, pair, *path_in_pair))} is not there")

    def _paired_difference(self, path: Path) -> Measurement:
        """The difference over the same prompts. A report holds such differences to its own baseline only."""
        paired_path, report_baseline = (
            tuple("paired" if name == "figures" else name for name in path),
            self.report["baseline"],
        )
        if self.baseline == report_baseline:
            return self._system_figure(paired_path, self.candidate)
        if self.candidate == report_baseline:
            return self._system_figure(paired_path, self.baseline).subtracted_from(0)
        raise Missing(f"paired differences are to {report_baseline}, evaluate again with --baseline {self.baseline}")

    def _value_at(self, path: Path) -> Any:
        node = _value_at_path(self.report, path)
        if node is None:
            raise Missing(self._missing_reason(path))
        return node

    def _require_report_candidate(self, path: Path) -> None:
        """Raises Missing if the section is about the report's candidate only, and that is another system."""
        if path[0] in CANDIDATE_SECTIONS and self.candidate != self.report["candidate"]:
            way_out = f"evaluate again with --candidate {self.candidate}"
            raise Missing(f"{path[0]} is of {self.report['candidate']}, {way_out}")

    def _missing_reason(self, path: Path) -> str:
        """Why a value is missing: the report's reason, or else that it is not there."""
        left_out_flags = _value_at_path(self.report, LEFT_OUT_FLAGS) if path[:2] == FLAGS_PATH else None
        for left_out in (left_out_flags, self.report.get("left_out")):
            for name in (*reversed(path), path[0]):
                if isinstance(left_out, dict) and name in left_out:
                    return str(left_out[name])
        return f"{'.'.join(path)} is not there"


def _value_at_path(node: Any, path: Path) -> Any:
    """The value at the end of a path; None if a name of it is missing."""
    for name in path:
        if not isinstance(node, dict) or name not in node:
            return None
        node = node[name]
    return node


def _read_measurement(node: Any, name: str) -> Measurement:
    """The measurement in a node of the report. Raises Missing if it has no value."""
    if not isinstance(node, dict):
        raise Missing(f"{name} is no figure")
    key = next((node[key] for key in CENTRE_KEYS if key in node), None)
    numbers = (float(value) if is_number(value) else None for value in (key, node.get("low"), node.get("high")))
    measurement = Measurement(*numbers)
    if measurement.value is None:
        raise Missing(f"{name} has no value")
    return measurement


def _difference_interval(first: Measurement, second: Measurement) -> Measurement:
    """First minus second, as if both were independent: MOVER (Zou and Donner, Statistics in Medicine 27, 2008)."""
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    if a is None or b is None:
        return Measurement(None, None, None)
    if a_low is None or a_high is None or b_low is None or b_high is None:
        return Measurement(a - b, None, None)
    return Measurement(a - b, a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low))


def _ratio_interval(first: Measurement, second: Measurement) -> Measurement:
    """First over second, from the difference of logarithms. Raises Missing unless both are above 0."""
    if not first.value or not second.value or min(first.value, second.value) <= 0:
        raise Missing("a ratio needs two values above 0; compare the difference")
    first_logs, second_logs = (
        Measurement(*(None if number is None or number <= 0 else math.log(number) for number in measurement))
        for measurement in (first, second)
    )
    _, low, high = (
        None if number is None else math.exp(number) for number in _difference_interval(first_logs, second_logs)
    )
    return Measurement(first.value / second.value, low, high)
