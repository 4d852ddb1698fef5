"""The readers of ranked and scored responses, in one row or in the neighbouring rows of one prompt.

A reader turns a row into records and raises BadRow, whatever the values are; it sets neither meta nor origin.
"""

import re
from collections.abc import Hashable, Sequence
from typing import Any

from lora_rlhf.data.readers import (
    Row,
    instruction_prompt,
    required_number,
    to_messages,
    to_number,
    to_prompt,
    to_response,
)
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking, require_text

HELPSTEER_TURN = re.compile(r"\n*<extra_id_1>(User|Assistant)\n")


# ---------------------------------------------------------------------------------------------------------------------
# scores to ranks


def ranks_of(scores: Sequence[float]) -> list[int]:
    """The place of each score, 1 for the highest; equal scores share a place."""
    place = {score: rank for rank, score in enumerate(sorted(set(scores), reverse=True), start=1)}
    return [place[score] for score in scores]


def _items(row: Row, column: str) -> list[Row]:
    """The objects of a column that holds a list of them."""
    items = row[column]
    if not isinstance(items, list | tuple) or not all(isinstance(item, dict) for item in items):
        raise BadRow(f"{column} is not a list of objects")
    return list(items)


# ---------------------------------------------------------------------------------------------------------------------
# ranked or scored in one row


def ranking(row: Row) -> list[Ranking]:
    responses = row["responses"]
    if not isinstance(responses, list | tuple):
        raise BadRow("responses is not a list", f"got {type(responses).__name__}")
    answers = tuple(to_response(response, "response") for response in responses)
    return [Ranking(to_prompt(row["prompt"]), answers, row["ranks"], row.get("labeler"))]


def ultrafeedback(row: Row) -> list[Ranking]:
    completions = _items(row, "completions")
    scores = [_fine_score(completion) for completion in completions]
    if sum(score is not None for score in scores) < 2:
        # another scale (1 to 10), so never mixed with the ratings; known to be wrong in places (10 where 1 was meant)
        scores = [to_number(completion.get("overall_score")) for completion in completions]
    scored = [
        (item.get("response"), score) for item, score in zip(completions, scores, strict=True) if score is not None
    ]
    if len(scored) < 2:
        raise BadRow("a ranking needs at least 2 scored completions", f"{len(scored)} of {len(completions)} have one")
    responses = tuple(to_response(response, "completion's response") for response, _ in scored)
    return [Ranking(instruction_prompt(row), responses, tuple(ranks_of([score for _, score in scored])))]


def _fine_score(completion: Row) -> float | None:
    """The mean of the ratings (1 to 5) of a completion's aspects, as the set gives it or from the ratings."""
    given = to_number(completion.get("fine-grained_score"))
    if given is not None:
        return round(given, 4)
    annotations = completion.get("annotations")
    aspects = annotations.values() if isinstance(annotations, dict) else ()
    ratings = [to_number(aspect.get("Rating")) for aspect in aspects if isinstance(aspect, dict)]
    numbers = [rating for rating in ratings if rating is not None]  # some are "N/A"
    return round(sum(numbers) / len(numbers), 4) if numbers else None


def nectar(row: Row) -> list[Ranking]:
    answers = _items(row, "answers")
    responses = tuple(to_response(answer.get("answer"), "answer") for answer in answers)
    ranks: Any = [answer.get("rank") for answer in answers]  # numbers like 1.0, checked by Ranking
    return [Ranking(to_prompt(row["prompt"]), responses, ranks)]


def shp(row: Row) -> list[Ranking]:
    prefers_a = required_number(row, "labels")
    if prefers_a not in (0, 1):
        raise BadRow("labels is neither 1 (A is preferred) nor 0", f"got {prefers_a:g}")
    responses = to_response(row["human_ref_A"], "human_ref_A"), to_response(row["human_ref_B"], "human_ref_B")
    return [Ranking(shp_prompt(row)[0], responses, (1, 2) if prefers_a else (2, 1))]


def shp_prompt(row: Row) -> list[Prompt]:
    return [Prompt.of(row["history"])]


def summaries(row: Row) -> list[Ranking]:
    candidates = _items(row, "summaries")
    choice = required_number(row, "choice")
    if choice not in range(len(candidates)):
        raise BadRow("choice is not the place of a summary", f"{choice:g} of {len(candidates)}")
    texts = tuple(require_text(candidate.get("text"), "a summary").strip() for candidate in candidates)
    ranks = tuple(1 if place == choice else 2 for place in range(len(candidates)))
    return [Ranking(summaries_prompt(row)[0], texts, ranks, row.get("worker"))]


