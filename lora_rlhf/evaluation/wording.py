"""Texts for figures of the catalogue, systems and judges."""

from lora_rlhf.configs.catalogue import BASE, STAGES
from lora_rlhf.evaluation.figures import CATALOGUE, Figure, Interval, Paired
from lora_rlhf.evaluation.report_model import Rate
from lora_rlhf.render.wording import NOTHING, number_text, signed_text

NAMES = {BASE: "the base", **{stage.role: stage.model_name for stage in STAGES}}
JUDGES = {
    "gold": "exact gold score",
    "reward": "run's reward model",
    "human": "rankings by people",
    "local": "local model as judge",
    "endpoint": "model behind an API",
}


def system_text(system: str) -> str:
    """A system's name for a sentence, for example "the base"."""
    return NAMES.get(system, system)


def judge_text(name: str) -> str:
    """A judge's name for a sentence."""
    return JUDGES.get(name, name)


def rate_text(rate: Rate | None) -> str:
    """A rate in percent, with its interval."""
    if rate is None or rate.rate is None:
        return NOTHING
    if rate.low is None or rate.high is None:
        return f"{100 * rate.rate:.1f} %"
    return f"{100 * rate.rate:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f})"


def points_text(interval: Interval) -> str:
    """A difference of two shares with its interval, in points."""
    difference, low, high = (signed_text(100 * end) for end in interval)
    return f"{difference} points ({low} to {high})"


def difference_text(name: str, row: Paired) -> str:
    """A figure's paired difference; that of a share is in points."""
    if row.difference is None:
        return NOTHING
    if CATALOGUE[name].unit == "share":
        return f"{signed_text(100 * row.difference)} points"
    text = number_text(row.difference)
    return f"+{text}" if row.difference > 0 else text


def title_with_unit(name: str) -> str:
    """A figure's title, with its unit unless it is a share or the title names the unit."""
    measure = CATALOGUE[name]
    is_clear = measure.unit == "share" or measure.unit in measure.title
    return measure.title if is_clear else f"{measure.title} ({measure.unit})"


def figure_text(name: str, row: Figure | None) -> str:
    """The value of the figure `name` with its interval, in its unit."""
    return interval_text(row, CATALOGUE[name].unit)


def interval_text(row: Figure | None, unit: str = "") -> str:
    """A value with its interval, in the given unit."""
    if row is None or row.value is None:
        return NOTHING
    if row.low is None or row.high is None:
        return number_text(row.value, unit)
    low, high = (number_text(end, unit, row.value).removesuffix(" %") for end in (row.low, row.high))
    return f"{number_text(row.value, unit)} ({low} to {high})"


def change_word(name: str, row: Paired | None) -> str:
    """A significant difference in a word: "better", "worse", "higher" or "lower"; empty if it is not significant."""
    if row is None or row.interval is None:
        return ""
    middle, low, high = row.interval
    return "" if low <= 0 <= high else direction_word(name, middle > 0)


def direction_word(name: str, is_up: bool) -> str:
    """A figure's move in a word: "better" or "worse"; "higher" or "lower" if no direction is better."""
    better = CATALOGUE[name].better
    if better == "neither":
        return "higher" if is_up else "lower"
    return "better" if is_up == (better == "higher") else "worse"
