"""What an answer states that its sources do not hold: numbers, names, dates and quotations, by rules on the text.

InstructGPT's labelers flagged such answers as "hallucination" on closed-domain prompts (arXiv 2203.02155, section 4.1).
The rules read no meaning: see docs/evaluation.md for what they miss.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence

UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
NUMBER_WORDS = {
    **{word: str(value) for value, word in enumerate(UNITS) if value > 1},  # "one" is mostly no number
    **{"seventeen": "17", "eighteen": "18", "nineteen": "19", "twenty": "20", "thirty": "30", "forty": "40"},
    **{"fifty": "50", "sixty": "60", "seventy": "70", "eighty": "80", "ninety": "90", "hundred": "100"},
}
NUMBER = re.compile(r"(?<![\w.])\d+(?:[.,]\d+)*|(?<=[\d.])\d+|(?<=[A-Za-z])\d+")
WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
QUOTATION = re.compile(r"\"([^\"\n]{2,})\"|\u201c([^\u201d\n]{2,})\u201d")
LIST_MARK = re.compile(r"^\s*(?:\(?\d{1,3}[.)]|[-*+#]+)\s+|\[\d{1,3}\]", re.MULTILINE)  # numbers of lists and of notes
SENTENCE_END = re.compile(r"[.!?:]['\")\u201d]*\s*$|\n\s*$|^\s*$")
# Words that begin a sentence before a name and are none.
OPENINGS = frozenset(
    "a an the in on at by to of for from with without near and or but so as if since when while after before until "
    "then because although though during like unlike both all each every either neither no yes not only even also "
    "just this that these those there here it he she we you they his her its our your their my is are was were does do "
    "did has have had can could will would should may might must what who where which why how dear hello today".split()
)
FIRST_PERSON = re.compile(r"I(?:'\w+)?")


def unsupported_items(answer: str, sources: Sequence[str]) -> list[str]:
    """The numbers, names and quotations of an answer that stand in none of its sources, each once, in their order.

    A number counts by its value, "three" as 3, and 1,500 as 1500. A name is a word with a capital letter within a
    sentence, or at its beginning before another such word; it counts by the word, in any case. Dates are numbers and
    names. A quotation must stand in a source word for word.
    """
    sources = [_plain(source) for source in sources]
    text = LIST_MARK.sub(" ", _plain(answer))
    numbers = {number for source in sources for number, _ in _numbers(source)}
    words = {word.lower() for source in sources for word in _words(source)}
    joined = " ".join(" ".join(sources).lower().split())
    found = [(start, text) for number, (start, text) in _numbers(text) if number not in numbers]
    found += [(start, name) for start, name in _names(text) if name.lower() not in words]
    for match in QUOTATION.finditer(text):
        quoted = match[1] or match[2]
        if " ".join(quoted.lower().split()).rstrip(".,!?") not in joined:
            found.append((match.start(), match[0]))
    return list(dict.fromkeys(item for _, item in sorted(found)))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("\u2019", "'")


def _words(text: str) -> Iterator[str]:
    """The words, and those without a final 's."""
    for match in WORD.finditer(text):
        yield match[0]
        yield re.sub(r"'s?$", "", match[0])


def _numbers(text: str) -> Iterator[tuple[str, tuple[int, str]]]:
    """(value, (position, how it is written)) of each number."""
    for match in NUMBER.finditer(text):
        yield _number_value(match[0]), (match.start(), match[0])
    for match in WORD.finditer(text):
        for part in match[0].lower().split("-"):  # "twenty-two" stands for 20 and 2
            if part in NUMBER_WORDS:
                yield NUMBER_WORDS[part], (match.start(), match[0])


def _number_value(digits: str) -> str:
    """A number without the marks of thousands and without zeros that change nothing."""
    if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", digits):
        digits = digits.replace(",", "")
    whole, _, fraction = digits.replace(",", ".").partition(".")
    fraction = fraction.rstrip("0") if fraction.isdigit() else fraction
    return (whole.lstrip("0") or "0") + (f".{fraction}" if fraction else "")


def _names(text: str) -> Iterator[tuple[int, str]]:
    """(position, name) of each word that is written as a name."""
    matches = list(WORD.finditer(text))
    for index, match in enumerate(matches):
        if not match[0][0].isupper() or FIRST_PERSON.fullmatch(match[0]) or match[0].lower() in NUMBER_WORDS:
            continue
        if SENTENCE_END.search(text[max(0, match.start() - 8) : match.start()].replace('"', " ")):
            following = matches[index + 1] if index + 1 < len(matches) else None
            is_joined = following is not None and text[match.end() : following.start()] == " "
            is_followed = is_joined and following is not None and following[0][0].isupper() and following[0] != "I"
            if not is_followed or match[0].lower() in OPENINGS:
                continue
        yield match.start(), re.sub(r"'s?$", "", match[0])
