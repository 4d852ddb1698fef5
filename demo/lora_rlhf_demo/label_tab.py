"""The tab that labels: answers to a prompt are ranked, rated and flagged, and saved as the reward stage reads them."""

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
from lora_rlhf_demo.ranker import ranker
from lora_rlhf_demo.requests import Answered, Ask, Column, Failed, Partial, Settings, waiting_note
from lora_rlhf_demo.runs import folder_of, state_of
from lora_rlhf_demo.sitting import Sitting, Sittings
from lora_rlhf_demo.state import App
from lora_rlhf_demo.tasks import PROMPT_FLAGS, labeler_name, task_of

GUIDELINES = Path(__file__).parent / "guidelines.md"
MOST_GUIDELINES = 100_000  # characters
MOST_LIVE = 6
TAB = "label"
FREE: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}


class LabelTab:
    """Its controls, and what they do. A page's labeler and task are in its `gr.State`.

    remembered: keeps the labeler's name in the browser, so that a reload goes on.
    """

    def __init__(self, app: App, remembered: gr.BrowserState) -> None:
        self.app = app
        self.remembered = remembered
        self.sittings = Sittings(app.config)
        self.sitting = gr.State(None)
        with gr.Row(equal_height=False, elem_classes=["labelling"]):
            with gr.Column(scale=1, min_width=260, elem_classes=["side"]):
                self.run = gr.Dropdown([], label="Run", elem_id="label-run")
                self.name = gr.Textbox("", label="Your name", max_lines=1, elem_id="labeler")
                self.begin = gr.Button("Begin", variant="primary", size="md", elem_id="begin")
                self.progress = gr.HTML("", apply_default_css=False, elem_id="label-progress")
                self._live_controls()
                with gr.Accordion("Guidelines", open=False, elem_id="guidelines"):
                    self._guidelines()
                with gr.Accordion("Agreement between labelers", open=False, elem_id="concord") as self.agreement:
                    self.concord = gr.HTML("", apply_default_css=False)
            with gr.Column(scale=3, min_width=300):
                self.prompt = gr.HTML(_welcome(), apply_default_css=False, elem_id="label-prompt")
                self.note = gr.HTML("", apply_default_css=False, elem_id="label-note")
                with gr.Row(visible=False, elem_classes=["slim"]) as self.actions:
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
            self.typed = gr.Textbox("", label="Your prompt", lines=2, max_lines=8, elem_id="live-prompt")
            self.draw = gr.Button("Draw answers", size="md", elem_id="draw")

    def _guidelines(self) -> None:
        """Ours are rendered; somebody else's file is shown as it is written."""
        if self.app.config.guidelines is None:
            gr.Markdown(GUIDELINES.read_text(encoding="utf-8"))
        else:
            text = Path(self.app.config.guidelines).read_text(encoding="utf-8", errors="replace")
            gr.HTML(label_show.plain(text[:MOST_GUIDELINES]), apply_default_css=False)

    def _wire(self) -> None:
        shown = [
            self.sitting, self.prompt, self.note, self.ranker, self.prompt_flags,
            self.actions, self.about, self.progress, self.remembered,
        ]  # fmt: skip
        gr.on([self.begin.click, self.name.submit], self._begin, [self.run, self.name], shown, **FREE)
        self.run.input(self._begin, [self.run, self.name], shown, **FREE)
        self.run.input(self._choices, self.run, self.stage, **FREE)
        labelled = [self.sitting, self.ranker, self.prompt_flags]
        gr.on([self.save.click, self.ranker.submit], self._save, labelled, shown, **FREE)
        self.skip.click(self._skip, self.sitting, shown, **FREE)
        self.undo.click(self._undo, self.sitting, shown, **FREE)
        drawn = [self.sitting, self.run, self.name, self.stage, self.number, self.temperature, self.typed]
        self.draw.click(self._draw, drawn, shown, **FREE)
        self.agreement.expand(self._concord, self.run, self.concord, **FREE)
        self.arrive = (self._arrive, [self.remembered], [*shown, self.name, self.run, self.stage])

    # What the controls do

    def _arrive(self, name: Any) -> tuple[Any, ...]:
        """A page was opened: the runs that there are now; who labelled here before goes on."""
        runs = [run.name for run in self.app.runs()]
        if not runs:
            return (gr.skip(),) * 12
        shown: tuple[Any, ...] = (gr.skip(),) * 10  # the name too: who is quick has written theirs already
        if name:
            shown = *self._shown(self.sittings.begin(runs[0], name)), name
        return *shown, gr.update(choices=runs, value=runs[0]), self._choices(runs[0])

    def _begin(self, run: str | None, name: str) -> tuple[Any, ...]:
        return self._shown(self.sittings.begin(run or self._first(), name))

    def _save(self, sitting: Sitting | None, value: Any, flags: list[str]) -> tuple[Any, ...]:
        return self._shown(self.sittings.save(sitting or Sitting(""), value or {}, flags))

    def _skip(self, sitting: Sitting | None) -> tuple[Any, ...]:
        return self._shown(self.sittings.skip(sitting or Sitting("")))

    def _undo(self, sitting: Sitting | None) -> tuple[Any, ...]:
        return self._shown(self.sittings.undo(sitting or Sitting("")))

    def _draw(
        self, sitting: Sitting | None, run: str | None, name: str, stage: str, number: float, temperature: float,
        typed: str, request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        """Several answers of one stage to a typed prompt, to be ranked."""
        run = run or self._first()
        current = sitting or Sitting(run)
        try:
            current = Sitting(run, labeler_name(name))
            prompt = Prompt((Message("user", self.app.require_short(typed)),))
            columns = tuple(Column(stage, prompt.messages, place) for place in range(min(int(number), MOST_LIVE)))
            settings = Settings(temperature, self.app.config.max_response_tokens, secrets.randbelow(2**31))
        except UserError as error:
            yield self._shown(current.failed(error))
            return
        for event in self.app.submit(str(request.session_hash), TAB, Ask(run, columns, settings)).events():
            if isinstance(event, Answered):
                yield self._answered(current, prompt, event)
            elif isinstance(event, Failed):
                yield self._shown(current.failed(event.reason))
            else:
                drawn = f"Drawing answers: {sum(event.tokens)} tokens ..." if isinstance(event, Partial) else ""
                yield self._shown(current.at(None, drawn or waiting_note(event)))

    def _answered(self, sitting: Sitting, prompt: Prompt, event: Answered) -> tuple[Any, ...]:
        try:
            task = task_of(prompt, [answer.text for answer in event.answers])
        except UserError as error:
            return self._shown(sitting.failed(f"Nothing to rank: {error}. Draw again, at a higher temperature."))
        return self._shown(self.sittings.show(sitting, task))

    def _concord(self, run: str) -> str:
        return self.sittings.concord(run)

    def _choices(self, run: str) -> Any:
        return gr.update(choices=self._stages(run), value=self._stages(run)[-1])

    def _first(self) -> str:
        """The run of a page that does not know the runs yet: somebody was quick."""
        return next((run.name for run in self.app.runs()), "")

    def _stages(self, run: str) -> list[str]:
        """What can answer, in the order of training."""
        finished = state_of(folder_of(self.app.root, run)).stages
        return [BASE, *(stage.role for stage in WRITERS if finished.get(stage.name) == FINISHED)]

    def _shown(self, sitting: Sitting) -> tuple[Any, ...]:
        """The page of a sitting: all that `_wire` and `load` name as shown."""
        there = sitting.task is not None
        return (
            sitting,
            label_show.prompt(sitting.task.prompt) if sitting.task is not None else "",
            label_show.note(sitting.note, "failure" if sitting.is_failure else "status"),
            sitting.value,
            sitting.prompt_flags,
            gr.update(visible=bool(sitting.labeler)),
            gr.update(visible=there),
            self.sittings.progress(sitting),
            sitting.labeler or gr.skip(),
        )


def _welcome() -> str:
    return label_show.note("Write your name and begin: you rank answers to a prompt, the best first, ties allowed.")
