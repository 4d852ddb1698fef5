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
from lora_rlhf_demo import label_show
from lora_rlhf_demo.label_session import LabelActions, LabelSession
from lora_rlhf_demo.ranker import ranker
from lora_rlhf_demo.requests import Answered, Ask, Column, Failed, Partial, Settings, waiting_note
from lora_rlhf_demo.runs import folder_of, state_of
from lora_rlhf_demo.state import App
from lora_rlhf_demo.tasks import PROMPT_FLAGS, labeler_name, task_of

GUIDELINES = Path(__file__).parent / "guidelines.md"
MOST_GUIDELINES = 100_000  # characters
MOST_LIVE = 6
TAB = "label"
FREE: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}


class LabelTab:
    """The controls of the tab and their handlers. The labeler and the task of a page are in its `gr.State`.

    remembered: keeps the labeler's name in the browser, for the next visit.
    """

    def __init__(self, app: App, remembered: gr.BrowserState) -> None:
        self.app = app
        self.remembered = remembered
        self.actions = LabelActions(app.config)
        self.session = gr.State(None)
        with gr.Row(equal_height=False, elem_classes=["labelling"]):
            with gr.Column(scale=1, min_width=260, elem_classes=["side"]):
                self.run = gr.Dropdown([], label="Run", elem_id="label-run")
                self.name = gr.Textbox("", label="Your name", max_lines=1, elem_id="labeler")
                self.begin = gr.Button("Begin", variant="primary", size="md", elem_id="begin")
                self.progress = gr.HTML("", apply_default_css=False, elem_id="label-progress")
                self._live_controls()
                with gr.Accordion("Guidelines", open=False, elem_id="guidelines"):
                    self._guidelines()
                with gr.Accordion("Agreement between labelers", open=False, elem_id="agreement") as self.agreement:
                    self.agreement_table = gr.HTML("", apply_default_css=False)
            with gr.Column(scale=3, min_width=300):
                self.prompt = gr.HTML(_welcome(), apply_default_css=False, elem_id="label-prompt")
                self.note = gr.HTML("", apply_default_css=False, elem_id="label-note")
                with gr.Row(visible=False, elem_classes=["slim"]) as self.buttons:
                    self.save = gr.Button("Save", variant="primary", size="md", min_width=90, scale=0, elem_id="save")
                    self.skip = gr.Button("Skip", size="md", min_width=90, scale=0, elem_id="skip")
                    self.undo = gr.Button("Undo", size="md", min_width=90, scale=0, elem_id="undo")
                self.ranker = ranker("ranker")
                with gr.Accordion("About the prompt", open=False, visible=False) as self.about:
                    flags = [(title, key) for key, title in PROMPT_FLAGS.items()]
                    self.prompt_flags = gr.CheckboxGroup(
                        flags, show_label=False, container=False, elem_id="prompt-flags"
                    )
        self._wire()

    def _live_controls(self) -> None:
        with gr.Accordion("Live answers", open=False, elem_id="live"):
            self.stage = gr.Dropdown([], label="Stage")
            self.number = gr.Slider(2, MOST_LIVE, value=4, step=1, label="Answers")
            self.temperature = gr.Slider(0.1, 2, value=1.0, step=0.05, label="Temperature")
            self.live_prompt = gr.Textbox("", label="Your prompt", lines=2, max_lines=8, elem_id="live-prompt")
            self.draw = gr.Button("Draw answers", size="md", elem_id="draw")

    def _guidelines(self) -> None:
        """The package's guidelines as Markdown; a file of the user's as plain text."""
        if self.app.config.guidelines is None:
            gr.Markdown(GUIDELINES.read_text(encoding="utf-8"))
        else:
            text = Path(self.app.config.guidelines).read_text(encoding="utf-8", errors="replace")
            gr.HTML(label_show.plain(text[:MOST_GUIDELINES]), apply_default_css=False)

    def _wire(self) -> None:
        outputs = [
            self.session, self.prompt, self.note, self.ranker, self.prompt_flags,
            self.buttons, self.about, self.progress, self.remembered,
        ]  # fmt: skip
        gr.on([self.begin.click, self.name.submit], self._begin, [self.run, self.name], outputs, **FREE)
        self.run.input(self._begin, [self.run, self.name], outputs, **FREE)
        self.run.input(self._choices, self.run, self.stage, **FREE)
        label = [self.session, self.ranker, self.prompt_flags]
        gr.on([self.save.click, self.ranker.submit], self._save, label, outputs, **FREE)
        self.skip.click(self._skip, self.session, outputs, **FREE)
        self.undo.click(self._undo, self.session, outputs, **FREE)
        draw_inputs = [self.session, self.run, self.name, self.stage, self.number, self.temperature, self.live_prompt]
        self.draw.click(self._draw, draw_inputs, outputs, **FREE)
        self.agreement.expand(self._agreement, self.run, self.agreement_table, **FREE)
        self.arrive = (self._arrive, [self.remembered], [*outputs, self.name, self.run, self.stage])

    # What the controls do

    def _arrive(self, name: Any) -> tuple[Any, ...]:
        """A page was opened: lists the runs, and goes on for a labeler who was here before."""
        runs = [run.name for run in self.app.runs()]
        if not runs:
            return (gr.skip(),) * 12
        updates: tuple[Any, ...] = (gr.skip(),) * 10  # the name too: a quick person has written it already
        if name:
            updates = *self._page(self.actions.begin(runs[0], name)), name
        return *updates, gr.update(choices=runs, value=runs[0]), self._choices(runs[0])

    def _begin(self, run: str | None, name: str) -> tuple[Any, ...]:
        return self._page(self.actions.begin(run or self._first_run(), name))

    def _save(self, session: LabelSession | None, value: Any, flags: list[str]) -> tuple[Any, ...]:
        return self._page(self.actions.save(session or LabelSession(""), value or {}, flags))

    def _skip(self, session: LabelSession | None) -> tuple[Any, ...]:
        return self._page(self.actions.skip(session or LabelSession("")))

    def _undo(self, session: LabelSession | None) -> tuple[Any, ...]:
        return self._page(self.actions.undo(session or LabelSession("")))

    def _draw(
        self, session: LabelSession | None, run: str | None, name: str, stage: str, number: float, temperature: float,
        live_prompt: str, request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        """Draws several answers of one model to a typed prompt, to be ranked."""
        run = run or self._first_run()
        current = session or LabelSession(run)
        try:
            current = LabelSession(run, labeler_name(name))
            prompt = Prompt((Message("user", self.app.require_short(live_prompt)),))
            columns = tuple(Column(stage, prompt.messages, seed) for seed in range(min(int(number), MOST_LIVE)))
            settings = Settings(temperature, self.app.config.max_response_tokens, secrets.randbelow(2**31))
        except UserError as error:
            yield self._page(current.failed(error))
            return
        for event in self.app.submit(str(request.session_hash), TAB, Ask(run, columns, settings)).events():
            if isinstance(event, Answered):
                yield self._answered(current, prompt, event)
            elif isinstance(event, Failed):
                yield self._page(current.failed(event.reason))
            else:
                progress = f"Drawing answers: {sum(event.tokens)} tokens ..." if isinstance(event, Partial) else ""
                yield self._page(current.at(None, progress or waiting_note(event)))

    def _answered(self, session: LabelSession, prompt: Prompt, event: Answered) -> tuple[Any, ...]:
        try:
            task = task_of(prompt, [answer.text for answer in event.answers])
        except UserError as error:
            return self._page(session.failed(f"Nothing to rank: {error}. Draw again, at a higher temperature."))
        return self._page(self.actions.show(session, task))

    def _agreement(self, run: str) -> str:
        return self.actions.agreement(run)

    def _choices(self, run: str) -> Any:
        return gr.update(choices=self._stages(run), value=self._stages(run)[-1])

    def _first_run(self) -> str:
        """The first run, for a page whose list of runs has not arrived yet."""
        return next((run.name for run in self.app.runs()), "")

    def _stages(self, run: str) -> list[str]:
        """The roles of a run that can answer, in the order of training."""
        states = state_of(folder_of(self.app.root, run)).stages
        return [BASE, *(stage.role for stage in WRITERS if states.get(stage.name) == FINISHED)]

    def _page(self, session: LabelSession) -> tuple[Any, ...]:
        """The values of a session for the outputs that `_wire` lists."""
        return (
            session,
            label_show.prompt_html(session.task.prompt) if session.task is not None else "",
            label_show.note(session.note, "failure" if session.is_failure else "status"),
            session.value,
            session.prompt_flags,
            gr.update(visible=bool(session.labeler)),
            gr.update(visible=session.task is not None),
            self.actions.progress(session),
            session.labeler or gr.skip(),
        )


def _welcome() -> str:
    return label_show.note("Write your name and begin: you rank answers to a prompt, the best first, ties allowed.")
