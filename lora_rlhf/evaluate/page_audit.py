"""The audit as a part of the HTML report: flags, and answers to look at."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lora_rlhf.evaluate.page_cells import html_table
from lora_rlhf.evaluate.wording import name_of, number

Report = Mapping[str, Any]


def audit(report: Report) -> str:
    """The section; empty without an audit."""
    found = report.get("audit", {})
    if not found:
        return ""
    rows = []
    for name, flag in found["flags"].items():
        tone, said = ("bad", "raised") if flag["raised"] else ("good", "clear")
        title = name.replace("_", " ")
        rows.append(
            [escape(title[0].upper() + title[1:]), f"<span class='badge {tone}'>{said}</span>", escape(flag["why"])]
        )
    for name, why in found.get("left_out", {}).items():
        title = name.replace("_", " ")
        rows.append([escape(title[0].upper() + title[1:]), "<span class='badge'>unknown</span>", escape(why)])
    told = (
        "Ways in which a policy pleases its reward model and not its readers, each tested by itself against "
        f"{name_of(report['baseline'])}."
    )
    looks = [
        _look("The answers with the highest rewards", found.get("highest_reward", [])),
        _look("The answers on which reward model and judge disagree most", found.get("parting", [])),
    ]
    return (
        f"<h2>Signs of reward hacking</h2><p class='soft'>{told}</p>{html_table(['', '', 'why'], rows)}{''.join(looks)}"
    )


def _look(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Answers to look at, folded away."""
    if not rows:
        return ""
    cells = [
        [escape(row["prompt"]), escape(row["response"]), number(row.get("reward")), number(row.get("quality"))]
        for row in rows
    ]
    table = html_table(["prompt", "answer", "reward", "judge"], cells)
    return f"<details><summary>{title}</summary>{table}</details>"
