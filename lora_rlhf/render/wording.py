"""Numbers and names as people read them."""

from collections.abc import Sequence

NOTHING = "\N{EN DASH}"


def listed(names: Sequence[str]) -> str:
    """Several names in a sentence."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def capital(text: str) -> str:
    """With its first letter large."""
    return text[:1].upper() + text[1:]


def words_of(name: str) -> str:
    """A name of the code in words."""
    return name.replace("_", " ")


def share(value: float, exact: bool = True) -> str:
    """A share: "12.3 %", "about 12.3 %", "less than 0.1 %"."""
    if 0 < value < 0.001:
        return "less than 0.1 %"
    return f"{'' if exact else 'about '}{100 * value:.1f} %"


def signed(value: float) -> str:
    """A difference, its sign always there."""
    text = f"{value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def number(value: float | None, unit: str = "", like: float | None = None) -> str:
    """A value in its unit: a "share" in percent, the rest with as many digits as `like`, or itself, deserves."""
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
