"""Texts for numbers and names."""

from collections.abc import Sequence

NOTHING = "\N{EN DASH}"


def join_names(names: Sequence[str]) -> str:
    """Joins names for a sentence: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def capitalize_first(text: str) -> str:
    """Makes the first letter a capital."""
    return text[:1].upper() + text[1:]


def name_text(name: str) -> str:
    """A name of the code with spaces for underscores."""
    return name.replace("_", " ")


def share_text(value: float, exact: bool = True) -> str:
    """A share in percent: "12.3 %", "about 12.3 %" (not `exact`), "less than 0.1 %"."""
    if 0 < value < 0.001:
        return "less than 0.1 %"
    return f"{'' if exact else 'about '}{100 * value:.1f} %"


def signed_text(value: float) -> str:
    """A difference with its sign and one decimal."""
    text = f"{value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def number_text(value: float | None, unit: str = "", like: float | None = None) -> str:
    """A value in its unit. A "share" is in percent; else a large value has 1 decimal and a small one 3.

    like: a value that chooses the number of decimals instead, so that the ends of an interval look like its middle.
    """
    if value is None:
        return NOTHING
    size = abs(value if like is None else like)
    digits = 1 if unit == "share" or size >= 9.9995 else 3
    text = f"{100 * value if unit == 'share' else value:.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", "\N{MINUS SIGN}") + (" %" if unit == "share" else "")


def p_value_text(p: float | None) -> str:
    """A p-value: "p 0.012", "p < 0.001"."""
    return NOTHING if p is None else "p < 0.001" if p < 0.001 else f"p {p:.3f}"
