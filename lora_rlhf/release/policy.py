"""A gate's policy: the rules of a YAML file, read with every fault named at once."""

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
from lora_rlhf.system.untrusted import is_number, quote

PACKAGED = Path(__file__).parent / "gate.yaml"
COMPARE = ("value", "difference", "ratio", "paired")
BOUNDS = ("at_least", "at_most", "not_raised")
ENDS = ("low", "high", "value")
PAIRS = {"win_rate": (), "win_rate_length_controlled": ("length_controlled",)}  # figures of two systems, and where
ANY = "*"  # in a path: every name that the report has there
# What a dotted path may begin with: the sections of a report that hold figures.
SECTIONS = ("figures", "paired", "categories", "win_rates", "win_rates_best_temperature", "reward", "audit")
TOP = ("win_rate", "guards", "seen_in_training")
KEYS = ("figure", "compare", *BOUNDS, "end", "unless_missing")

Compare = Literal["value", "difference", "ratio", "paired"]
End = Literal["low", "high", "value"]


@dataclass(frozen=True)
class Rule:
    """One figure of the candidate and what it must be.

    path: where the figure stands in a report, with `*` for every name. compare: the candidate's own value, its
    difference or ratio to the baseline's, or the paired difference. at_least, at_most: one of them, or neither for a
    flag that must not be raised. end: which end of the 95 % interval must keep to it, or the value itself.
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
        """What this asks for, in words."""
        if self.at_least is None and self.at_most is None:
            return "not raised"
        word, bound = ("at least", self.at_least) if self.at_least is not None else ("at most", self.at_most)
        what = {"value": "", "difference": "difference ", "ratio": "ratio ", "paired": "paired difference "}[
            self.compare
        ]
        end = {"low": "low end ", "high": "high end ", "value": ""}[self.end]
        return f"{what}{end}{word} {bound:g}"


@dataclass(frozen=True)
class Policy:
    """All rules, the win rate's first. `most_seen`: the largest share of prompts that training data may hold."""

    rules: tuple[Rule, ...]
    most_seen: float
    passes_if_unknown: bool
    source: str  # the file's own text, for the record


def read_policy(path: Path) -> Policy:
    """The policy of a YAML file. UserError with all its faults, one a line."""
    values = read_yaml(path)
    faults = [
        f"unknown key {quote(key)}{_nearest(key, TOP)}; the keys are {', '.join(TOP)}"
        for key in values.keys() - set(TOP)
    ]
    rules = []
    if not isinstance(values.get("win_rate"), dict):
        faults.append("win_rate is missing: a rule such as win_rate: {at_least: 0.5, end: low}")
    else:
        rules.append(_rule({"figure": "win_rate", **values["win_rate"]}, "win_rate", faults))
    guards = values.get("guards")
    if not isinstance(guards, list) or not guards:
        faults.append("guards is missing: a list of rules, each with a figure that must not get worse")
    else:
        rules += [_rule(guard, f"guard {number}", faults) for number, guard in enumerate(guards, start=1)]
    most_seen, unknown = _seen(values.get("seen_in_training"), faults)
    if faults:
        raise UserError("\n".join(f"{path}: {fault}" for fault in faults))
    return Policy(tuple(rule for rule in rules if rule), most_seen, unknown, path.read_text(encoding="utf-8"))


def _rule(given: Any, title: str, faults: list[str]) -> Rule | None:
    """The rule, or None after adding what is wrong with it to the faults."""
    if not isinstance(given, dict):
        faults.append(f"{title} is {quote(given)}, expected keys and values such as figure: length")
        return None
    path = _path(given.get("figure"))
    name = ".".join(path)
    where = f"{title} ({name})" if path and title != name else title
    own_faults = [f"unknown key {quote(key)}{_nearest(key, KEYS)}" for key in given if key not in KEYS]
    own_faults += [] if path else [f"figure is {quote(given.get('figure'))}, expected a name or a dotted path"]
    own_faults += _unknown_figure(path)
    bounds = [key for key in BOUNDS if key in given]
    if len(bounds) != 1:
        own_faults.append(f"one of {', '.join(BOUNDS)} is needed, found {' and '.join(bounds) or 'none'}")
    for key in set(bounds) & {"at_least", "at_most"}:
        if not is_number(given[key]) or not math.isfinite(given[key]):
            own_faults.append(f"{key} is {quote(given[key])}, expected a number")
    if given.get("not_raised", True) is not True:
        own_faults.append(f"not_raised is {quote(given['not_raised'])}, expected true")
    for key, known in (("compare", COMPARE), ("end", ENDS), ("unless_missing", ("pass",))):
        if key in given and given[key] not in known:
            own_faults.append(f"{key} is {quote(given[key])}, expected {' or '.join(known)}")
    if bounds == ["not_raised"] and ("end" in given or "compare" in given):
        own_faults.append("not_raised takes no compare and no end: a flag is raised or not")
    if name in PAIRS and "compare" in given:
        own_faults.append("it compares two systems already: leave compare out")
    if own_faults:
        faults += [f"{where}: {fault}" for fault in own_faults]
        return None
    return Rule(
        name,
        path,
        given.get("compare", "value"),
        at_least=given.get("at_least"),
        at_most=given.get("at_most"),
        # the end that makes the whole interval keep to the bound
        end=given.get("end", {"at_least": "low", "at_most": "high"}.get(bounds[0], "value")),
        passes_if_missing="unless_missing" in given,
    )


def _path(figure: Any) -> tuple[str, ...]:
    """The steps of a figure's place; a list instead of a dotted path is for names that hold dots."""
    steps = figure.split(".") if isinstance(figure, str) else figure
    if not isinstance(steps, list) or not all(isinstance(step, str) and step.strip() for step in steps):
        return ()
    return tuple(steps)


def _unknown_figure(path: tuple[str, ...]) -> list[str]:
    """What is wrong with the names of a path, as far as they are known before there is a report."""
    if not path:
        return []
    if len(path) == 1 and path[0] not in CATALOGUE and path[0] not in SECTIONS:
        return [f"unknown figure {quote(path[0])}{_nearest(path[0], [*CATALOGUE, *SECTIONS])}"]
    if len(path) > 1 and path[0] not in SECTIONS:
        return [
            f"{quote(path[0])} is no section of a report{_nearest(path[0], SECTIONS)}; they are {', '.join(SECTIONS)}"
        ]
    for section, figure in pairwise(path):
        if section in ("figures", "paired") and figure not in CATALOGUE and figure != ANY:
            return [f"unknown figure {quote(figure)}{_nearest(figure, CATALOGUE)}"]
    return []


def _seen(given: Any, faults: list[str]) -> tuple[float, bool]:
    """(largest share of prompts seen in training, whether data that could not be compared are let pass)."""
    if given is None:
        return 0.0, False
    place = "seen_in_training"
    if not isinstance(given, dict):
        faults.append(f"{place} is {quote(given)}, expected {{at_most: SHARE, unknown: refuse or pass}}")
        return 0.0, False
    known = ("at_most", "unknown")
    faults += [f"{place}: unknown key {quote(key)}{_nearest(key, known)}" for key in given if key not in known]
    share, unknown = given.get("at_most", 0.0), given.get("unknown", "refuse")
    if not is_number(share) or not 0 <= share <= 1:
        faults.append(f"{place}: at_most is {quote(share)}, expected a share from 0 to 1")
    if unknown not in ("refuse", "pass"):
        faults.append(f"{place}: unknown is {quote(unknown)}, expected refuse or pass")
    return share, unknown == "pass"


def _nearest(name: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
