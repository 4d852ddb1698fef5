"""The Label tab: ranks, ratings and flags for the answers to a prompt, saved as rankings for the reward stage."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from lora_rlhf.configs.catalogue import BASE, WRITERS
from lora_rlhf.data.schema import Message, Prompt
from lora_rlhf.runs.manifest import FINISHED
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.plain_files import read_file
from lora_rlhf_demo import label_show
from lora_rlhf_demo.label_session import LabelActions, LabelSession
from lora_rlhf_demo.ranker import make_ranker
from lora_rlhf_demo.requests import Answered, Ask, Column, Failed, Partial, Settings, waiting_note
from lora_rlhf_demo.runs import find_run_folder, read_run_state
from lora_rlhf_demo.show import text_html
from lora_rlhf_demo.state import HANDLER_OPTIONS, App, user_of
from lora_rlhf_demo.tasks import PROMPT_FLAGS, make_task, parse_labeler_name

GUIDELINES = Path(__file__).parent / "guidelines.md"
MOST_GUIDELINES = 100_000  # characters
MOST_LIVE = 6
TAB = "label"


class LabelTab:
    """The controls of the tab and their handlers. The labeler and the task of a page are in its `gr.State`.

    saved_name: stores the labeler's name in the browser, for the next visit.
    """

    def __init__(self, app: App, saved_name: gr.BrowserState) -> None:
        self.app = app
        self.saved_name = saved_name
        self.actions = LabelActions(app.config)
        self.session = gr.State(None)
        with gr.Row(equal_height=False, elem_classes=["labelling"]):
            with gr.Column(scale=1, min_width=260, elem_classes=["side"]):
                self.run = gr.Dropdown([], label="Run", elem_id="label-run")
                self.name = gr.Textbox("", label="Your name", max_lines=1, elem_id="labeler")
                self.begin = gr.Button("Begin", variant="primary", size="md", elem_id="begin")
                self.progress = gr.HTML("", apply_default_css=False, elem_id="label-progress")
                self._add_live_controls()
                with gr.Accordion("Guidelines", open=False, elem_id="guidelines"):
                    self._add_guidelines()
                with gr.Accordion("Agreement between labelers", open=False, elem_id="agreement") as self.agreement:
                    self.agreement_table = gr.HTML("", apply_default_css=False)
            with gr.Column(scale=3, min_width=300):
                self.prompt = gr.HTML(_welcome_html(), apply_default_css=False, elem_id="label-prompt")
                self.note = gr.HTML("", apply_default_css=False, elem_id="label-note")
                with gr.Row(visible=False, elem_classes=["slim"]) as self.buttons:
                    self.save = gr.Button("Save", variant="primary", size="md", min_width=90, scale=0, elem_id="save")
                    self.skip = gr.Button("Skip", size="md", min_width=90, scale=0, elem_id="skip")
                    self.undo = gr.Button("Undo", size="md", min_width=90, scale=0, elem_id="undo")
                self.ranker = make_ranker("ranker")
                with gr.Accordion("About the prompt", open=False, visible=False) as self.about:
                    flags = [(title, key) for key, title in PROMPT_FLAGS.items()]
                    self.prompt_flags = gr.CheckboxGroup(
                        flags, show_label=False, container=False, elem_id="prompt-flags"
                    )
        self._connect_controls()

    def _add_live_controls(self) -> None:
        """Adds what draws answers to a prompt that the labeler types."""
        with gr.Accordion("Live answers", open=False, elem_id="live"):
            self.stage = gr.Dropdown([], label="Stage")
            self.num_answers = gr.Slider(2, MOST_LIVE, value=4, step=1, label="Answers")
            self.temperature = gr.Slider(0.1, 2, value=1.0, step=0.05, label="Temperature")
            self.live_prompt = gr.Textbox("", label="Your prompt", lines=2, max_lines=8, elem_id="live-prompt")
            self.draw = gr.Button("Draw answers", size="md", elem_id="draw")

    def _add_guidelines(self) -> None:
        """The package's guidelines as Markdown; a file of the user's as plain text."""
        if self.app.config.guidelines is None:
            gr.Markdown(GUIDELINES.read_text(encoding="utf-8"))
        else:
            text = read_file(Path(self.app.config.guidelines), follow_links=True).decode(errors="replace")
            gr.HTML(text_html(text[:MOST_GUIDELINES]), apply_default_css=False)

    def _connect_controls(self) -> None:
        """Connects each control with its handler."""
        outputs = [
            self.session, self.prompt, self.note, self.ranker, self.prompt_flags,
            self.buttons, self.about, self.progress, self.saved_name,
        ]  # fmt: skip
        gr.on([self.begin.click, self.name.submit], self._begin, [self.run, self.name], outputs, **HANDLER_OPTIONS)
        self.run.input(self._begin, [self.run, self.name], outputs, **HANDLER_OPTIONS)
        self.run.input(self._role_choices, self.run, self.stage, **HANDLER_OPTIONS)
        label = [self.session, self.ranker, self.prompt_flags]
        gr.on([self.save.click, self.ranker.submit], self._save, label, outputs, **HANDLER_OPTIONS)
        self.skip.click(self._skip, self.session, outputs, **HANDLER_OPTIONS)
        self.undo.click(self._undo, self.session, outputs, **HANDLER_OPTIONS)
        draw_inputs = [self.session, self.run, self.name, self.stage]
        draw_inputs += [self.num_answers, self.temperature, self.live_prompt]
        self.draw.click(self._draw_answers, draw_inputs, outputs, **HANDLER_OPTIONS)
        self.agreement.expand(self._agreement_html, self.run, self.agreement_table, **HANDLER_OPTIONS)
        self.on_page_open = (self._open_page, [self.saved_name], [*outputs, self.name, self.run, self.stage])

    # What the controls do

    def _open_page(self, name: Any) -> tuple[Any, ...]:
        """A page was opened: lists the runs, and continues for a labeler who was here before."""
        runs = [run.name for run in self.app.runs()]
        if not runs:
            return (gr.skip(),) * 12
        updates: tuple[Any, ...] = (gr.skip(),) * 10  # the name too: a quick person has written it already
        if name:
            updates = *self._page_values(self.actions.begin(runs[0], name)), name
        return *updates, gr.update(choices=runs, value=runs[0]), self._role_choices(runs[0])

    def _begin(self, run: str | None, name: str) -> tuple[Any, ...]:
        return self._page_values(self.actions.begin(run or self._first_run_name(), name))

    def _save(self, session: LabelSession | None, value: Any, flags: list[str]) -> tuple[Any, ...]:
        return self._page_values(self.actions.save(session or LabelSession(""), value or {}, flags))

    def _skip(self, session: LabelSession | None) -> tuple[Any, ...]:
        return self._page_values(self.actions.skip(session or LabelSession("")))

    def _undo(self, session: LabelSession | None) -> tuple[Any, ...]:
        return self._page_values(self.actions.undo(session or LabelSession("")))

    def _draw_answers(
        self, session: LabelSession | None, run: str | None, name: str, stage: str, num_answers: float,
        temperature: float, live_prompt: str, request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        """Draws several answers of one model to a typed prompt, to be ranked."""
        run = run or self._first_run_name()
        current_session = session or LabelSession(run)
        try:
            current_session = LabelSession(run, parse_labeler_name(name))
            prompt = Prompt((Message("user", self.app.require_short(live_prompt)),))
            columns = tuple(Column(stage, prompt.messages, seed) for seed in range(min(int(num_answers), MOST_LIVE)))
            settings = Settings(temperature, self.app.config.max_response_tokens, secrets.randbelow(2**31))
        except UserError as error:
            yield self._page_values(current_session.with_failure(error))
            return
        for event in self.app.submit(
            str(request.session_hash), TAB, Ask(run, columns, settings), user_of(request)
        ).events():
            if isinstance(event, Answered):
                yield self._rank_answers(current_session, prompt, event)
            elif isinstance(event, Failed):
                yield self._page_values(current_session.with_failure(event.reason))
            else:
                progress = f"Drawing answers: {sum(event.tokens)} tokens ..." if isinstance(event, Partial) else ""
                yield self._page_values(current_session.with_task(None, progress or waiting_note(event)))

    def _rank_answers(self, session: LabelSession, prompt: Prompt, event: Answered) -> tuple[Any, ...]:
        """Displays the answers as a task to rank."""
        try:
            task = make_task(prompt, [answer.text for answer in event.answers])
        except UserError as error:
            return self._page_values(
                session.with_failure(f"Nothing to rank: {error}. Draw again, at a higher temperature.")
            )
        return self._page_values(self.actions.show(session, task))

    def _agreement_html(self, run: str) -> str:
        return self.actions.agreement_html(run)

    def _role_choices(self, run: str) -> Any:
        return gr.update(choices=self._answering_roles(run), value=self._answering_roles(run)[-1])

    def _first_run_name(self) -> str:
        """The first run, for a page whose list of runs has not arrived yet."""
        return next((run.name for run in self.app.runs()), "")

    def _answering_roles(self, run: str) -> list[str]:
        """The roles of a run that can answer, in the order of training."""
        states = read_run_state(find_run_folder(self.app.root, run)).stages
        return [BASE, *(stage.role for stage in WRITERS if states.get(stage.name) == FINISHED)]

    def _page_values(self, session: LabelSession) -> tuple[Any, ...]:
        """The values of a session for the outputs that `_wire` lists."""
        return (
            session,
            label_show.prompt_html(session.task.prompt) if session.task is not None else "",
            label_show.note_html(session.note, "failure" if session.is_failure else "status"),
            session.value,
            session.prompt_flags,
            gr.update(visible=bool(session.labeler)),
            gr.update(visible=session.task is not None),
            self.actions.progress_html(session),
            session.labeler or gr.skip(),
        )


def _welcome_html() -> str:
    return label_show.note_html(
        "Write your name and begin: you rank answers to a prompt, the best first, ties allowed."
    )
