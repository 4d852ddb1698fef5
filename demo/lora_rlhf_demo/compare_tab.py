"""The Compare tab: one question to all stages of a run at once, blind votes, and their standings."""

import json
import random
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from lora_rlhf.system.errors import UserError
from lora_rlhf_demo import show
from lora_rlhf_demo.compare import LETTERS, Comparison
from lora_rlhf_demo.requests import Answered, Ask, Failed, Open, Opened, Partial, Settings, waiting_note
from lora_rlhf_demo.runs import about, list_runs
from lora_rlhf_demo.state import App
from lora_rlhf_demo.votes import best, parse_ranks, standings, tie

TAB = "compare"
MOST_COLUMNS = len(LETTERS)
USUAL_LENGTH = 256
SHORTENED = "The conversation no longer fits into the model's context: its oldest part was left out."
EDIT = """element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-edit]");
  if (button) trigger("click", {turn: Number(button.dataset.edit)});
});"""
DOWNLOAD = """(text) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = "conversation.json";
  link.click();
  URL.revokeObjectURL(link.href);
}"""

Values = dict[Any, Any]  # {control: its value}: the inputs of handlers, and their outputs


class CompareTab:
    """The controls of the tab and their handlers. All that belongs to one page is in its `gr.State`."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.talk = gr.State(None)
        with gr.Row(equal_height=False, elem_id="compare"):
            with gr.Column(scale=1, min_width=250, elem_id="side"):
                self._choices()
            with gr.Column(scale=4, min_width=300, elem_id="main"):
                self.page = gr.HTML("", elem_id="talk", js_on_load=EDIT, apply_default_css=False)
                self.live = gr.HTML("", elem_id="live", js_on_load=None, apply_default_css=False)
                self._vote_controls()
                self._ask_controls()
        self.text = gr.Textbox(visible="hidden")
        self._wire()

    def _choices(self) -> None:
        most = self.app.config.max_response_tokens
        self.run = gr.Dropdown([], label="Run", elem_id="run")
        self.about = gr.HTML("", elem_id="about", js_on_load=None, apply_default_css=False)
        self.stages = gr.CheckboxGroup([], label="Columns", elem_id="columns")
        self.blind = gr.Checkbox(False, label="Blind: names hidden until the vote", elem_id="blind", container=False)
        self.differences = gr.Checkbox(False, label="Colour tokens: stage against reference", elem_id="differences")
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            self.system = gr.Textbox("", label="System prompt", lines=2, elem_id="system")
            self.temperature = gr.Slider(0, 2, value=1.0, step=0.05, label="Temperature (0: greedy)")
            self.length = gr.Slider(1, most, value=min(USUAL_LENGTH, most), step=1, label="Longest answer, tokens")
            self.seed = gr.Number(0, label="Seed of the first question", precision=0, minimum=0, maximum=2**31)
        self.standing = gr.HTML("", elem_id="standings", js_on_load=None, apply_default_css=False)

    def _vote_controls(self) -> None:
        with gr.Row(visible=False, elem_id="vote") as self.vote_row:
            self.best = [gr.Button(f"{letter} is best", size="sm", min_width=90) for letter in LETTERS]
            self.tie = gr.Button("All as good", size="sm", min_width=90, elem_id="tie")
            self.ranking = gr.Textbox(
                placeholder="or a ranking: B > A = C (Enter)",
                show_label=False,
                container=False,
                min_width=200,
                elem_id="ranking",
            )

    def _ask_controls(self) -> None:
        with gr.Column(elem_id="asking"):
            self.question = gr.Textbox(
                placeholder="Ask all columns (Enter sends, Esc stops)",
                show_label=False,
                container=False,
                lines=1,
                max_lines=8,
                autofocus=True,
                elem_id="question",
            )
            with gr.Row(elem_id="buttons"):
                self.send = gr.Button("Send", variant="primary", size="sm", min_width=90, elem_id="send")
                self.stop = gr.Button("Stop", size="sm", min_width=80, interactive=False, elem_id="stop")
                self.again = gr.Button("Regenerate", size="sm", min_width=80, elem_id="again")
                self.new = gr.Button("New", size="sm", min_width=80, elem_id="new")
                self.export = gr.Button("Export", size="sm", min_width=80, elem_id="export")

    def _wire(self) -> None:
        controls = [self.question, self.ranking, self.system, self.temperature, self.length, self.seed]
        inputs: set[Any] = {self.talk, self.run, self.stages, self.blind, self.differences, *controls}
        outputs = [self.talk, self.page, self.live, self.question, self.send, self.stop, self.vote_row, *self.best]
        outputs += [self.run, self.stages, self.length, self.about, self.standing, self.ranking]
        free: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
        asking = [
            gr.on([self.send.click, self.question.submit], self._ask, inputs, outputs, **free),
            self.again.click(self._again, inputs, outputs, **free),
        ]
        self.stop.click(self._stop, None, None, queue=False, api_visibility="private")
        self.run.input(self._choose, inputs, outputs, cancels=asking, **free)
        for control in (self.new.click, self.stages.input, self.blind.input):
            control(self._begin, inputs, outputs, cancels=asking, **free)
        self.page.click(self._edit, inputs, outputs, cancels=asking, **free)
        self.differences.input(self._draw, inputs, outputs, **free)
        self.export.click(self._export, inputs, self.text, **free).then(None, self.text, None, js=DOWNLOAD)
        for column, button in enumerate(self.best):
            button.click(self._vote_best(column), inputs, outputs, **free)
        self.tie.click(self._vote_tie, inputs, outputs, **free)
        self.ranking.submit(self._vote_ranking, inputs, outputs, **free)
        self.arrive: tuple[Callable[..., Any], set[Any], list[Any]] = (self._arrive, inputs, outputs)

    # Handlers; each takes the values of all controls

    def _arrive(self, values: Values, request: gr.Request) -> Iterator[Values]:
        """A page was opened: lists the runs, and loads the first."""
        runs = [run.name for run in self.app.runs()]
        if not runs:
            yield {
                self.live: show.no_runs(list_runs(self.app.root), self.app.root.name),
                self.send: gr.update(interactive=False),
            }
            return
        yield from self._load(runs[0], request, {self.run: gr.update(choices=runs, value=runs[0])})

    def _choose(self, values: Values, request: gr.Request) -> Iterator[Values]:
        yield from self._load(values[self.run], request, {})

    def _load(self, run: str, request: gr.Request, updates: Values) -> Iterator[Values]:
        """Loads a run and displays its columns, in few steps: of two that come together, the browser loses one.

        updates: other controls to change at the same time.
        """
        yield {
            **self._free(None),
            self.standing: "",
            self.about: "",
            self.live: show.notice(f"Loading {run} ..."),
            **updates,
        }
        for event in self.app.submit(str(request.session_hash), TAB, Open(run)).events():
            if isinstance(event, Opened):
                columns = list(event.columns[:MOST_COLUMNS])
                longest = event.longest_answer
                yield {
                    self.stages: gr.update(choices=[*event.columns, *event.others], value=columns),
                    self.length: gr.update(maximum=longest, value=min(USUAL_LENGTH, longest)),
                    self.live: show.notice(f"Ask something: {', '.join(columns)} answer side by side."),
                    self.about: show.line(about(self.app.root, run)),
                    self.standing: self._standings(run),
                }
            elif isinstance(event, Failed):
                yield {self.stages: gr.update(choices=[], value=[]), self.live: show.failure(event.reason)}
            elif note := waiting_note(event):
                yield {self.live: show.notice(note)}

    def _ask(self, values: Values, request: gr.Request) -> Iterator[Values]:
        """One question to all columns; streams until every answer has ended."""
        talk = values[self.talk] or Comparison(values[self.run], tuple(values[self.stages]), blind=values[self.blind])
        question = values[self.question]
        try:
            talk = replace(talk, system=self.app.require_short(values[self.system] or ""))
            self.app.require_short(question)
            seed = int(values[self.seed] or 0) + len(talk.turns)
            settings = Settings(float(values[self.temperature]), int(values[self.length]), seed)
            ask = talk.ask(question, talk.order(random.Random(secrets.randbits(64))), settings)
        except UserError as error:
            yield {self.live: show.failure(str(error))}
            return
        yield from self._follow(talk, question, ask, values, request)

    def _follow(
        self, talk: Comparison, question: str, ask: Ask, values: Values, request: gr.Request
    ) -> Iterator[Values]:
        """Streams the answers; if there are none, the question comes back into its box."""
        empty = [""] * len(ask.columns)
        busy = {self.send: gr.update(interactive=False), self.stop: gr.update(interactive=True)}
        page = show.page(talk, values[self.differences])
        yield {**busy, self.question: "", self.page: page, self.live: show.live(talk, question, empty)}
        for event in self.app.submit(str(request.session_hash), TAB, ask).events():
            if isinstance(event, Failed) or (isinstance(event, Answered) and event.is_silent):
                message = show.failure(event.reason) if isinstance(event, Failed) else show.notice("Stopped.")
                box = {self.question: gr.update(value=question, interactive=True)}
                yield {**self._free(talk if talk.turns else None), **box, self.live: message}
            elif isinstance(event, Answered):
                answered = talk.answered(question, ask, event.answers)
                notes = [*(["Stopped."] if event.stopped else []), *([SHORTENED] if event.shortened else [])]
                page = show.page(answered, values[self.differences])
                yield {**self._free(answered), self.page: page, self.live: show.notice(" ".join(notes))}
            else:
                texts = event.texts if isinstance(event, Partial) else empty
                yield {self.live: show.live(talk, question, texts, waiting_note(event))}

    def _again(self, values: Values, request: gr.Request) -> Iterator[Values]:
        """The last question once more, with another seed."""
        talk: Comparison | None = values[self.talk]
        if talk is None or not talk.turns:
            yield {self.live: show.notice("There is no question yet to answer again.")}
            return
        last, before = talk.turns[-1], talk.back_to(len(talk.turns) - 1)
        settings = replace(last.settings, seed=secrets.randbelow(2**31))
        ask = before.ask(last.question, before.order(random.Random(secrets.randbits(64))), settings)
        yield {self.talk: before, self.vote_row: gr.update(visible=False)}
        yield from self._follow(before, last.question, ask, values, request)

    def _stop(self, request: gr.Request) -> None:
        self.app.stop(str(request.session_hash), TAB)

    def _edit(self, values: Values, event: gr.EventData, request: gr.Request) -> Values:
        """Puts a question back into its box, and the conversation back to before it."""
        talk, turn = values[self.talk], event._data.get("turn")
        if talk is None or not isinstance(turn, int) or not 0 <= turn < len(talk.turns):
            return {self.live: gr.update()}
        self._stop(request)
        before = talk.back_to(turn)
        question = gr.update(value=talk.turns[turn].question, interactive=True)
        return {**self._free(before), self.question: question, self.page: show.page(before, values[self.differences])}

    def _begin(self, values: Values, request: gr.Request) -> Values:
        """A new conversation, for example because other columns were chosen."""
        self._stop(request)
        return self._free(None)

    def _draw(self, values: Values) -> Values:
        talk = values[self.talk]
        return {self.page: gr.update() if talk is None else show.page(talk, values[self.differences])}

    def _vote_best(self, column: int) -> Callable[[Values, gr.Request], Values]:
        def vote(values: Values, request: gr.Request) -> Values:
            return self._vote(values, lambda count: best(column, count), request)

        return vote

    def _vote_tie(self, values: Values, request: gr.Request) -> Values:
        return self._vote(values, tie, request)

    def _vote_ranking(self, values: Values, request: gr.Request) -> Values:
        return self._vote(values, lambda count: parse_ranks(values[self.ranking], count), request)

    def _vote(self, values: Values, ranks: Callable[[int], tuple[int, ...]], request: gr.Request) -> Values:
        """Saves the vote, and displays the names of the columns."""
        talk: Comparison | None = values[self.talk]
        try:
            if talk is None:
                raise UserError("There is nothing to vote on: ask a question in blind mode first.")
            voted, row, is_ranking = talk.voted(ranks(len(talk.stages)), request.username or "")
            self.app.save_vote(talk.run, row, is_ranking)
        except (UserError, OSError) as error:
            return {self.live: show.failure(str(error))}
        page = {self.page: show.page(voted, values[self.differences]), self.live: show.notice("Your vote is saved.")}
        return {**self._free(voted), **page, self.standing: self._standings(talk.run), self.ranking: ""}

    def _export(self, values: Values) -> str:
        talk: Comparison | None = values[self.talk]
        return json.dumps({} if talk is None else talk.exported(), ensure_ascii=False, indent=2)

    def _standings(self, run: str) -> str:
        try:
            rows = self.app.votes(run)
            return show.standings(standings(rows)) if rows else ""
        except (UserError, OSError):
            return ""

    def _free(self, talk: Comparison | None) -> Values:
        """The page when no request is running: with the voting buttons if a vote is missing; empty without `talk`."""
        votes, count = talk is not None and talk.is_open, 0 if talk is None else len(talk.stages)
        updates: Values = {button: gr.update(visible=column < count) for column, button in enumerate(self.best)}
        updates |= {self.vote_row: gr.update(visible=votes), self.question: gr.update(interactive=not votes)}
        updates |= {self.send: gr.update(interactive=not votes), self.stop: gr.update(interactive=False)}
        return {**updates, self.talk: talk, self.live: "", **({self.page: ""} if talk is None else {})}
