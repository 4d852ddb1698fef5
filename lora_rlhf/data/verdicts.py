"""What a row says about its own answers: verdicts, weights, and the scores of a pair."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

from lora_rlhf.data.names import Meaning, words_of
from lora_rlhf.data.refusals import BadRow

GOOD = frozenset(
    "true 1 yes y good great excellent correct right safe accept accepted acceptable approve approved positive pos up "
    "thumbs_up thumbsup like liked upvote upvoted chosen preferred desirable desired helpful harmless pass passed "
    "valid win + +1 👍".split()
)
BAD = frozenset(
    "false 0 -1 no n bad poor terrible awful incorrect wrong unsafe reject rejected disapprove disapproved negative "
    "neg down thumbs_down thumbsdown dislike disliked downvote downvoted undesirable undesired unhelpful harmful toxic "
    "fail failed invalid lose - 👎".split()
)
YES = frozenset("true 1 yes y".split())
NO = frozenset("false 0 no n".split())
LONGEST_VERDICT = 3  # words; a longer text explains something
EMPTY_LISTS = frozenset(("", "[]", "{}", "null", "none"))
PAIR_SCORES = frozenset("score scores rating ratings reward rewards rank quality grade".split())
PAIR_SCORES_BESIDE = frozenset("avg average mean overall response answer model rm final".split())
RATING_LISTS = ("rating", "ratings", "scores")


def is_blank(value: Any) -> bool:
    """Whether a value holds nothing: None, a blank text, an empty list or object, also one that is written as text."""
    if isinstance(value, str):
        return value.strip().lower() in EMPTY_LISTS
    return value is None or (isinstance(value, list | tuple | dict) and not value)


def to_number(value: Any) -> float | None:
    """A finite number, also one that is written as text, as in tables and UltraFeedback; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if number - number == 0 else None  # infinity and NaN are not


def verdict_of(name: str, meaning: Meaning, value: Any) -> bool | None:
    """Whether a row's own verdict calls its answer good (True) or bad (False); None if the value is no verdict.

    name, meaning: of the column or key. Raises BadRow if the value must be a verdict and is none that is known here.
    """
    word = _word(value)
    if meaning == "rating" and to_number(value) is not None and not isinstance(value, str):
        word = word if word == "-1" else None
    if meaning == "bad" and word is not None:
        return False if word in YES else True if word in NO else _known(word)
    if word is not None and (verdict := _known(word)) is not None:
        return verdict
    if meaning == "label" or value is None or (meaning == "rating" and _is_short(value)):
        shown = "empty" if value is None else repr(value)[:40]
        raise BadRow("whether the answer is good is not known", f"{name} is {shown}", columns=f"ignore={name}")
    return None


def _word(value: Any) -> str | None:
    """The value as one word to look up: "true", "1", "good", "thumbs_up"."""
    if isinstance(value, bool | str):
        return "_".join(str(value).lower().strip(" .!").split())
    if isinstance(value, int | float) and value in (-1, 0, 1):
        return str(int(value))
    return None


def _known(word: str) -> bool | None:
    if word.removesuffix(".0") != word and word.removesuffix(".0") in ("1", "0", "-1"):
        word = word.removesuffix(".0")
    return True if word in GOOD else False if word in BAD else None


def _is_short(value: Any) -> bool:
    return isinstance(value, str) and to_number(value) is None and 0 < len(value.split()) <= LONGEST_VERDICT


def is_learned(name: str, value: Any) -> bool:
    """Whether a weight, of a row or of a message, says that the answer is to be learned. BadRow for a part of 1."""
    number = float(value) if isinstance(value, bool) else to_number(value)
    if number is None and isinstance(value, str):
        number = 1.0 if value.lower() in YES else 0.0 if value.lower() in NO else None
    if number is None or (number not in (0, 1) and "weight" not in words_of(name)):
        return True  # a measured loss, the name of a split, ...
    if number not in (0, 1):
        raise BadRow("a weight other than 0 and 1 is not used here", f"{name} is {number:g}", columns=f"ignore={name}")
    return bool(number) != ("masked" in words_of(name))


def pair_order(row: dict[str, Any]) -> Literal["chosen", "tie"]:
    """What the scores of a pair of chosen and rejected say. BadRow if they call the rejected response the better one.

    They stand in two columns whose names differ in these two words alone (`score_chosen`, `rejectedRating`, ...), or in
    a list of two (`rating`), in the order of `order` or `generations`, else chosen first. distilabel's `status` "tie"
    is a tie.
    """
    columns = _score_columns(tuple(row))
    if columns is None:
        return "chosen"
    order: Literal["chosen", "tie"] = "tie" if row.get("status") == "tie" else "chosen"
    for better, worse in _pair_scores(row, columns):
        if better < worse and order != "tie":
            raise BadRow("the rejected response has the better score", f"{abs(better):g} and {abs(worse):g}")
        order = "tie" if better == worse else order
    return order


@lru_cache(maxsize=1024)
def _score_columns(names: tuple[str, ...]) -> tuple[tuple[str, str], ...] | None:
    """(column of chosen, column of rejected) for each kind of score; None if no column says anything of the order."""
    lowered = {name.lower(): name for name in names}
    columns = [
        (name, lowered[low.replace("chosen", "rejected")])
        for low, name in lowered.items()
        if "chosen" in low and low.replace("chosen", "rejected") in lowered and _names_scores(name)
    ]
    return tuple(columns) if columns or {"status", *RATING_LISTS}.intersection(names) else None


def _pair_scores(row: dict[str, Any], columns: tuple[tuple[str, str], ...]) -> Iterator[tuple[float, float]]:
    """(score of chosen, score of rejected) for each kind of score that both have; ranks are negative."""
    for chosen, rejected in columns:
        better, worse = to_number(row[chosen]), to_number(row[rejected])
        if better is not None and worse is not None:
            yield (-better, -worse) if "rank" in words_of(chosen) else (better, worse)
        elif not is_blank(row[chosen]) and not is_blank(row[rejected]):
            raise BadRow("the scores of chosen and rejected are not numbers", f"{chosen} and {rejected}")
    for name in RATING_LISTS:
        ratings = row.get(name)
        if isinstance(ratings, list | tuple) and len(ratings) == 2:
            scores = [to_number(rating) for rating in ratings]
            index = _index_of_chosen(row)
            if index is not None and None not in scores:
                yield scores[index], scores[1 - index]  # type: ignore[misc]  # they are numbers


def _names_scores(name: str) -> bool:
    words = set(words_of(name)) - {"chosen"}
    return bool(PAIR_SCORES & words) and words <= PAIR_SCORES | PAIR_SCORES_BESIDE


def _index_of_chosen(row: dict[str, Any]) -> int | None:
    """Where the chosen response stands in a list of both; None where that is not to be known."""
    for name, value in (("order", "chosen"), ("generations", row.get("chosen"))):
        both = row.get(name)
        if isinstance(both, list | tuple) and len(both) == 2:
            return both.index(value) if value in both else None
    return 0
