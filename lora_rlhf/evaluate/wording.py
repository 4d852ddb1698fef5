"""Figures and names of systems as people read them."""

from collections.abc import Mapping, Sequence
from typing import Any

from lora_rlhf.configs.catalogue import BASE, STAGES
from lora_rlhf.evaluate.figures import CATALOGUE

NAMES = {BASE: "the base", **{stage.role: stage.model_name for stage in STAGES}}
JUDGES = {
    "gold": "exact gold score",
    "reward": "run's reward model",
    "human": "rankings by people",
    "local": "local model as judge",
    "endpoint": "model behind an API",
}
NOTHING = "\N{EN DASH}"


def name_of(system: str) -> str:
    """A system in a sentence."""
    return NAMES.get(system, system)


def listed(names: Sequence[str]) -> str:
    """Several names in a sentence."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def percent(rate: Mapping[str, Any]) -> str:
    """A rate with its interval."""
    if rate["rate"] is None:
        return NOTHING
    if rate["low"] is None:
        return f"{100 * rate['rate']:.1f} %"
    return f"{100 * rate['rate']:.1f} % ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})"


def points(row: Mapping[str, Any]) -> str:
    """A difference of two shares with its interval, in points."""
    return f"{signed(100 * row['difference'])} points ({signed(100 * row['low'])} to {signed(100 * row['high'])})"


def signed(value: float) -> str:
    """A difference, its sign always there."""
    text = f"{value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def number(value: float | None, unit: str = "", like: float | None = None) -> str:
    """A value in its catalogue unit: shares in percent, the rest with as many digits as `like`, or itself, deserves."""
    if value is None:
        return NOTHING
    size = abs(value if like is None else like)
    digits = 1 if unit == "share" or size >= 9.9995 else 3
    text = f"{100 * value if unit == 'share' else value:.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", "\N{MINUS SIGN}") + (" %" if unit == "share" else "")


def p_value(p: float | None) -> str:
    """How probable so large a difference is by chance."""
    return NOTHING if p is None else "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def difference(name: str, row: Mapping[str, Any]) -> str:
    """A paired difference of the catalogue's figure, a share's in points."""
    if CATALOGUE[name].unit == "share":
        return f"{signed(100 * row['difference'])} points"
    text = number(row["difference"])
    return f"+{text}" if row["difference"] > 0 else text


def titled(name: str) -> str:
    """A figure's title, with its unit where that says more."""
    kind = CATALOGUE[name]
    return kind.title if kind.unit == "share" or kind.unit in kind.title else f"{kind.title} ({kind.unit})"


def figure(name: str, row: Mapping[str, Any]) -> str:
    """A figure of the catalogue with its interval."""
    return interval(row, CATALOGUE[name].unit)


def interval(row: Mapping[str, Any], unit: str = "") -> str:
    """A value with its interval, in that unit."""
    if row["value"] is None:
        return NOTHING
    if row["low"] is None:
        return number(row["value"], unit)
    low, high = (number(row[end], unit, row["value"]).removesuffix(" %") for end in ("low", "high"))
    return f"{number(row['value'], unit)} ({low} to {high})"


def change(name: str, row: Mapping[str, Any] | None) -> str:
    """What a paired difference says: "better", "worse", "higher", "lower"; empty where it may be chance."""
    if row is None or row["low"] is None or row["low"] <= 0 <= row["high"]:
        return ""
    up, better = row["difference"] > 0, CATALOGUE[name].better
    if better == "neither":
        return "higher" if up else "lower"
    return "better" if up == (better == "higher") else "worse"
