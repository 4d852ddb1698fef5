"""Readers of rankings that people made in Argilla or in Label Studio, as these export them, or as `data convert` does.

Readers as of `readers`.
"""

import re
from typing import Any

from lora_rlhf.data.messages import Row, parse_list_in_text, to_prompt_turns, to_response
from lora_rlhf.data.readers import Draft
from lora_rlhf.data.readers_ranked import objects_in_column, ranks_from_choice, read_two_responses
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Turns
from lora_rlhf.data.verdicts import is_blank, to_number

RANKING_COLUMNS = ("prompt", "responses", "ranks", "labeler", "ended", "tools")  # of a ranking in this project's form


def read_argilla(
    row: Row, prompt_column: str, first_column: str, second_column: str, ranking_column: str
) -> list[Draft]:
    """Drafts of Argilla's ranking questions: for each person, the names of the responses in order, the best first."""
    response_columns = [name for name in row if re.fullmatch(r"response-\d+", name) and row[name] is not None]
    responses = tuple(to_response(row[name], name) for name in response_columns)
    orders = parse_list_in_text(row[ranking_column], ranking_column)
    if not isinstance(orders, list | tuple) or not orders:
        raise BadRow(f"{ranking_column} is not a list")
    orders = [orders] if isinstance(orders[0], str) or _is_ranked_object(orders[0]) else orders
    statuses, users, columns = (
        values if isinstance(values, list) and len(values) == len(orders) else [missing] * len(orders)
        for name, missing in (("status", "submitted"), ("users", None), ("columns", {}))
        for values in (parse_list_in_text(row.get(f"{ranking_column}.{name}"), ranking_column),)
    )
    drafts = []
    for order, status, user, others in zip(orders, statuses, users, columns, strict=True):
        if status == "submitted":
            turns = to_prompt_turns(row[prompt_column], prompt_column)
            ranks = _ranks_from_order(order, response_columns, ranking_column)
            drafts.append(_with_columns(Draft(turns, responses, ranks, user), others))
    if not drafts:
        raise BadRow("nobody has submitted a ranking of these responses")
    return drafts


def _with_columns(draft: Draft, columns: Any) -> Draft:
    """The draft of one person's ranking, with the other columns that `data convert` kept of it."""
    if not isinstance(columns, dict):
        return draft
    others = {name: value for name, value in columns.items() if name not in RANKING_COLUMNS}
    labeler = columns.get("labeler", draft.labeler)
    return draft._replace(labeler=labeler, ended=columns.get("ended") or (), meta={**draft.meta, **others})


def _is_ranked_object(item: Any) -> bool:
    """Whether a value is {"value": ..., "rank": ...}."""
    return isinstance(item, dict) and "value" in item and "rank" in item


def _ranks_from_order(order: Any, names: list[str], column: str) -> list[Any]:
    """The rank of each name in a list of names, of lists of equal names, or of {value, rank}."""
    ranks: dict[Any, Any] = {}
    if isinstance(order, list | tuple):
        for rank, item in enumerate(order, start=1):
            if _is_ranked_object(item):
                ranks[str(item["value"])] = item["rank"]
            else:
                ranks.update(dict.fromkeys(map(str, item if isinstance(item, list | tuple) else [item]), rank))
    if set(ranks) != set(names):
        raise BadRow(f"{column} does not rank each response", str(order)[:40])
    return [ranks[name] for name in names]


def is_label_studio(row: Row) -> bool:
    """Whether the row is a task of Label Studio's JSON export."""
    return isinstance(row["data"], dict) and isinstance(row["annotations"], list | tuple)


