"""Figures of the catalogue, systems and judges as people read them."""

from lora_rlhf.configs.catalogue import BASE, STAGES
from lora_rlhf.evaluation.figures import CATALOGUE, Figure, Interval, Paired
from lora_rlhf.evaluation.report_model import Rate
from lora_rlhf.render.wording import NOTHING, number, signed

NAMES = {BASE: "the base", **{stage.role: stage.model_name for stage in STAGES}}
JUDGES = {
    "gold": "exact gold score",
    "reward": "run's reward model",
    "human": "rankings by people",
    "local": "local model as judge",
    "endpoint": "model behind an API",
}


def name_of(system: str) -> str:
    """A system in a sentence."""
    return NAMES.get(system, system)


def judge_of(name: str) -> str:
    """A judge in a sentence."""
    return JUDGES.get(name, name)


def percent(rate: Rate | None) -> str:
    """A rate with its interval."""
    if rate is None or rate.rate is None:
        return NOTHING
    if rate.low is None or rate.high is None:
        return f"{100 * rate.rate:.1f} %"
    return f"{100 * rate.rate:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f})"


def points(interval: Interval) -> str:
    """A difference of two shares with its interval, in points."""
    difference, low, high = (signed(100 * end) for end in interval)
    return f"{difference} points ({low} to {high})"


def difference(name: str, row: Paired) -> str:
    """A paired difference of the catalogue's figure, a share's in points."""
    if row.difference is None:
        return NOTHING
    if CATALOGUE[name].unit == "share":
        return f"{signed(100 * row.difference)} points"
    text = number(row.difference)
    return f"+{text}" if row.difference > 0 else text


def titled(name: str) -> str:
    """A figure's title, with its unit where that says more."""
    measure = CATALOGUE[name]
    is_clear = measure.unit == "share" or measure.unit in measure.title
    return measure.title if is_clear else f"{measure.title} ({measure.unit})"


def figure(name: str, row: Figure | None) -> str:
    """A figure of the catalogue with its interval."""
    return interval(row, CATALOGUE[name].unit)


def interval(row: Figure | None, unit: str = "") -> str:
    """A value with its interval, in that unit."""
    if row is None or row.value is None:
        return NOTHING
    if row.low is None or row.high is None:
        return number(row.value, unit)
    low, high = (number(end, unit, row.value).removesuffix(" %") for end in (row.low, row.high))
    return f"{number(row.value, unit)} ({low} to {high})"


def change(name: str, row: Paired | None) -> str:
    """What a paired difference says: "better", "worse", "higher", "lower"; empty where it may be chance."""
    if row is None or row.interval is None:
        return ""
    middle, low, high = row.interval
    return "" if low <= 0 <= high else direction(name, middle > 0)


def direction(name: str, is_up: bool) -> str:
    """What it means that a figure went up or down: "better", "worse"; "higher", "lower" where neither is either."""
    better = CATALOGUE[name].better
    if better == "neither":
        return "higher" if is_up else "lower"
    return "better" if is_up == (better == "higher") else "worse"
