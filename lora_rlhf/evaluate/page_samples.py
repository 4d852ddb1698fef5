"""The samples of the HTML report: answers to the same prompt side by side. What a model wrote is text, never HTML."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lora_rlhf.evaluate.wording import name_of, number

MOST_SHOWN = 60  # of the samples file, which has them all
LONGEST = 2000  # characters of a text


def samples(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Where the candidate lost most, where it won most, and some between; the filter shows only where scripts run."""
    chosen = choose(rows)
    outcomes = list(dict.fromkeys(_outcome(row) for row in chosen))
    categories = sorted({row["category"] for row in chosen if row.get("category")})
    controls = (
        "<div class='controls' hidden><input type='search' placeholder='Find words' aria-label='Find words'>"
        f"{_choice('outcome', 'any outcome', outcomes)}{_choice('category', 'any category', categories)}"
        "<output class='soft'></output></div>"
    )
    return (
        f"<h2>Answers side by side</h2><p class='soft'>{len(chosen)} of {len(rows)} prompts: where "
        f"{escape(name_of(report['candidate']))} lost most, where it won most, and some between. All of them are in "
        f"<code>evaluation_samples.jsonl</code>.</p>{controls}" + "".join(_sample(row, report) for row in chosen)
    )


def choose(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """At most 60 rows, the worst for the candidate first: the two ends of the order, and evenly spaced ones between."""
    order = sorted(rows, key=lambda row: (row.get("margin") is None, row.get("margin") or 0.0))
    if len(order) <= MOST_SHOWN:
        return order
    third = MOST_SHOWN // 3
    between = order[third:-third]
    step = len(between) / third
    return [*order[:third], *(between[int(i * step)] for i in range(third)), *order[-third:]]


def _sample(row: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    about = " · ".join(text for text in (str(row.get("category") or ""), _outcome(row)) if text)
    parts = []
    for system in report["systems"]:
        scores = row.get("scores") or {}
        told = f" <small>{number(scores[system])}</small>" if scores.get(system) is not None else ""
        parts.append(f"<div><h3>{escape(system)}{told}</h3><p>{_text(row['responses'][system])}</p></div>")
    category = escape(str(row.get("category") or ""))
    return (
        f"<article class='sample' data-outcome='{_outcome(row)}' data-category='{category}'>"
        f"<p class='asked'>{_text(row['prompt'])}</p><small>{escape(about)}</small>"
        f"<div class='answers'>{''.join(parts)}</div></article>"
    )


def _outcome(row: Mapping[str, Any]) -> str:
    outcome = row.get("outcome")
    return "not judged" if outcome is None else "won" if outcome > 0.5 else "lost" if outcome < 0.5 else "tied"


def _text(text: str) -> str:
    return escape(text if len(text) <= LONGEST else text[:LONGEST] + " [...]") or "<small>(empty)</small>"


def _choice(name: str, all_of_them: str, values: Sequence[str]) -> str:
    if len(values) < 2:
        return ""
    options = "".join(f"<option>{escape(value)}</option>" for value in values)
    return f"<select name='{name}' aria-label='{name}'><option value=''>{all_of_them}</option>{options}</select>"
