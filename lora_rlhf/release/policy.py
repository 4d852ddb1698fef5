"""A gate's policy: reads the rules of a YAML file, and names all faults at once."""

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from lora_rlhf.configs.values import read_yaml
from lora_rlhf.evaluation.figures import CATALOGUE
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.plain_files import read_file
from lora_rlhf.system.untrusted import is_number, quote

PACKAGED_POLICY = Path(__file__).parent / "gate.yaml"
COMPARISONS = ("value", "difference", "ratio", "paired")
BOUNDS = ("at_least", "at_most", "not_raised")
ENDS = ("low", "high", "value")
PAIR_FIGURES = {
    "win_rate": (),
    "win_rate_length_controlled": ("length_controlled",),
}  # {figure of two systems: its place in their section}
ANY = "*"  # in a path: every name that the report has at this place
# The sections of a report that hold figures: a dotted path begins with one of them.
SECTIONS = ("figures", "paired", "categories", "domains", "win_rates", "win_rates_best_temperature", "reward", "audit")
POLICY_KEYS = ("win_rate", "guards", "seen_in_training")
RULE_KEYS = ("figure", "compare", *BOUNDS, "end", "unless_missing")

Compare = Literal["value", "difference", "ratio", "paired"]
End = Literal["low", "high", "value"]


@dataclass(frozen=True)
class Rule:
    """One figure of the candidate and its bound.

    path: the figure's place in a report, with `*` for every name. compare: the candidate's value, its difference or
    ratio to the baseline's, or the paired difference. at_least, at_most: one of them, or neither for a flag that must
    not be raised. end: the end of the 95 % interval that is compared with the bound, or the value itself.
    """

    name: str
    path: tuple[str, ...]
    compare: Compare = "value"
    at_least: float | None = None
    at_most: float | None = None
    end: End = "value"
    passes_if_missing: bool = False

    @property
    def needed(self) -> str:
        """The bound, in words."""
        if self.at_least is None and self.at_most is None:
            return "not raised"
        direction, bound = ("at least", self.at_least) if self.at_least is not None else ("at most", self.at_most)
        comparison = {"value": "", "difference": "difference ", "ratio": "ratio ", "paired": "paired difference "}[
            self.compare
        ]
        end = {"low": "low end ", "high": "high end ", "value": ""}[self.end]
        return f"{comparison}{end}{direction} {bound:g}"


@dataclass(frozen=True)
class Policy:
    """All rules, the win rate's first. `max_share_seen`: the largest allowed share of prompts seen in training."""

    rules: tuple[Rule, ...]
    max_share_seen: float
    passes_if_unknown: bool
    source: str  # the file's own text, for the record


def read_gate_policy(path: Path) -> Policy:
    """The policy of a YAML file. Raises UserError with all its faults, one in a line."""
    values = read_yaml(path, follow_links=True)
    faults = [
        f"unknown key {quote(key)}{_suggestion(key, POLICY_KEYS)}; the keys are {', '.join(POLICY_KEYS)}"
        for key in values.keys() - set(POLICY_KEYS)
    ]
    rules = []
    if not isinstance(values.get("win_rate"), dict):
        faults.append("win_rate is missing: a rule such as win_rate: {at_least: 0.5, end: low}")
    else:
        rules.append(_parse_rule({"figure": "win_rate", **values["win_rate"]}, "win_rate", faults))
    guards = values.get("guards")
    if not isinstance(guards, list) or not guards:
        faults.append("guards is missing: a list of rules, each with a figure that must not get worse")
    else:
        rules += [_parse_rule(guard, f"guard {number}", faults) for number, guard in enumerate(guards, start=1)]
    max_share_seen, passes_if_unknown = _parse_seen_limits(values.get("seen_in_training"), faults)
    if faults:
        raise UserError("\n".join(f"{path}: {fault}" for fault in faults))
    return Policy(
        tuple(rule for rule in rules if rule),
        max_share_seen,
        passes_if_unknown,
        read_file(path, follow_links=True).decode(),
    )


