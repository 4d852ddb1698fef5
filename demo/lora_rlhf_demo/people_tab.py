"""The People tab: who labelled how much, how fast and how far they agree; and how one person's rankings are removed."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from lora_rlhf.runs.rounds import RECORD
from lora_rlhf.system.errors import UserError
from lora_rlhf_demo import label_show
from lora_rlhf_demo.label_session import LabelActions
from lora_rlhf_demo.people import PeopleFigures, PersonFigures, PromptFigures
from lora_rlhf_demo.show import safe_html
from lora_rlhf_demo.state import HANDLER_OPTIONS, App, run_dropdown, runs_update

NOTHING = "Nobody has ranked anything in this run yet. `lora-rlhf demo --label --run {run}` serves labelers a page."
FAST = "{count} of these rankings took less time than it takes to read the prompt and the answers at 600 words a minute"


class PeopleTab:
    """The controls of the tab and their handlers. Each change of run, and each opening, reads the file anew."""

    def __init__(self, app: App, tab: gr.Tab) -> None:
        self.app, self.actions = app, LabelActions(app.config)
        with gr.Row(equal_height=False, elem_classes=["labelling"]):
            with gr.Column(scale=1, min_width=260, elem_classes=["side"]):
                self.run = run_dropdown(app.run_names(), "people-run")
                self.agreement = gr.HTML("", apply_default_css=False, elem_id="agreement")
                with gr.Accordion("Remove a person's rankings", open=False, elem_id="remove"):
                    self.name = gr.Dropdown([], label="Person", elem_id="remove-name")
                    self.reason = gr.Textbox("", label="Why", max_lines=2, elem_id="remove-reason")
                    self.remove = gr.Button("Remove", size="md", variant="stop", elem_id="remove-button")
                self.note = gr.HTML("", apply_default_css=False, elem_id="people-note")
            with gr.Column(scale=3, min_width=300):
                self.page = gr.HTML("", apply_default_css=False, elem_id="people")
        outputs = [self.page, self.agreement, self.name]
        self.run.input(self._show, self.run, outputs, **HANDLER_OPTIONS)
        tab.select(self._show, self.run, outputs, **HANDLER_OPTIONS)
        removal = [self.run, self.name, self.reason]
        self.remove.click(self._remove, removal, [*outputs, self.note, self.reason], **HANDLER_OPTIONS)
        self.on_page_open: tuple[Callable[..., Any], list[Any], list[Any]] = (self._open_page, [self.run], [self.run])

    def _open_page(self, shown: str | None) -> Any:
        return runs_update(self.app.run_names(), shown)

    def _show(self, run: str | None) -> tuple[Any, ...]:
        run = run or next(iter(self.app.run_names()), "")  # the list of runs may not have arrived yet
        if not run:
            return "", "", gr.update(choices=[], value=None)
        try:
            labelling = self.actions.read_labelling(run)
            figures, agreement = labelling.people(), labelling.labeler_agreement()
        except (UserError, OSError) as error:
            return label_show.note_html(str(error), "failure"), "", gr.update(choices=[], value=None)
        if not figures.people:
            page = label_show.note_html(NOTHING.format(run=run))
        else:
            page = people_html(figures, len(labelling.tasks), self._use(run, labelling.rankings.path))
        names = [person.name for person in figures.people if person.name]
        return page, label_show.agreement_table(agreement), gr.update(choices=names, value=None)

    def _use(self, run: str, rankings: Path) -> str:
        """What to do with the rankings, as HTML: `lora-rlhf round` reads those of a round, `reward` all others."""
        folder = self.app.root / run
        if (folder / RECORD).is_file():
            return (
                "When all are ranked, give the same <code>lora-rlhf round</code> command again: it goes on with them."
            )
        train = f"lora-rlhf reward --run {folder}-ranked --sft {folder}/sft --rankings {rankings}"
        return f"To train a reward model on them: <code>{safe_html(train)}</code>"

    def _remove(self, run: str | None, name: str | None, reason: str) -> tuple[Any, ...]:
        """Moves a person's rankings to a file beside the rankings, with the reason."""
        try:
            if not run or not name:
                raise UserError("Choose the person first.")
            if not reason.strip():
                raise UserError("Write why: it is kept beside the rankings that are removed.")
            count, path = self.actions.read_labelling(run).remove_labeler(name, reason.strip())
            note = label_show.note_html(f"{count} rankings of {name} are in {path.name} now.")
        except (UserError, OSError) as error:
            return *(gr.skip(),) * 3, label_show.note_html(str(error), "failure"), gr.skip()
        return *self._show(run), note, ""