def read_label_studio(row: Row, data_column: str, annotations_column: str) -> list[Draft]:
    """Drafts of Label Studio's JSON export, one for each person: a choice, left or right, or a Ranker's order."""
    data = row[data_column]
    turns = read_label_studio_prompt(row, data_column)[0]
    drafts = []
    for annotation in objects_in_column(row, annotations_column):
        results = annotation.get("result")
        for result in results if isinstance(results, list | tuple) else ():
            value = result.get("value") if isinstance(result, dict) else None
            if not isinstance(value, dict):
                continue
            if value.get("selected") is not None:
                keys = _find_answer_keys(data)
                answers = {name: data[name] for name in keys}
                ranks: Any = ranks_from_choice(value["selected"], *keys)
            elif value.get("ranker") is not None:
                answers = _find_ranked_items(data)
                ranks = _ranks_from_order(_order_of_buckets(value["ranker"]), list(answers), "the ranker")
            else:
                continue
            responses = tuple(to_response(answer, name) for name, answer in answers.items())
            draft = Draft(turns, responses, ranks, _annotator_name(annotation.get("completed_by")))
            if (seconds := to_number(annotation.get("lead_time"))) is not None:
                draft = draft._replace(meta={"seconds": seconds})
            meta = result.get("meta")
            drafts.append(_with_columns(draft, meta.get("columns") if isinstance(meta, dict) else None))
    if not drafts:
        raise BadRow("the task has no pairwise annotation and no ranking")
    return drafts


def read_label_studio_prompt(row: Row, data_column: str, *others: str) -> list[Turns]:
    """Prompts of `read_label_studio`."""
    data = row[data_column]
    answer_keys = _find_answer_keys(data)
    keys = [name for name, value in data.items() if name not in answer_keys and not is_blank(value)]
    prompt_key = next((name for name in ("prompt", "question", "instruction", "text", "input") if name in keys), None)
    if prompt_key is None or (len(answer_keys) < 2 and not _find_ranked_items(data)):
        raise BadRow("the task holds no prompt with answers to compare", f"found {', '.join(map(str, data))}"[:60])
    return [to_prompt_turns(data[prompt_key], prompt_key)]


def _find_answer_keys(data: Row) -> tuple[str, ...]:
    """(key of the first answer, key of the second) in a task's data; empty if it holds no two."""
    for name in data:
        for other in data:
            if (name[:-1], name[-1:], other[-1:]) in _answer_key_patterns(other):
                return name, other
    return ()


def _find_ranked_items(data: Row) -> dict[str, Any]:
    """{id: text} of the list that a Ranker orders; empty if the task's data hold none."""
    for items in data.values():
        if isinstance(items, list) and items and all(isinstance(item, dict) and "id" in item for item in items):
            return {str(item["id"]): item.get("body") or item.get("html") or item.get("title") for item in items}
    return {}


def _order_of_buckets(ranker: Any) -> list[Any]:
    """The ids, the best first, equal ones in a list of their own. A bucket of a Ranker is named by its rank."""
    buckets = ranker if isinstance(ranker, dict) else {"": ranker}
    names = [name for name in buckets if buckets[name]]
    if len(names) == 1 and not names[0].isdecimal() and isinstance(buckets[names[0]], list):
        return list(buckets[names[0]])
    if not all(name.isdecimal() and isinstance(buckets[name], list) for name in names):
        raise BadRow("a bucket of the ranker is not named by its rank", ", ".join(map(str, names))[:40])
    return [{"value": item, "rank": int(name)} for name in names for item in buckets[name]]


def _annotator_name(annotator: Any) -> str | None:
    """Who made an annotation: Label Studio exports an id, or an object with an email."""
    if isinstance(annotator, dict):
        annotator = annotator.get("email") or annotator.get("id")
    return None if annotator is None else str(annotator)


def _answer_key_patterns(name: str) -> set[tuple[str, str, str]]:
    """(name without its last character, last character of one answer, of the other): "1" and "2", "a" and "b"."""
    return {(name[:-1], first, second) for first, second in (("1", "2"), ("a", "b"), ("A", "B"))}


def read_label_studio_min(row: Row, prompt_column: str, first_column: str, second_column: str) -> list[Draft]:
    """Drafts of Label Studio's JSON_MIN export: the choice is in a column with a name of the labelling page."""
    choices = [value for value in row.values() if isinstance(value, str) and value in ("left", "right")]
    return [
        draft._replace(labeler=_annotator_name(row.get("annotator")))
        for draft in read_two_responses(
            row, prompt_column, first_column, second_column, ranks_from_choice(choices[0], first_column, second_column)
        )
    ]


def is_label_studio_min(row: Row) -> bool:
    """Whether exactly one column holds "left" or "right"."""
    return sum(isinstance(value, str) and value in ("left", "right") for value in row.values()) == 1
