"""What a row says about its answers: verdicts, weights, and the scores of a pair."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

from lora_rlhf.data.names import Meaning, name_words
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
MAX_VERDICT_WORDS = 3  # words; a longer text explains something
BLANK_TEXTS = frozenset(("", "[]", "{}", "null", "none"))
PAIR_SCORES = frozenset("score scores rating ratings reward rewards rank quality grade".split())
PAIR_SCORES_BESIDE = frozenset("avg average mean overall response answer model rm final".split())
RATING_LISTS = ("rating", "ratings", "scores")


def is_blank(value: Any) -> bool:
    """Whether a value holds nothing: None, a blank text, an empty list or object, or one of these written as text."""
    if isinstance(value, str):
        return value.strip().lower() in BLANK_TEXTS
    return value is None or (isinstance(value, list | tuple | dict) and not value)


def to_number(value: Any) -> float | None:
    """The finite number that a value is or holds as text (as in tables and UltraFeedback); None for any other value."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if number - number == 0 else None  # infinity and NaN are not


def find_verdict(name: str, meaning: Meaning, value: Any) -> bool | None:
    """The verdict of a column on the answer: True for good, False for bad, None if the value is not a verdict.

    name, meaning: of the column or key. Raises BadRow if the value must be a verdict and is not known here.
    """
    word = _verdict_word(value)
    is_thumb = "thumb" in name_words(name) or "thumbs" in name_words(name)  # 1 is up, and not one of five stars
    if meaning == "rating" and to_number(value) is not None and not isinstance(value, str) and not is_thumb:
        word = word if word == "-1" else None
    if meaning == "bad" and word is not None:
        return False if word in YES else True if word in NO else _verdict_of_word(word)
    if word is not None and (verdict := _verdict_of_word(word)) is not None:
        return verdict
    if meaning == "label" or value is None or (meaning == "rating" and _is_short_text(value)):
        description = "empty" if value is None else repr(value)[:40]
        raise BadRow("whether the answer is good is not known", f"{name} is {description}", columns=f"ignore={name}")
    return None


def _verdict_word(value: Any) -> str | None:
    """The value as one word to look up: "true", "1", "good", "thumbs_up"; None if it is not a word."""
    if isinstance(value, bool | str):
        return "_".join(str(value).lower().strip(" .!").split())
    if isinstance(value, int | float) and value in (-1, 0, 1):
        return str(int(value))
    return None


def _verdict_of_word(word: str) -> bool | None:
    """True for a word of GOOD, False for a word of BAD, None for any other. "1.0" counts as "1"."""
    if word.removesuffix(".0") != word and word.removesuffix(".0") in ("1", "0", "-1"):
        word = word.removesuffix(".0")
    return True if word in GOOD else False if word in BAD else None


def _is_short_text(value: Any) -> bool:
    """Whether a value is a text of few words, and not a number."""
    return isinstance(value, str) and to_number(value) is None and 0 < len(value.split()) <= MAX_VERDICT_WORDS


def is_learned(name: str, value: Any) -> bool:
    """Whether a weight, of a row or of a message, says that the answer is to be learned.

    BadRow for a weight other than 0 and 1.
    """
    number = float(value) if isinstance(value, bool) else to_number(value)
    if number is None and isinstance(value, str):
        number = 1.0 if value.lower() in YES else 0.0 if value.lower() in NO else None
    if number is None or (number not in (0, 1) and "weight" not in name_words(name)):
        return True  # a measured loss, the name of a split, ...
    if number not in (0, 1):
        raise BadRow("a weight other than 0 and 1 is not used here", f"{name} is {number:g}", columns=f"ignore={name}")
    return bool(number) != ("masked" in name_words(name))


def pair_order(row: dict[str, Any]) -> Literal["chosen", "tie"]:
    """The order by the scores of a pair of chosen and rejected. BadRow if the rejected response has the better score.

    The scores are in two columns whose names differ in these two words only (`score_chosen`, `rejectedRating`, ...), or
    in a list of two (`rating`), in the order of `order` or `generations`, else chosen first. distilabel's `status`
    "tie" means a tie.
    """
    columns = _pair_score_columns(tuple(row))
    if columns is None:
        return "chosen"
    order: Literal["chosen", "tie"] = "tie" if row.get("status") == "tie" else "chosen"
    for chosen_score, rejected_score in _pair_scores(row, columns):
        if chosen_score < rejected_score and order != "tie":
            raise BadRow(
                "the rejected response has the better score", f"{abs(chosen_score):g} and {abs(rejected_score):g}"
            )
        order = "tie" if chosen_score == rejected_score else order
    return order


@lru_cache(maxsize=1024)
def _pair_score_columns(names: tuple[str, ...]) -> tuple[tuple[str, str], ...] | None:
    """(column of chosen, column of rejected) for each kind of score; None if no column gives an order."""
    lowered = {name.lower(): name for name in names}
    columns = [
        (name, lowered[low.replace("chosen", "rejected")])
        for low, name in lowered.items()
        if "chosen" in low and low.replace("chosen", "rejected") in lowered and _is_score_name(name)
    ]
    return tuple(columns) if columns or {"status", *RATING_LISTS}.intersection(names) else None


def _pair_scores(row: dict[str, Any], columns: tuple[tuple[str, str], ...]) -> Iterator[tuple[float, float]]:
    """Yields (score of chosen, score of rejected) for each kind of score that both have; ranks are negated."""
    for chosen_column, rejected_column in columns:
        chosen_score, rejected_score = to_number(row[chosen_column]), to_number(row[rejected_column])
        if chosen_score is not None and rejected_score is not None:
            yield (
                (-chosen_score, -rejected_score)
                if "rank" in name_words(chosen_column)
                else (chosen_score, rejected_score)
            )
        elif not is_blank(row[chosen_column]) and not is_blank(row[rejected_column]):
            raise BadRow("the scores of chosen and rejected are not numbers", f"{chosen_column} and {rejected_column}")
    for name in RATING_LISTS:
        ratings = row.get(name)
        if isinstance(ratings, list | tuple) and len(ratings) == 2:
            scores = [to_number(rating) for rating in ratings]
            index = _chosen_index(row)
            if index is not None and None not in scores:
                yield scores[index], scores[1 - index]  # type: ignore[misc]  # they are numbers


def _is_score_name(name: str) -> bool:
    """Whether the name of a column of the chosen response says that it holds a score."""
    words = set(name_words(name)) - {"chosen"}
    return bool(PAIR_SCORES & words) and words <= PAIR_SCORES | PAIR_SCORES_BESIDE


def _chosen_index(row: dict[str, Any]) -> int | None:
    """The index of the chosen response in a list of both; None if it cannot be known."""
    for name, value in (("order", "chosen"), ("generations", row.get("chosen"))):
        responses = row.get(name)
        if isinstance(responses, list | tuple) and len(responses) == 2:
            return responses.index(value) if value in responses else None
    return 0