def _parse_rule(values: Any, title: str, faults: list[str]) -> Rule | None:
    """The rule; or None, after adding its faults to `faults`."""
    if not isinstance(values, dict):
        faults.append(f"{title} is {quote(values)}, expected keys and values such as figure: length")
        return None
    path = _parse_path(values.get("figure"))
    name = ".".join(path)
    rule_title = f"{title} ({name})" if path and title != name else title
    rule_faults = [f"unknown key {quote(key)}{_suggestion(key, RULE_KEYS)}" for key in values if key not in RULE_KEYS]
    rule_faults += [] if path else [f"figure is {quote(values.get('figure'))}, expected a name or a dotted path"]
    rule_faults += _path_faults(path)
    bounds = [key for key in BOUNDS if key in values]
    if len(bounds) != 1:
        rule_faults.append(f"one of {', '.join(BOUNDS)} is needed, found {' and '.join(bounds) or 'none'}")
    for key in set(bounds) & {"at_least", "at_most"}:
        if not is_number(values[key]) or not math.isfinite(values[key]):
            rule_faults.append(f"{key} is {quote(values[key])}, expected a number")
    if values.get("not_raised", True) is not True:
        rule_faults.append(f"not_raised is {quote(values['not_raised'])}, expected true")
    for key, allowed in (("compare", COMPARISONS), ("end", ENDS), ("unless_missing", ("pass",))):
        if key in values and values[key] not in allowed:
            rule_faults.append(f"{key} is {quote(values[key])}, expected {' or '.join(allowed)}")
    if bounds == ["not_raised"] and ("end" in values or "compare" in values):
        rule_faults.append("not_raised takes no compare and no end: a flag is raised or not")
    if name in PAIR_FIGURES and "compare" in values:
        rule_faults.append("it compares two systems already: leave compare out")
    if rule_faults:
        faults += [f"{rule_title}: {fault}" for fault in rule_faults]
        return None
    return Rule(
        name,
        path,
        values.get("compare", "value"),
        at_least=values.get("at_least"),
        at_most=values.get("at_most"),
        # with this end, the whole interval must be within the bound
        end=values.get("end", {"at_least": "low", "at_most": "high"}.get(bounds[0], "value")),
        passes_if_missing="unless_missing" in values,
    )


def _parse_path(figure: Any) -> tuple[str, ...]:
    """The names in a figure's path; empty if it is no path. A list may be given for names that contain dots."""
    names = figure.split(".") if isinstance(figure, str) else figure
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        return ()
    return tuple(names)


def _path_faults(path: tuple[str, ...]) -> list[str]:
    """What is wrong with the names of a path, as far as that is known without a report."""
    if not path:
        return []
    if len(path) == 1 and path[0] not in CATALOGUE and path[0] not in SECTIONS:
        return [f"unknown figure {quote(path[0])}{_suggestion(path[0], [*CATALOGUE, *SECTIONS])}"]
    if len(path) > 1 and path[0] not in SECTIONS:
        suggestion = _suggestion(path[0], SECTIONS)
        return [f"{quote(path[0])} is no section of a report{suggestion}; they are {', '.join(SECTIONS)}"]
    for section, figure in pairwise(path):
        if section in ("figures", "paired") and figure not in CATALOGUE and figure != ANY:
            return [f"unknown figure {quote(figure)}{_suggestion(figure, CATALOGUE)}"]
    return []


def _parse_seen_limits(values: Any, faults: list[str]) -> tuple[float, bool]:
    """(largest share of prompts seen in training, whether data that could not be compared pass)."""
    if values is None:
        return 0.0, False
    section = "seen_in_training"
    if not isinstance(values, dict):
        faults.append(f"{section} is {quote(values)}, expected {{at_most: SHARE, unknown: refuse or pass}}")
        return 0.0, False
    allowed_keys = ("at_most", "unknown")
    faults += [
        f"{section}: unknown key {quote(key)}{_suggestion(key, allowed_keys)}"
        for key in values
        if key not in allowed_keys
    ]
    share, unknown = values.get("at_most", 0.0), values.get("unknown", "refuse")
    if not is_number(share) or not 0 <= share <= 1:
        faults.append(f"{section}: at_most is {quote(share)}, expected a share from 0 to 1")
    if unknown not in ("refuse", "pass"):
        faults.append(f"{section}: unknown is {quote(unknown)}, expected refuse or pass")
    return share, unknown == "pass"


def _suggestion(name: Any, known_names: Iterable[str]) -> str:
    """A question with the most similar known name; empty if none is similar."""
    similar_names = difflib.get_close_matches(str(name), list(known_names), n=1, cutoff=0.6)
    return f"; did you mean {similar_names[0]}?" if similar_names else ""
