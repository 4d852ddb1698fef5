"""The controls of the Compare tab: what is chosen on the left, the conversation on the right, the question below it."""

from typing import Any

import gradio as gr

from lora_rlhf_demo.compare import LETTERS, Comparison
from lora_rlhf_demo.past_votes import PastVotes
from lora_rlhf_demo.presets import Presets
from lora_rlhf_demo.ranker import make_ranker, ranker_value
from lora_rlhf_demo.state import App, run_dropdown

ASK = "Ask (Enter sends, Esc stops)"
VOTE_FIRST = "Vote first: all go on from the best"  # fits a phone
USUAL_ANSWER_TOKENS = 256
TALK_SCRIPT = """element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-edit]");
  if (button) trigger("click", {turn: Number(button.dataset.edit)});
  if (event.target.closest("[data-version]")) trigger("select");
  const more = event.target.closest("[data-go-on]");
  if (more) trigger("submit", {column: Number(more.dataset.goOn)});
});"""
EXAMPLE_SCRIPT = """element.addEventListener("click", (event) => {
  const example = event.target.closest("[data-example]");
  const box = document.querySelector("#question textarea");
  if (!example || !box) return;
  Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value").set.call(box, example.textContent);
  box.dispatchEvent(new Event("input", {bubbles: true}));
  box.focus();
});"""

Values = dict[Any, Any]  # {control: its value}: the inputs of handlers, and their outputs


