"""What a response says at its end: its final answer as text, or as a number with a unit."""

import re
from dataclasses import dataclass
from fractions import Fraction

# {unit: (dimension, how many of the dimension's first unit it is)}
UNITS: dict[str, tuple[str, Fraction]] = {
    name: (dimension, Fraction(factor))
    for dimension, units in {
        "length": "mm 1/1000 cm 1/100 dm 1/10 m 1 km 1000 meter 1 meters 1 metre 1 metres 1 kilometers 1000",
        "mass": "mg 1/1000 g 1 kg 1000 t 1000000 gram 1 grams 1 kilogram 1000 kilograms 1000",
        "time": "ms 1/1000 s 1 sec 1 second 1 seconds 1 min 60 minute 60 minutes 60 h 3600 hour 3600 hours 3600 "
        "day 86400 days 86400 week 604800 weeks 604800",
        "volume": "ml 1/1000 cl 1/100 l 1 liter 1 liters 1 litre 1 litres 1",
        "money": "cent 1/100 cents 1/100 dollar 1 dollars 1 $ 1",
    }.items()
    for name, factor in zip(units.split()[::2], units.split()[1::2], strict=True)
}
WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)])[-\u2212])?\s?(?P<currency>\$)?\s?(?:"
    rf"(?P<whole>\d+)?\\frac\{{?(?P<top>-?\d+)\}}?\{{?(?P<bottom>\d+)\}}?"
    rf"|(?P<number>{DIGITS})(?:\s?/\s?(?P<over>\d+(?:\.\d+)?))?(?P<exponent>[eE][-+]?\d{{1,3}})?)"
    r"\s?(?P<unit>%|\\%|[A-Za-z]+)?"
)


@dataclass(frozen=True)
class Quantity:
    """A number; of a known unit also its dimension, and the unit in the dimension's first unit."""

    value: Fraction
    dimension: str = ""
    factor: Fraction = Fraction(1)


def visible_text(text: str) -> str:
    """A response without its thought; all of it if the thought has no end."""
    return text.rpartition("</think>")[2]


def final_answer(text: str) -> str:
    """The response's final answer: what is marked as such, else the sentence behind the last "answer is", else all.

    The thought before it does not count.
    """
    text = visible_text(text)
    if (marked := _marked_answer(text)) is not None:
        return marked
    matches = list(re.finditer(r"answer(?:\s+is\s*[:=]?|\s*[:=])\s*", text, re.IGNORECASE))
    return re.split(r"[.!?](?:\s|$)|\n", text[matches[-1].end() :])[0] if matches else text.strip()


def _marked_answer(text: str) -> str | None:
    """The text behind the last `####` (GSM8K), else in the last `\\boxed{}` (MATH); None without both."""
    return text.rpartition("####")[2].strip().split("\n")[0] if "####" in text else _last_boxed(text)


def _last_boxed(text: str) -> str | None:
    """What the braces of the last \\boxed{...} or \\fbox{...} enclose; None without any."""
    start = max(
        (text.rfind(command) + len(command) for command in (r"\boxed{", r"\fbox{") if command in text), default=0
    )
    level = 1
    for position in range(start, len(text)) if start else ():
        level += {"{": 1, "}": -1}.get(text[position], 0)
        if level == 0:
            return text[start:position]
    return None


def normalize_answer(text: str) -> str:
    """A final answer as it is compared: no case, no white space at joints, no end mark, no LaTeX that shows nothing."""
    text = re.sub(r"\\(?:left|right|!|,|;|:|\s)", "", text.strip().strip("$"))
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\s*([,;:=+*/^(){}\[\]-])\s*", r"\1", text)
    return " ".join(text.split()).rstrip(".!").strip("*\"'").casefold()


def read_quantity(text: str) -> Quantity | None:
    """The number of a final answer: the first one behind a mark, else the last one; None without any.

    Words from zero to twenty count where there are no digits.
    """
    marked = _marked_answer(visible_text(text))
    answer = final_answer(text)
    answer = re.sub(r"\\[dt]frac", r"\\frac", answer.replace("\\$", "$").replace("\\!", "").replace("\\,", ""))
    answer = re.sub(r"\\(?:text|mathrm)\{\s*([^{}]*)\}", r" \1", answer)
    matches = list(NUMBER.finditer(answer))
    if not matches:
        words = [word for word in re.findall(r"[a-z]+", answer.lower()) if word in WORDS]
        return Quantity(Fraction(WORDS.index(words[-1]))) if words else None
    return _to_quantity(matches[-1 if marked is None else 0])


def _to_quantity(match: "re.Match[str]") -> Quantity | None:
    """The number that NUMBER matched; None for a division by zero."""
    if match["top"] is not None:
        bottom = Fraction(match["bottom"])
        value = Fraction(match["top"]) / bottom + int(match["whole"] or 0) if bottom else None
    else:
        value = Fraction(match["number"].replace(",", "") + (match["exponent"] or ""))
        over = Fraction(match["over"] or 1)
        value = value / over if over else None
    if value is None:
        return None
    value = -value if match["sign"] else value
    unit = match["unit"] or match["currency"] or ""
    if unit in ("%", "\\%"):
        return Quantity(value, "share", Fraction(1, 100))
    dimension, factor = UNITS.get(unit, UNITS.get(unit.lower(), ("", Fraction(1))))
    return Quantity(value, dimension, factor)