def summaries_prompt(row: Row) -> list[Prompt]:
    """The query of the paper (arXiv 2009.01325): a post of a subreddit, or a news article."""
    info = row["info"]
    if not isinstance(info, dict):
        raise BadRow("info is not an object", f"got {type(info).__name__}")
    if info.get("post") is None and info.get("article") is None:
        raise BadRow("info holds neither a post nor an article")
    if info.get("post") is None:
        parts = [("Article: ", info["article"])]
    else:
        parts = [("SUBREDDIT: r/", info.get("subreddit")), ("TITLE: ", info.get("title")), ("POST: ", info["post"])]
    named = [name + require_text(value, "what is to be summarized") for name, value in parts if value is not None]
    return [Prompt.of("\n\n".join([*named, "TL;DR:"]))]


# ---------------------------------------------------------------------------------------------------------------------
# HelpSteer, and what else has one response a row


def by_prompt(row: Row) -> Hashable:
    """What neighbouring rows of one prompt have in common."""
    return row["prompt"] if isinstance(row["prompt"], str) else repr(row["prompt"])


def merge_helpsteer(rows: list[Row]) -> Row:
    return _merged(rows, ("response", "helpfulness"))


def merge_unpaired(rows: list[Row]) -> Row:
    return _merged(rows, ("completion", "label"))


def _merged(rows: list[Row], columns: tuple[str, ...]) -> Row:
    """The first row, with lists of all rows' values in some columns."""
    return {**rows[0], **{column: [row[column] for row in rows] for column in columns}}


def helpsteer(row: Row) -> list[Ranking]:
    responses, scores = _rated(row)
    if len(responses) < 2:
        raise BadRow("a ranking needs at least 2 neighbouring rows of one prompt")
    return [Ranking(helpsteer_prompt(row)[0], responses, tuple(ranks_of(scores)))]


def helpsteer_best(row: Row) -> list[Demonstration]:
    """The most helpful response; the first of equals."""
    responses, scores = _rated(row)
    return [Demonstration(helpsteer_prompt(row)[0], responses[scores.index(max(scores))])]


def _rated(row: Row) -> tuple[tuple[str, ...], list[float]]:
    scores = [to_number(score) for score in row["helpfulness"]]
    if None in scores:
        raise BadRow("helpfulness is not a number")
    responses = tuple(to_response(response, "response") for response in row["response"])
    return responses, [score for score in scores if score is not None]


def helpsteer_prompt(row: Row) -> list[Prompt]:
    """A user's text; later turns of a conversation are marked "<extra_id_1>Assistant" and "<extra_id_1>User"."""
    if not isinstance(row["prompt"], str) or "<extra_id_1>" not in row["prompt"]:
        return [to_prompt(row["prompt"])]
    first, *parts = HELPSTEER_TURN.split(row["prompt"])
    roles = {"User": "user", "Assistant": "assistant"}
    turns = [("User", first), *zip(parts[::2], parts[1::2], strict=True)]
    # a text that begins with a mark has nothing before it
    messages = tuple(Message(roles[who], said.strip()) for who, said in turns if said.strip() or who != "User")
    return [Prompt(messages)]


def helpsteer3(row: Row) -> list[Ranking]:
    preferred = required_number(row, "overall_preference")
    if abs(preferred) > 3:
        raise BadRow("overall_preference is not between -3 and 3", f"got {preferred:g}")
    responses = to_response(row["response1"], "response1"), to_response(row["response2"], "response2")
    return [Ranking(helpsteer3_prompt(row)[0], responses, tuple(ranks_of((-preferred, preferred))))]


def helpsteer3_prompt(row: Row) -> list[Prompt]:
    return [Prompt(to_messages(row["context"], "context"))]


def is_labelled(row: Row) -> bool:
    """Whether a label is true or false, as a bool, a number or a word; a class or a score is another thing."""
    return _label(row["label"]) is not None


def _label(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower())
    return bool(value) if isinstance(value, bool | int) and value in (0, 1) else None


def unpaired(row: Row) -> list[Ranking]:
    completions, labels = _labelled(row)
    if len(completions) < 2:
        raise BadRow("a ranking needs at least 2 neighbouring rows of one prompt")
    return [Ranking(to_prompt(row["prompt"]), completions, tuple(1 if label else 2 for label in labels))]


def unpaired_good(row: Row) -> list[Demonstration]:
    """Those labelled as good."""
    completions, labels = _labelled(row)
    good = [text for text, label in zip(completions, labels, strict=True) if label]
    if not good:
        raise BadRow("the completion is labelled as bad")
    return [Demonstration(to_prompt(row["prompt"]), text) for text in good]


def _labelled(row: Row) -> tuple[tuple[str, ...], list[bool]]:
    labels = [_label(label) for label in row["label"]]
    if None in labels:
        raise BadRow("label is neither true nor false")
    completions = tuple(to_response(completion, "completion") for completion in row["completion"])
    return completions, [label is True for label in labels]
