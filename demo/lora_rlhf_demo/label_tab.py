"""The Label tab: ranks, ratings and flags for the answers to a prompt, saved as rankings for the reward stage."""

import secrets
import time
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
from lora_rlhf_demo.requests import Answered, Ask, Column, Failed, Loading, Partial, Settings, Waiting, waiting_note
from lora_rlhf_demo.runs import find_run_folder, read_run_state
from lora_rlhf_demo.show import text_html
from lora_rlhf_demo.state import HANDLER_OPTIONS, App, run_dropdown, runs_update, user_of
from lora_rlhf_demo.tasks import make_task, parse_labeler_name

GUIDELINES = Path(__file__).parent / "guidelines.md"
MOST_GUIDELINES = 100_000  # characters
MOST_LIVE = 6
TAB = "label"
# A long prompt is folded, so that it and an answer are seen together, and says so
PROMPT_SCRIPT = """const fold = () => {
  const prompt = element.querySelector(".prompt");
  const whole = element.querySelector(".whole");
  if (!prompt || !prompt.offsetParent || !prompt.classList.contains("folded")) return;
  whole.hidden = prompt.scrollHeight <= prompt.clientHeight + 4;
  if (whole.hidden) return;
  const isTalk = element.querySelectorAll(".said").length > 1;
  prompt.classList.toggle("talk-end", isTalk);
  prompt.scrollTop = isTalk ? prompt.scrollHeight : 0;
};
element.addEventListener("click", (event) => {
  const whole = event.target.closest(".whole");
  if (!whole) return;
  const isFolded = element.querySelector(".prompt").classList.toggle("folded");
  whole.textContent = isFolded ? "Show all of the prompt" : "Fold the prompt";
  whole.setAttribute("aria-expanded", String(!isFolded));
  if (isFolded) fold();
});
new ResizeObserver(fold).observe(element);
watch("value", () => requestAnimationFrame(fold));"""