class CompareControls:
    """The controls, and how they look while no request is running. All that belongs to one page is in a `gr.State`.

    shown_run: the run that was opened, which the server knows even where the browser has lost the value of its list.
    previous: the conversation that Undo brings back. last: run and id of the conversation that a reload brings back.
    """

    def __init__(self, app: App, browser: gr.BrowserState) -> None:
        self.app, self.browser = app, browser
        self.shown_run, self.comparison, self.previous = gr.State(""), gr.State(None), gr.State(None)
        self.place = gr.State(0)  # of the last question that was taken from --prompts
        self.last = gr.BrowserState([], storage_key="lora-rlhf-conversation", secret="labeler")
        self.kept = gr.BrowserState({}, storage_key="lora-rlhf-presets", secret="labeler")
        with gr.Row(equal_height=False, elem_id="compare"):
            with gr.Column(scale=1, min_width=250, elem_id="side"):
                self._add_setting_controls()
            with gr.Column(scale=4, min_width=300, elem_id="main"):
                self.page = gr.HTML("", elem_id="talk", js_on_load=TALK_SCRIPT, apply_default_css=False)
                self.live = gr.HTML("", elem_id="live", js_on_load=EXAMPLE_SCRIPT, apply_default_css=False)
                with gr.Accordion(
                    "Rank by dragging or by keys", open=False, visible=False, elem_id="drag"
                ) as self.drag:
                    self.ranker = make_ranker("compare-ranker")
                    self.rank = gr.Button("Vote with this ranking", size="sm", elem_id="rank")
                self._add_question_controls()
        self.past_votes = PastVotes(app, self.shown_run, self.standing)
        self.text = gr.Textbox(visible="hidden")
        page_states = [self.shown_run, self.comparison, self.previous, self.place]
        self.states = [*page_states, self.browser, self.last, self.kept, self.history]
        chosen = [
            self.run,
            self.stages,
            self.blind,
            *self.presets.controls,
            self.presets.name,
            self.about,
            self.standing,
        ]
        buttons = [self.send, self.stop, self.back, self.unvote, self.vote_row, *self.best, self.drag, self.ranker]
        self.outputs = [*self.states, *chosen, *buttons, self.page, self.live, self.question, self.ranking]

    def _add_setting_controls(self) -> None:
        """Adds the run, its columns, and how they answer."""
        longest = self.app.config.max_response_tokens
        self.run = run_dropdown(self.app.run_names(), "run")
        self.about = gr.HTML("", elem_id="about", js_on_load=None, apply_default_css=False)
        self.stages = gr.CheckboxGroup([], label="Columns", elem_id="columns")
        self.blind = gr.Checkbox(False, label="Blind: names hidden until the vote", elem_id="blind", container=False)
        self.differences = gr.Checkbox(False, label="Colour tokens: stage against reference", elem_id="differences")
        self.raw = gr.Checkbox(False, label="Raw: answers as written, without Markdown", elem_id="raw")
        self.history = gr.Dropdown([], label="Earlier conversations", elem_id="history", visible=False)
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            self.system = gr.Textbox("", label="System prompt", lines=2, elem_id="system")
            self.temperature = gr.Slider(
                0, 2, value=1.0, step=0.05, label="Temperature (0: greedy)", elem_id="temperature"
            )
            self.top_p = gr.Slider(0.05, 1, value=1.0, step=0.05, label="Top-p (1: all tokens)", elem_id="top-p")
            usual = min(USUAL_ANSWER_TOKENS, longest)
            self.length = gr.Slider(1, longest, value=usual, step=1, label="Longest answer, tokens", elem_id="longest")
            self.seed = gr.Number(0, label="Seed of the first question", precision=0, minimum=0, maximum=2**31)
            self.presets = Presets(self.kept, [self.system, self.temperature, self.top_p, self.length])
        self.standing = gr.HTML("", elem_id="standings", js_on_load=None, apply_default_css=False)

    def _add_vote_controls(self) -> None:
        """Adds the buttons of a vote; `_idle_updates` displays as many as there are columns."""
        with gr.Row(visible=False, elem_id="vote") as self.vote_row:
            self.best = [gr.Button(f"{letter} is best", size="sm", min_width=90) for letter in LETTERS]
            self.tie = gr.Button("All as good", size="sm", min_width=90, elem_id="tie")
            self.all_bad = gr.Button("All bad", size="sm", min_width=90, elem_id="all-bad")
            self.ranking = gr.Textbox(
                label="A ranking",
                placeholder="or a ranking: B > A = C (Enter)",
                show_label=False,
                container=False,
                min_width=200,
                elem_id="ranking",
            )

    def _add_question_controls(self) -> None:
        """Adds the box for the question and the buttons below it."""
        with gr.Column(elem_id="asking"):
            self._add_vote_controls()
            self.question = gr.Textbox(
                label="Question",
                placeholder=ASK,
                show_label=False,
                container=False,
                lines=1,
                max_lines=8,
                elem_id="question",
            )
            with gr.Row(elem_id="buttons"):
                self.send = gr.Button("Send", variant="primary", size="sm", min_width=90, elem_id="send")
                self.next = gr.Button(
                    "Next prompt", size="sm", min_width=80, visible=bool(self.app.prompts), elem_id="next"
                )
                self.stop = gr.Button("Stop", size="sm", min_width=80, interactive=False, elem_id="stop")
                self.again = gr.Button("Regenerate", size="sm", min_width=80, elem_id="again")
                self.new = gr.Button("New", size="sm", min_width=80, elem_id="new")
                self.back = gr.Button("Undo", size="sm", min_width=80, visible=False, elem_id="back")
                self.unvote = gr.Button("Undo vote", size="sm", min_width=80, visible=False, elem_id="unvote")
                self.export = gr.Button("Export", size="sm", min_width=80, elem_id="export")

    def idle_updates(self, comparison: Comparison | None) -> Values:
        """The page when no request is running, with the voting buttons if a vote is missing.

        Without a comparison the page is empty.
        """
        must_vote = comparison is not None and comparison.is_waiting_for_vote
        last_turn = comparison.turns[-1] if comparison is not None and comparison.turns else None
        num_answers = 0 if last_turn is None else len(last_turn.stages)
        updates: Values = {button: gr.update(visible=column < num_answers) for column, button in enumerate(self.best)}
        box = gr.update(interactive=not must_vote, placeholder=VOTE_FIRST if must_vote else ASK)
        updates |= {self.vote_row: gr.update(visible=must_vote), self.question: box}
        updates |= {self.drag: gr.update(visible=must_vote), self.ranker: None}
        if must_vote and comparison is not None and last_turn is not None:
            texts = [answer.text for answer in last_turn.answers]
            name = f"{comparison.id} {len(comparison.turns)} {last_turn.settings.seed}"
            updates[self.ranker] = ranker_value(name, texts, has_fields=False)
        updates |= {self.send: gr.update(interactive=not must_vote), self.stop: gr.update(interactive=False)}
        updates |= {self.unvote: gr.update(visible=last_turn is not None and last_turn.vote != "")}
        if comparison is None:
            updates[self.page] = ""
        return {**updates, self.comparison: comparison, self.live: ""}
