"""The Reward tab: a conversation, up to six answers, and their scores while a person writes them."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from lora_rlhf.system.errors import UserError
from lora_rlhf_demo import label_show
from lora_rlhf_demo.compare import LETTERS
from lora_rlhf_demo.playground import Scoring, bars_html, parse_conversation
from lora_rlhf_demo.requests import Failed, Loading, Score, Scored, Waiting
from lora_rlhf_demo.state import HANDLER_OPTIONS, App, run_dropdown, runs_update

MOST_ANSWERS = len(LETTERS)


class PlaygroundTab:
    """The controls of the tab and their handlers. The scores that a page displays are in its `gr.State`."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.scoring = gr.State(None)
        self.num_boxes = gr.State(2)
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=300):
                self.run = run_dropdown(app.run_names(), "reward-run")
                self.prompt = gr.Textbox(
                    "", label="Prompt", lines=2, max_lines=10, elem_id="reward-prompt",
                    placeholder="One message; or several turns in lines that begin with User: and Assistant:",
                )  # fmt: skip
                self.answers = [
                    gr.Textbox(
                        "", label=f"Answer {letter}", lines=2, max_lines=10, visible=index < 2,
                        elem_id=f"reward-answer-{letter}",
                    )
                    for index, letter in enumerate(LETTERS)
                ]  # fmt: skip
                self.more = gr.Button("Add an answer", size="sm", scale=0, min_width=140, elem_id="reward-more")
            with gr.Column(scale=2, min_width=300):
                self.scores = gr.HTML(bars_html(Scoring({}, {}), []), apply_default_css=False, elem_id="reward-scores")
        self._connect_controls()

    def _connect_controls(self) -> None:
        """Connects each control with its handler."""
        inputs = [self.scoring, self.run, self.prompt, *self.answers]
        for box in (self.prompt, *self.answers):
            # while one edit is scored, only the last of the following edits waits: nothing else limits the rate
            box.change(
                self._score_answers, inputs, [self.scoring, self.scores], trigger_mode="always_last", **HANDLER_OPTIONS
            )
        self.run.input(self._score_anew, inputs, [self.scoring, self.scores], **HANDLER_OPTIONS)
        self.more.click(
            self._add_answer_box, self.num_boxes, [self.num_boxes, self.more, *self.answers], **HANDLER_OPTIONS
        )
        self.on_page_open: tuple[Callable[..., Any], list[Any], list[Any]] = (self._open_page, [self.run], [self.run])

    def _open_page(self, shown: str | None) -> Any:
        """A page was opened: lists the runs."""
        return runs_update(self.app.run_names(), shown)

    def _score_anew(self, _: Any, *inputs: Any) -> Iterator[tuple[Any, Any]]:
        """Scores with another reward model, without a comparison with the scores before."""
        yield from self._score_answers(None, *inputs)

    def _score_answers(
        self, previous_scoring: Scoring | None, run: str | None, prompt: str, *answers: str
    ) -> Iterator[tuple[Any, Any]]:
        """Scores the answers that are not empty, and displays them beside their previous scores."""
        filled_indices = [index for index, answer in enumerate(answers) if answer.strip()]
        if not run or not prompt.strip() or not filled_indices:
            yield None, bars_html(Scoring({}, {}), answers)
            return
        try:
            for text in (prompt, *answers):
                self.app.require_short(text)
            request = Score(run, parse_conversation(prompt), tuple(answers[index] for index in filled_indices))
        except UserError as error:
            yield previous_scoring, label_show.note_html(str(error), "failure")
            return
        for event in self.app.worker.submit(request).events():
            if isinstance(event, Scored):
                scores = dict(zip(filled_indices, event.scores, strict=True))
                scoring = (previous_scoring or Scoring({}, {})).with_scores(scores)
                yield scoring, bars_html(scoring, answers)
            elif isinstance(event, Failed):
                yield previous_scoring, label_show.note_html(event.reason, "failure")
            elif isinstance(event, Loading):
                yield previous_scoring, label_show.note_html(f"Loading {event.run} ...")
            elif isinstance(event, Waiting):
                yield previous_scoring, gr.skip()

    def _add_answer_box(self, num_boxes: int) -> tuple[Any, ...]:
        num_boxes = min(num_boxes + 1, MOST_ANSWERS)
        boxes = [gr.update(visible=index < num_boxes) for index in range(MOST_ANSWERS)]
        return num_boxes, gr.update(visible=num_boxes < MOST_ANSWERS), *boxes