class LabelTab:
    """The controls of the tab and their handlers. The labeler and the task of a page are in its `gr.State`.

    saved_name: stores the labeler's name in the browser, for the next visit. browser: a secret of the browser, which
    tells two people with one name apart.
    """

    def __init__(self, app: App, saved_name: gr.BrowserState, browser: gr.BrowserState) -> None:
        self.app = app
        self.saved_name, self.browser = saved_name, browser
        self.is_alone = app.config.label
        self.actions = LabelActions(app.config)
        self.session = gr.State(None)
        with gr.Row(equal_height=False, elem_classes=["labelling"]):
            with gr.Column(scale=1, min_width=260, elem_classes=["side"]):
                self.run = run_dropdown(self._run_names(), "label-run", not self.is_alone)
                self.name = gr.Textbox("", label="Your name", max_lines=1, elem_id="labeler")
                self.begin = gr.Button("Begin", variant="primary", size="md", elem_id="begin")
                self.progress = gr.HTML("", apply_default_css=False, elem_id="label-progress")
                if not self.is_alone:
                    self._add_live_controls()
                with gr.Accordion("Guidelines", open=False, elem_id="guidelines"):
                    self._add_guidelines()
            with gr.Column(scale=3, min_width=300):
                with gr.Column(elem_id="label-head"):
                    self.prompt = gr.HTML(
                        _welcome_html(), js_on_load=PROMPT_SCRIPT, apply_default_css=False, elem_id="label-prompt"
                    )
                    with gr.Row(visible=False, elem_classes=["slim"]) as self.buttons:
                        self.save = gr.Button(
                            "Save", variant="primary", size="md", min_width=90, scale=0, elem_id="save"
                        )
                        self.skip = gr.Button("Skip", size="md", min_width=90, scale=0, elem_id="skip")
                        self.undo = gr.Button("Undo", size="md", min_width=90, scale=0, elem_id="undo")
                    self.note = gr.HTML("", apply_default_css=False, elem_id="label-note")
                self.ranker = make_ranker("ranker")
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
            self.session, self.prompt, self.note, self.ranker, self.buttons, self.progress, self.saved_name,
            self.browser,
        ]  # fmt: skip
        who = [self.session, self.run, self.name, self.browser]
        gr.on([self.begin.click, self.name.submit], self._begin, who, outputs, **HANDLER_OPTIONS)
        self.run.input(self._begin, who, outputs, **HANDLER_OPTIONS)
        label = [self.session, self.ranker]
        gr.on([self.save.click, self.ranker.submit], self._save, label, outputs, **HANDLER_OPTIONS)
        gr.on([self.skip.click, self.ranker.clear], self._skip, self.session, outputs, **HANDLER_OPTIONS)
        gr.on([self.undo.click, self.ranker.undo], self._undo, self.session, outputs, **HANDLER_OPTIONS)
        opened = [*outputs, self.name, self.run]
        if not self.is_alone:
            self.run.input(self._role_choices, self.run, self.stage, **HANDLER_OPTIONS)
            draw_inputs = [self.session, self.run, self.name, self.stage]
            draw_inputs += [self.num_answers, self.temperature, self.live_prompt]
            self.draw.click(self._draw_answers, draw_inputs, outputs, **HANDLER_OPTIONS)
            opened.append(self.stage)
        self.on_page_open = (self._open_page, [self.saved_name, self.browser, self.run], opened)

    # What the controls do

    def _open_page(self, name: Any, browser: Any, shown: str | None) -> tuple[Any, ...]:
        """A page was opened: lists the runs, and continues for a labeler who was here before."""
        runs = self._run_names()
        stage = () if self.is_alone else (self._role_choices(runs[0]) if runs else gr.skip(),)
        if not runs:
            return (*(gr.skip(),) * 10, *stage)
        if not name:  # left as it is, since a quick person has written it already
            return (*(gr.skip(),) * 9, runs_update(runs, shown), *stage)
        session = self.actions.begin(runs[0], name, str(browser or ""), is_return=True)
        page_values = self._page_values(session, str(browser or ""))
        return *page_values, name, gr.update(choices=runs, value=runs[0]), *stage

    def _begin(self, session: LabelSession | None, run: str | None, name: str, browser: Any) -> tuple[Any, ...]:
        browser = str(browser or "") or secrets.token_hex(8)
        asked_name = "" if session is None else session.asked_name
        return self._page_values(self.actions.begin(run or self._first_run_name(), name, browser, asked_name), browser)

    def _save(self, session: LabelSession | None, value: Any) -> tuple[Any, ...]:
        return self._page_values(self.actions.save(session or LabelSession(""), value or {}))

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
            elif isinstance(event, Waiting | Loading | Partial):
                progress = f"Drawing answers: {sum(event.tokens)} tokens ..." if isinstance(event, Partial) else ""
                yield self._page_values(current_session.with_task(None, progress or waiting_note(event)))

    def _rank_answers(self, session: LabelSession, prompt: Prompt, event: Answered) -> tuple[Any, ...]:
        """Displays the answers as a task to rank."""
        try:
            ended = [answer.finished for answer in event.answers]
            task = make_task(prompt, [answer.text for answer in event.answers], None, ended)
        except UserError as error:
            return self._page_values(
                session.with_failure(f"Nothing to rank: {error}. Draw again, at a higher temperature.")
            )
        return self._page_values(self.actions.show(session, task))

    def _role_choices(self, run: str) -> Any:
        return gr.update(choices=self._answering_roles(run), value=self._answering_roles(run)[-1])

    def _run_names(self) -> list[str]:
        """The runs with a model; where labelers are alone, the first one that has something to rank."""
        if not self.is_alone:
            return self.app.run_names()
        return self.actions.runs_to_label()[:1]

    def _first_run_name(self) -> str:
        """The first run, for a page whose list of runs has not arrived yet."""
        return next(iter(self._run_names()), "")

    def _answering_roles(self, run: str) -> list[str]:
        """The roles of a run that can answer, in the order of training."""
        states = read_run_state(find_run_folder(self.app.root, run)).stages
        return [BASE, *(stage.role for stage in WRITERS if states.get(stage.name) == FINISHED)]

    def _page_values(self, session: LabelSession, browser: str = "") -> tuple[Any, ...]:
        """The values of a session for the outputs that `_connect_controls` lists."""
        return (
            session,
            label_show.prompt_html(session.task.prompt) if session.task is not None else "",
            label_show.note_html(session.note, "failure" if session.is_failure else "status"),
            # a number, so that the browser sees an answer also where nothing else has changed
            session.value and session.value | {"turn": time.monotonic()},
            gr.update(visible=bool(session.labeler)),
            self.actions.progress_html(session),
            session.labeler or gr.skip(),
            browser or gr.skip(),
        )


def _welcome_html() -> str:
    return label_show.note_html(
        "Write your name and begin: you rank answers to a prompt, the best first, ties allowed."
    )
