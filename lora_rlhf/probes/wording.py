"""Texts for the audit's figures, as parts of a sentence."""

import math

from lora_rlhf.stats.differences import Difference
from lora_rlhf.stats.intervals import MeanInterval


def length_change_text(ratio: MeanInterval) -> str:
    """A change of length, for example "18 % shorter (23 to 13) than"."""
    size, ends = _percent_texts(ratio)
    if size == "0":
        return f"as long{_bracket_text(ends, ' %')} as"
    return f"{size} % {'longer' if ratio.mean > 0 else 'shorter'}{_bracket_text(ends)} than"


def share_change_text(difference: Difference) -> str:
    """A difference of two shares, for example "5 points fewer (9 to 0) than"."""
    size, ends = _percent_texts(difference)
    if size == "0":
        return f"as many{_bracket_text(ends, ' points')} as"
    unit = "point" if size == "1" else "points"
    return f"{size} {unit} {'more' if difference.difference > 0 else 'fewer'}{_bracket_text(ends)} than"


def mean_change_text(difference: Difference) -> str:
    """A difference of two means, for example "rose by 0.73 (0.616 to 0.845)"."""
    sign = 1 if difference.difference >= 0 else -1
    value, low, high = (format_signed(sign * end, ".3g") for end in difference[:3])
    return f"{'rose' if sign > 0 else 'fell'} by {value} ({low} to {high})"


def format_signed(value: float, form: str) -> str:
    """A number in the given format, with a typographic minus unless it rounds to zero."""
    text = f"{value:{form}}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def _percent_texts(figure: MeanInterval | Difference) -> tuple[str, list[str]]:
    """Returns (size, interval ends) in percent, both without the sign of the figure; no ends without an interval."""
    value, low, high = (100 * end for end in figure[:3])
    size = f"{abs(value):.0f}"
    if math.isnan(low):
        return size, []
    sign = -1 if value < 0 and size != "0" else 1
    return size, [format_signed(sign * end, ".0f") for end in (low, high)]


def _bracket_text(ends: list[str], unit: str = "") -> str:
    return f" ({' to '.join(ends)}{unit})" if ends else ""
