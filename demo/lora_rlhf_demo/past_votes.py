"""The list of a run's past votes below the Compare tab: to read, to search, and to remove single ones."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from lora_rlhf.system.errors import UserError
from lora_rlhf_demo import show
from lora_rlhf_demo.show import safe_html
from lora_rlhf_demo.state import HANDLER_OPTIONS, App
from lora_rlhf_demo.votes import stage_win_rates

MOST_SHOWN = 100
QUESTION_CHARACTERS = 160
REMOVE_SCRIPT = """element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-remove-vote]");
  const warning = "Remove this vote? It moves to votes.removed.jsonl and no longer counts.";
  if (button && confirm(warning)) trigger("click", {vote: button.dataset.removeVote});
});"""


class PastVotes:
    """The section and its handlers. It is drawn anew when it opens, when the standings change, and by each search."""

    def __init__(self, app: App, run: gr.State, standing: gr.HTML) -> None:
        self.app = app
        with gr.Accordion("Past votes", open=False, elem_id="past") as section:
            self.search = gr.Textbox("", label="Search in questions, answers and stages (Enter)", elem_id="past-search")
            self.page = gr.HTML("", elem_id="past-votes", js_on_load=REMOVE_SCRIPT, apply_default_css=False)
        inputs: list[Any] = [run, self.search]
        gr.on([section.expand, standing.change, self.search.submit], self._show, inputs, self.page, **HANDLER_OPTIONS)
        self.page.click(self._remove, inputs, [self.page, standing], **HANDLER_OPTIONS)

    def _show(self, run: str | None, words: str) -> str:
        try:
            return past_votes_html(self.app.votes(run), words) if run else ""
        except (UserError, OSError) as error:
            return show.failure_html(str(error))

    def _remove(self, run: str, words: str, event: gr.EventData) -> tuple[str, Any]:
        try:
            self.app.remove_vote(run, str(event._data.get("vote", "")))
            rates = stage_win_rates(self.app.votes(run))
        except (UserError, OSError) as error:
            return show.failure_html(str(error)), gr.skip()
        return self._show(run, words), show.standings_table(rates)


def past_votes_html(rows: Sequence[Mapping[str, Any]], words: str = "") -> str:
    """The votes in which all of these words occur, the newest first."""
    wanted = words.casefold().split()
    texts = (json.dumps(row, ensure_ascii=False).casefold() for row in rows)
    found = [row for row, text in zip(rows, texts, strict=True) if all(word in text for word in wanted)]
    newest_first = sorted(reversed(found), key=lambda row: -_saved(row))
    count = f"{len(found):,} of {len(rows):,} votes" + (f"; the newest {MOST_SHOWN}" if len(found) > MOST_SHOWN else "")
    return f"{show.line_html(count)}{''.join(map(_vote_html, newest_first[:MOST_SHOWN]))}"


def _vote_html(row: Mapping[str, Any]) -> str:
    """One vote: the question and who won; opened, each answer with its rank. The file may come from anybody."""
    columns = [row.get(name) for name in ("systems", "responses", "ranks")]
    answers = list(zip(*(column if isinstance(column, list) else [] for column in columns), strict=False))
    best = " = ".join(str(system) for system, _, rank in answers if rank == 1)
    verdict = "all bad" if row.get("all_bad") is True else f"best: {best}"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(_saved(row))) if _saved(row) else ""
    cards = "".join(
        f'<div class="past-answer"><h2>{safe_html(f"{rank}. {system}")}</h2>{show.text_html(_text(response))}</div>'
        for system, response, rank in sorted(answers, key=lambda answer: str(answer[2]))
    )
    remove = ""
    if isinstance(name := row.get("vote"), str):
        remove = f'<button type="button" class="quiet" data-remove-vote="{safe_html(name)}">remove this vote</button>'
    question = safe_html(voted_question(row)[:QUESTION_CHARACTERS])
    about = f'<span class="line">{safe_html(f"{verdict}  {when}")}</span>'
    return f'<details class="past-vote"><summary>{question} {about}</summary>{cards}{remove}</details>'


def voted_question(row: Mapping[str, Any]) -> str:
    """The last question of a vote's conversation."""
    prompt = row.get("prompt")
    return _text(prompt[-1:] if isinstance(prompt, list) else prompt)


def _text(value: Any) -> str:
    """A text, or the text of a list with one message."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = value[0].get("content")
    return value if isinstance(value, str) else ""


def _saved(row: Mapping[str, Any]) -> float:
    """When the vote was saved; 0 if the row does not say it."""
    saved = row.get("saved")
    return float(saved) if isinstance(saved, int | float) else 0.0