def people_html(figures: PeopleFigures, num_tasks: int, use: str) -> str:
    """The table of people, how many prompts have how many rankings and what to do with them, and what to discuss.

    use: HTML.
    """
    head = ("Person", "Rankings", "Median time", "Agrees with others", "Last")
    rows = "".join(map(_person_row, figures.people))
    counts = ", ".join(
        f"{prompts:,} ranked by {people} {'person' if people == 1 else 'people'}"
        for people, prompts in figures.prompts_by_people.items()
    )
    table = f'<table class="people"><tr>{"".join(f"<th>{name}</th>" for name in head)}</tr>{rows}</table>'
    progress = f'<p class="small">Of {num_tasks:,} prompts: {counts}.</p><p class="small">{use}</p>'
    disputes = "".join(map(_dispute_html, figures.disagreements))
    title = "<h2>To discuss: the prompts on which people agree least</h2>" if disputes else ""
    return f'<div class="people-page">{table}{progress}{title}{disputes}</div>'


def _person_row(person: PersonFigures) -> str:
    rate = person.agreement.rate
    agreement = "" if rate is None else f"{100 * rate:.0f} % of {person.agreement.num_pairs:,} pairs"
    seconds = "" if person.seconds is None else f"{person.seconds:.0f} s"
    if person.is_too_fast:
        reason = FAST.format(count=person.num_fast)
        seconds += f' <strong class="warning" title="{reason}">too fast: {person.num_fast}</strong>'
    last = time.strftime("%Y-%m-%d %H:%M", time.localtime(person.last_saved)) if person.last_saved else ""
    name = safe_html(person.name) or "<em>without a name</em>"
    cells = (name, f"{person.rankings:,}", seconds, agreement, last)
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _dispute_html(prompt: PromptFigures) -> str:
    """One prompt, its answers, and each person's order of them."""
    responses = list(dict.fromkeys(text for ranking in prompt.rankings for text in ranking.responses))
    head = "".join(f"<th>{safe_html(ranking.labeler or 'nobody')}</th>" for ranking in prompt.rankings)
    rows = "".join(
        f'<tr><td><div class="text" dir="auto">{safe_html(response)}</div></td>'
        + "".join(f"<td>{_rank_of(ranking.responses, ranking.ranks, response)}</td>" for ranking in prompt.rankings)
        + "</tr>"
        for response in responses
    )
    comments = "".join(
        f'<p class="small">{safe_html(ranking.labeler or "")}: {safe_html(str(comment))}</p>'
        for ranking in prompt.rankings
        if (comment := ranking.prompt.meta.get("comment"))
    )
    rate = 100 * (prompt.agreement.rate or 0.0)
    question = prompt.rankings[0].prompt.messages[-1].text
    title = f"<summary>{rate:.0f} % of {prompt.agreement.num_pairs} pairs alike: {safe_html(question[:200])}</summary>"
    return f'<details class="dispute">{title}<table><tr><th>Answer</th>{head}</tr>{rows}</table>{comments}</details>'


def _rank_of(responses: tuple[str, ...], ranks: tuple[int, ...], response: str) -> str:
    return str(ranks[responses.index(response)]) if response in responses else ""
