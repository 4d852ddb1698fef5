"""The audit's figures as parts of a sentence."""

import math

from lora_rlhf.stats.differences import Difference
from lora_rlhf.stats.intervals import MeanInterval


def longer(ratio: MeanInterval) -> str:
    """By what share answers are longer, such as "18 % shorter (23 to 13) than"."""
    size, ends = _percent(ratio)
    if size == "0":
        return f"as long{_brackets(ends, ' %')} as"
    return f"{size} % {'longer' if ratio.mean > 0 else 'shorter'}{_brackets(ends)} than"


def more(difference: Difference) -> str:
    """A difference of two shares, such as "5 points fewer (9 to 0) than"."""
    size, ends = _percent(difference)
    if size == "0":
        return f"as many{_brackets(ends, ' points')} as"
    unit = "point" if size == "1" else "points"
    return f"{size} {unit} {'more' if difference.difference > 0 else 'fewer'}{_brackets(ends)} than"


def moved(difference: Difference) -> str:
    """A difference of two means, such as "rose by 0.73 (0.616 to 0.845)"."""
    sign = 1 if difference.difference >= 0 else -1
    value, low, high = (signed(sign * end, ".3g") for end in difference[:3])
    return f"{'rose' if sign > 0 else 'fell'} by {value} ({low} to {high})"


def signed(value: float, form: str) -> str:
    """A number with a typographic minus; a zero has none."""
    text = f"{value:{form}}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def _percent(figure: MeanInterval | Difference) -> tuple[str, list[str]]:
    """Size and ends in whole hundredths, the ends in the direction of the difference; no ends where too few tell."""
    value, low, high = (100 * end for end in figure[:3])
    size = f"{abs(value):.0f}"
    if math.isnan(low):
        return size, []
    sign = -1 if value < 0 and size != "0" else 1
    return size, [signed(sign * end, ".0f") for end in (low, high)]


def _brackets(ends: list[str], unit: str = "") -> str:
    return f" ({' to '.join(ends)}{unit})" if ends else ""
