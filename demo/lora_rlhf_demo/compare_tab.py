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
from lora_rlhf_demo.runs import list_runs, run_summary
from lora_rlhf_demo.state import HANDLER_OPTIONS, App, user_of
from lora_rlhf_demo.votes import parse_ranks, ranks_with_best, stage_win_rates, tied_ranks

TAB = "compare"
MOST_COLUMNS = len(LETTERS)
USUAL_ANSWER_TOKENS = 256
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
        self.comparison = gr.State(None)
        with gr.Row(equal_height=False, elem_id="compare"):
            with gr.Column(scale=1, min_width=250, elem_id="side"):
                self._add_setting_controls()
            with gr.Column(scale=4, min_width=300, elem_id="main"):
                self.page = gr.HTML("", elem_id="talk", js_on_load=EDIT, apply_default_css=False)
                self.live = gr.HTML("", elem_id="live", js_on_load=None, apply_default_css=False)
                self._add_vote_controls()
                self._add_question_controls()
        self.text = gr.Textbox(visible="hidden")
        self._connect_controls()

    def _add_setting_controls(self) -> None:
        """Adds the run, its columns, and how they answer."""
        longest = self.app.config.max_response_tokens
        self.run = gr.Dropdown([], label="Run", elem_id="run")
        self.about = gr.HTML("", elem_id="about", js_on_load=None, apply_default_css=False)
        self.stages = gr.CheckboxGroup([], label="Columns", elem_id="columns")
        self.blind = gr.Checkbox(False, label="Blind: names hidden until the vote", elem_id="blind", container=False)
        self.differences = gr.Checkbox(False, label="Colour tokens: stage against reference", elem_id="differences")
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            self.system = gr.Textbox("", label="System prompt", lines=2, elem_id="system")
            self.temperature = gr.Slider(0, 2, value=1.0, step=0.05, label="Temperature (0: greedy)")
            usual = min(USUAL_ANSWER_TOKENS, longest)
            self.length = gr.Slider(1, longest, value=usual, step=1, label="Longest answer, tokens")
            self.seed = gr.Number(0, label="Seed of the first question", precision=0, minimum=0, maximum=2**31)
        self.standing = gr.HTML("", elem_id="standings", js_on_load=None, apply_default_css=False)

    def _add_vote_controls(self) -> None:
        """Adds the buttons of a vote; `_idle_updates` displays as many as there are columns."""
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

    def _add_question_controls(self) -> None:
        """Adds the box for the question and the buttons below it."""
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

    def _connect_controls(self) -> None:
        """Connects each control with its handler."""
        controls = [self.question, self.ranking, self.system, self.temperature, self.length, self.seed]
        inputs: set[Any] = {self.comparison, self.run, self.stages, self.blind, self.differences, *controls}
        outputs = [self.comparison, self.page, self.live, self.question, self.send, self.stop, self.vote_row]
        outputs += [*self.best, self.run, self.stages, self.length, self.about, self.standing, self.ranking]
        asking = [
            gr.on([self.send.click, self.question.submit], self._ask_question, inputs, outputs, **HANDLER_OPTIONS),
            self.again.click(self._answer_again, inputs, outputs, **HANDLER_OPTIONS),
        ]
        self.stop.click(self._stop_request, None, None, queue=False, api_visibility="private")
        self.run.input(self._choose_run, inputs, outputs, cancels=asking, **HANDLER_OPTIONS)
        for event in (self.new.click, self.stages.input, self.blind.input):
            event(self._begin_conversation, inputs, outputs, cancels=asking, **HANDLER_OPTIONS)
        self.page.click(self._edit_question, inputs, outputs, cancels=asking, **HANDLER_OPTIONS)
        self.differences.input(self._redraw, inputs, outputs, **HANDLER_OPTIONS)
        self.export.click(self._conversation_json, inputs, self.text, **HANDLER_OPTIONS).then(
            None, self.text, None, js=DOWNLOAD
        )
        for column, button in enumerate(self.best):
            button.click(self._best_vote_handler(column), inputs, outputs, **HANDLER_OPTIONS)
        self.tie.click(self._vote_tie, inputs, outputs, **HANDLER_OPTIONS)
        self.ranking.submit(self._vote_ranking, inputs, outputs, **HANDLER_OPTIONS)
        self.on_page_open: tuple[Callable[..., Any], set[Any], list[Any]] = (self._open_page, inputs, outputs)

    # Handlers; each takes the values of all controls

    def _open_page(self, values: Values, request: gr.Request) -> Iterator[Values]:
        """A page was opened: lists the runs, and loads the first."""
        runs = [run.name for run in self.app.runs()]
        if not runs:
            yield {
                self.live: show.no_runs_html(list_runs(self.app.root), self.app.root.name),
                self.send: gr.update(interactive=False),
            }
            return
        yield from self._load_run(runs[0], request, {self.run: gr.update(choices=runs, value=runs[0])})

    def _choose_run(self, values: Values, request: gr.Request) -> Iterator[Values]:
        yield from self._load_run(values[self.run], request, {})

    def _load_run(self, run: str, request: gr.Request, updates: Values) -> Iterator[Values]:
        """Loads a run and displays its columns, in few steps: if two updates come together, the browser loses one.

        updates: other controls to change at the same time.
        """
        yield {
            **self._idle_updates(None),
            self.standing: "",
            self.about: "",
            self.live: show.notice_html(f"Loading {run} ..."),
            **updates,
        }
        for event in self.app.submit(str(request.session_hash), TAB, Open(run), user_of(request)).events():
            if isinstance(event, Opened):
                columns = list(event.columns[:MOST_COLUMNS])
                longest = event.longest_answer
                yield {
                    self.stages: gr.update(choices=[*event.columns, *event.other_columns], value=columns),
                    self.length: gr.update(maximum=longest, value=min(USUAL_ANSWER_TOKENS, longest)),
                    self.live: show.notice_html(f"Ask something: {', '.join(columns)} answer side by side."),
                    self.about: show.line_html(run_summary(self.app.root, run)),
                    self.standing: self._standings_html(run),
                }
            elif isinstance(event, Failed):
                yield {self.stages: gr.update(choices=[], value=[]), self.live: show.failure_html(event.reason)}
            elif note := waiting_note(event):
                yield {self.live: show.notice_html(note)}

    def _ask_question(self, values: Values, request: gr.Request) -> Iterator[Values]:
        """Asks all columns one question; streams until every answer has ended."""
        comparison = values[self.comparison] or Comparison(
            values[self.run], tuple(values[self.stages]), is_blind=values[self.blind]
        )
        question = values[self.question]
        try:
            comparison = replace(comparison, system=self.app.require_short(values[self.system] or ""))
            self.app.require_short(question)
            seed = int(values[self.seed] or 0) + len(comparison.turns)
            settings = Settings(float(values[self.temperature]), int(values[self.length]), seed)
            ask = comparison.request_next_turn(
                question, comparison.column_order(random.Random(secrets.randbits(64))), settings
            )
        except UserError as error:
            yield {self.live: show.failure_html(str(error))}
            return
        yield from self._stream_answers(comparison, question, ask, values, request)

    def _stream_answers(
        self, comparison: Comparison, question: str, ask: Ask, values: Values, request: gr.Request
    ) -> Iterator[Values]:
        """Streams the answers; if there are none, puts the question back into its box."""
        empty_texts = [""] * len(ask.columns)
        busy_updates = {self.send: gr.update(interactive=False), self.stop: gr.update(interactive=True)}
        page = show.turns_html(comparison, values[self.differences])
        live = show.live_turn_html(comparison, question, empty_texts)
        yield {**busy_updates, self.question: "", self.page: page, self.live: live}
        for event in self.app.submit(str(request.session_hash), TAB, ask, user_of(request)).events():
            if isinstance(event, Failed) or (isinstance(event, Answered) and event.has_no_token):
                message = show.failure_html(event.reason) if isinstance(event, Failed) else show.notice_html("Stopped.")
                box = {self.question: gr.update(value=question, interactive=True)}
                yield {**self._idle_updates(comparison if comparison.turns else None), **box, self.live: message}
            elif isinstance(event, Answered):
                answered = comparison.with_answers(question, ask, event.answers)
                notes = [*(["Stopped."] if event.is_stopped else []), *([SHORTENED] if event.is_shortened else [])]
                page = show.turns_html(answered, values[self.differences])
                yield {**self._idle_updates(answered), self.page: page, self.live: show.notice_html(" ".join(notes))}
            else:
                texts = event.texts if isinstance(event, Partial) else empty_texts
                yield {self.live: show.live_turn_html(comparison, question, texts, waiting_note(event))}

    def _answer_again(self, values: Values, request: gr.Request) -> Iterator[Values]:
        """Asks the last question once more, with another seed."""
        comparison: Comparison | None = values[self.comparison]
        if comparison is None or not comparison.turns:
            yield {self.live: show.notice_html("There is no question yet to answer again.")}
            return
        last_turn, earlier = comparison.turns[-1], comparison.before_turn(len(comparison.turns) - 1)
        settings = replace(last_turn.settings, seed=secrets.randbelow(2**31))
        ask = earlier.request_next_turn(
            last_turn.question, earlier.column_order(random.Random(secrets.randbits(64))), settings
        )
        yield {self.comparison: earlier, self.vote_row: gr.update(visible=False)}
        yield from self._stream_answers(earlier, last_turn.question, ask, values, request)

    def _stop_request(self, request: gr.Request) -> None:
        self.app.stop(str(request.session_hash), TAB)

    def _edit_question(self, values: Values, event: gr.EventData, request: gr.Request) -> Values:
        """Puts a question back into its box, and the conversation back to the turn before it."""
        comparison, turn_index = values[self.comparison], event._data.get("turn")
        if comparison is None or not isinstance(turn_index, int) or not 0 <= turn_index < len(comparison.turns):
            return {self.live: gr.update()}
        self._stop_request(request)
        earlier = comparison.before_turn(turn_index)
        question = gr.update(value=comparison.turns[turn_index].question, interactive=True)
        return {
            **self._idle_updates(earlier),
            self.question: question,
            self.page: show.turns_html(earlier, values[self.differences]),
        }

    def _begin_conversation(self, values: Values, request: gr.Request) -> Values:
        """Begins a new conversation, for example because other columns were chosen."""
        self._stop_request(request)
        return self._idle_updates(None)

    def _redraw(self, values: Values) -> Values:
        comparison = values[self.comparison]
        return {self.page: gr.update() if comparison is None else show.turns_html(comparison, values[self.differences])}

    def _best_vote_handler(self, column: int) -> Callable[[Values, gr.Request], Values]:
        def vote(values: Values, request: gr.Request) -> Values:
            return self._save_vote(values, lambda count: ranks_with_best(column, count), request)

        return vote

    def _vote_tie(self, values: Values, request: gr.Request) -> Values:
        return self._save_vote(values, tied_ranks, request)

    def _vote_ranking(self, values: Values, request: gr.Request) -> Values:
        return self._save_vote(values, lambda count: parse_ranks(values[self.ranking], count), request)

    def _save_vote(self, values: Values, ranks: Callable[[int], tuple[int, ...]], request: gr.Request) -> Values:
        """Saves the vote, and displays the names of the columns."""
        comparison: Comparison | None = values[self.comparison]
        try:
            if comparison is None:
                raise UserError("There is nothing to vote on: ask a question in blind mode first.")
            voted, row, is_ranking = comparison.with_vote(ranks(len(comparison.stages)), request.username or "")
            self.app.save_vote(comparison.run, row, is_ranking)
        except (UserError, OSError) as error:
            return {self.live: show.failure_html(str(error))}
        updates = self._idle_updates(voted) | {self.page: show.turns_html(voted, values[self.differences])}
        updates |= {self.live: show.notice_html("Your vote is saved."), self.ranking: ""}
        return updates | {self.standing: self._standings_html(comparison.run)}

    def _conversation_json(self, values: Values) -> str:
        comparison: Comparison | None = values[self.comparison]
        return json.dumps({} if comparison is None else comparison.to_json_object(), ensure_ascii=False, indent=2)

    def _standings_html(self, run: str) -> str:
        """The result of all votes of a run; empty if they cannot be read."""
        try:
            rows = self.app.votes(run)
            return show.standings_table(stage_win_rates(rows)) if rows else ""
        except (UserError, OSError):
            return ""

    def _idle_updates(self, comparison: Comparison | None) -> Values:
        """The page when no request is running, with the voting buttons if a vote is missing.

        Without a comparison the page is empty.
        """
        must_vote = comparison is not None and comparison.is_waiting_for_vote
        num_columns = 0 if comparison is None else len(comparison.stages)
        updates: Values = {button: gr.update(visible=column < num_columns) for column, button in enumerate(self.best)}
        updates |= {self.vote_row: gr.update(visible=must_vote), self.question: gr.update(interactive=not must_vote)}
        updates |= {self.send: gr.update(interactive=not must_vote), self.stop: gr.update(interactive=False)}
        if comparison is None:
            updates[self.page] = ""
        return {**updates, self.comparison: comparison, self.live: ""}
