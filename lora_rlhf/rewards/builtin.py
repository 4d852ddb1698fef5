"""The built-in reward functions: each gives a number for the text of one response, and None where it does not apply.

A parameter after `text` is an argument that the user gives, else the row's column of that name.
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from lora_rlhf.rewards.answers import Quantity, final_answer, normalize_answer, read_quantity, visible_text
from lora_rlhf.rewards.json_schema import find_json, is_valid
from lora_rlhf.rewards.sandbox import run_tests

LETTERS = "ABCDEFGHIJ"
# Where an answer names its letter, most certain first. The last match of the first pattern that matches counts.
LETTER_PATTERNS = (
    r"####\s*\(?([A-J])\b",
    r"\\boxed\{\s*(?:\\text\{)?\s*\(?([A-J])\b",
    r"(?i:answer|choice|option)(?i:\s+is)?\s*[:=]?\s*\**\(?([A-J])\b(?!')",
    r"^\s*\**\(?([A-J])\)?\**\s*(?:[.):].*)?$",
    r"\(([A-J])\)",
)
SCRIPTS = {
    **{
        "ru": "\u0400-\u04ff",
        "uk": "\u0400-\u04ff",
        "bg": "\u0400-\u04ff",
        "el": "\u0370-\u03ff",
        "he": "\u0590-\u05ff",
    },
    **{"ar": "\u0600-\u06ff", "fa": "\u0600-\u06ff", "hi": "\u0900-\u097f", "th": "\u0e00-\u0e7f"},
    **{"zh": "\u4e00-\u9fff", "ja": "\u3040-\u30ff\u4e00-\u9fff", "ko": "\uac00-\ud7af"},
}
COMMON_WORDS = {
    "en": "the and of to is that it you for with this are not have be was what from they which",
    "de": "der die das und ist nicht ein eine zu den mit von auf auch es sich dem für wird sind",
    "fr": "le la les et est des une que dans pour pas qui sur avec plus il elle sont du au",
    "es": "el los las y es que una por con para no del se su como más pero al son está",
    "it": "il gli e è che di una per con non del sono della anche si come più ma nel questo",
    "pt": "o os as e é que uma por com para não do da se em mais como mas são ao",
    "nl": "de het een en is niet van dat op te voor met zijn er aan ook maar bij wordt deze",
}


def numeric_answer(text: str, answer: Any, tolerance: float = 1e-6) -> float:
    """1 if the response ends in the number of `answer`, else 0: after `####`, in `\\boxed{}`, or its last number.

    Fractions, percentages, thousands' commas and common units are read; of two known units, one is converted to the
    other. tolerance: relative to the larger of the answer and 1. ValueError where `answer` holds no number.
    """
    gold = read_quantity(str(answer))
    if gold is None:
        raise ValueError(f"the column answer holds no number: {str(answer)[:60]!r}")
    quantity = read_quantity(text)
    return float(quantity is not None and _is_equal(quantity, gold, tolerance))


def _is_equal(quantity: Quantity, gold: Quantity, tolerance: float) -> bool:
    value, target = quantity.value, gold.value
    if quantity.dimension and gold.dimension:
        if quantity.dimension != gold.dimension:
            return False
        value, target = value * quantity.factor, target * gold.factor
    return abs(value - target) <= Fraction(tolerance) * max(abs(target), Fraction(1))


def exact_answer(text: str, answer: Any) -> float:
    """1 if the response's final answer is `answer`, but for case, white space, end marks and LaTeX's spacing."""
    return float(normalize_answer(final_answer(text)) == normalize_answer(final_answer(str(answer))))


def multiple_choice(text: str, answer: Any, choices: Sequence[str] | None = None) -> float:
    """1 if the response chooses `answer`: a letter, an index from 0, or the text of one of `choices`."""
    texts = [str(choice) for choice in (choices["text"] if isinstance(choices, dict) else choices or ())]
    if isinstance(answer, int) or (str(answer).isdecimal() and str(answer) not in texts):
        gold = LETTERS[int(answer)]
    elif answer in texts:
        gold = LETTERS[texts.index(answer)]
    else:
        gold = final_answer(str(answer)).strip("() .").upper()
    if len(gold) != 1 or gold not in LETTERS:
        raise ValueError(f"the column answer is no letter, index or choice: {str(answer)[:60]!r}")
    return float(_chosen_letter(visible_text(text), texts) == gold)


def _chosen_letter(text: str, choices: Sequence[str]) -> str | None:
    """The letter that a response chooses; None if it names none."""
    for pattern in LETTER_PATTERNS:
        if letters := re.findall(pattern, text, re.MULTILINE):
            return str(letters[-1])
    named = [index for index, choice in enumerate(choices) if choice.lower() in text.lower()]
    return LETTERS[named[0]] if len(named) == 1 else None


def regex(text: str, pattern: str) -> float:
    """1 if the pattern, a regular expression of Python, is found in the response (thought included), else 0."""
    return float(re.search(pattern, text) is not None)


def json_schema(text: str, schema: Any) -> float:
    """1 if the response is JSON (alone or in one fence) that the JSON Schema accepts, else 0."""
    try:
        value = find_json(visible_text(text))
    except ValueError:
        return 0.0
    return float(is_valid(value, find_json(schema) if isinstance(schema, str) else schema))


def length_window(text: str, most: int, least: int = 0, unit: str = "words") -> float:
    """1 if the response (without its thought) has `least` to `most` words or characters, else 0."""
    if unit not in ("words", "characters"):
        raise ValueError(f"unit is {unit!r}, expected words or characters")
    visible = visible_text(text)
    return float(least <= len(visible.split() if unit == "words" else visible) <= most)


def language(text: str, language: str) -> float:
    """1 if the response seems to be in the language (a code such as en), by its script or its commonest words.

    A Latin text has the language of which most common words are in it. Known: en de fr es it pt nl, and by script
    alone: ru uk bg el he ar fa hi th zh ja ko.
    """
    visible = visible_text(text)
    letters = [character for character in visible if character.isalpha()]
    if language in SCRIPTS:
        in_script = [letter for letter in letters if re.match(f"[{SCRIPTS[language]}]", letter)]
        has_kana = language != "ja" or re.search("[\u3040-\u30ff]", visible) is not None
        return float(has_kana and len(in_script) > len(letters) / 2)
    if language not in COMMON_WORDS:
        raise ValueError(f"language is {language!r}, known are {' '.join([*COMMON_WORDS, *SCRIPTS])}")
    words = re.findall(r"[^\W\d_]+", visible.lower())
    counts = {name: sum(word in common.split() for word in words) for name, common in COMMON_WORDS.items()}
    return float(counts[language] > 0 and counts[language] == max(counts.values()))


def think_format(text: str) -> float:
    """1 if the response is one thought in <think>...</think> and then an answer, else 0."""
    thought = re.fullmatch(r"\s*<think>(.*?)</think>(.*)", text, re.DOTALL)
    if thought is None:
        return 0.0
    return float("<think>" not in thought[1] + thought[2] and "</think>" not in thought[2] and bool(thought[2].strip()))


def code_tests(
    text: str,
    tests: Sequence[str] | str,
    entry_point: str | None = None,
    partial: bool = False,
    seconds: float = 5.0,
    memory_mib: int = 512,
    isolated: bool = True,
) -> float:
    """1 if the response's Python code (its last fence, else the whole text) passes all `tests`, statements that assert.

    entry_point: a function that is given to `check` of the tests (HumanEval). partial: the share of tests passed
    instead. The code runs without network, in an empty folder of its own, with nothing else to write to. Where the
    system cannot do that, RuntimeError, unless `isolated` is False. ValueError for tests that only define `check`:
    without an `entry_point` they would test nothing.
    """
    visible = visible_text(text)
    fences = re.findall(r"```(?:python|py)?[ \t]*\n(.*?)```", visible, re.DOTALL)
    statements = [test for test in ([tests] if isinstance(tests, str) else tests) if test.strip()]
    if entry_point is None and any("def check(" in test and test.count("check(") == 1 for test in statements):
        raise ValueError('the tests define check and do not call it; add entry_point="@entry_point" to the arguments')
    if entry_point is not None:
        statements = [f"{statement}\ncheck({entry_point})" for statement in statements]
    passed = run_tests(fences[-1] if fences else visible, statements, seconds, memory_mib, isolated)
    return passed / max(len(statements), 1) if partial else float(bool(statements) and passed == len(statements))


BUILT_IN: dict[str, Callable[..., float | None]] = {
    function.__name__: function
    for function in (
        *(numeric_answer, exact_answer, multiple_choice, regex, json_schema),
        *(length_window, language, think_format, code_tests),
    )
}
