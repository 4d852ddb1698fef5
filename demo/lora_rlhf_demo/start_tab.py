"""The Train tab: a stage's settings as a form, its command line and memory, and the run that was started from here."""

import dataclasses
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import gradio as gr

from lora_rlhf.configs.catalogue import BY_NAME, SFT, STAGES, Stage
from lora_rlhf.configs.flags import fields_by_subject
from lora_rlhf.configs.values import field_texts, field_types, plain_defaults, without_none
from lora_rlhf.system.errors import UserError
from lora_rlhf_demo import chart
from lora_rlhf_demo.peak import peak_text
from lora_rlhf_demo.show import safe_html
from lora_rlhf_demo.starting import Started, Starter, command_text
from lora_rlhf_demo.state import HANDLER_OPTIONS, App
from lora_rlhf_demo.watch import Watcher

READ_EVERY = 2.0  # seconds between two looks at the run
SCRIPT = (Path(__file__).parent / "start_form.js").read_text(encoding="utf-8")
PEAK = "Memory at its peak"
TEMPLATE = '<form class="start-form" hidden></form>'
SHARED = "While a run trains, it and the model that this app answers with share this machine's memory and processors."


def form_value(stage: Stage, given: dict[str, str]) -> dict[str, Any]:
    """What the page draws the form of a stage from: the groups and texts of --help, and what was given before."""
    hints, texts, defaults = field_types(stage.config), field_texts(stage.config), plain_defaults(stage.config)
    groups = [
        (title, [_field(field, hints[field.name], texts[field.name], defaults) for field in fields])
        for title, fields in fields_by_subject(stage.name, stage.config).items()
    ]
    return {
        "stage": stage.name,
        "groups": groups,
        "given": {name: text for name, text in given.items() if name in hints},
    }


def _field(field: "dataclasses.Field[Any]", hint: Any, text: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """A field as the page draws it: a choice where its type has choices, else a text; its default in grey."""
    plain, _ = without_none(hint)
    choices = typing.get_args(plain) if typing.get_origin(plain) is Literal else ()
    default = defaults.get(field.name)
    shown = " ".join(map(str, default)) if isinstance(default, list) else "" if default is None else str(default)
    return {
        "name": field.name,
        "text": text,
        "choices": ["false", "true"] if plain is bool else [str(choice) for choice in choices],
        "default": shown.lower() if plain is bool else shown,
        "required": field.default is dataclasses.MISSING,
    }


class StartTab:
    """The controls of the tab and their handlers."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.starter = Starter(app.root, may_run_code=app.config.allow_start is True)
        self.watcher = Watcher(app.root)
        self.state = gr.HTML("", apply_default_css=False, elem_id="train-state")
        with gr.Row(elem_id="train-buttons"):
            self.stop = gr.Button("Stop", visible=False, elem_id="train-stop")
            self.resume = gr.Button("Continue", visible=False, elem_id="train-continue")
        self.stage = gr.Radio([stage.name for stage in STAGES], value=SFT.name, label="Stage", elem_id="train-stage")
        self.form = gr.HTML(
            None, html_template=TEMPLATE, js_on_load=SCRIPT, apply_default_css=False, elem_id="train-form"
        )
        self.command = gr.HTML("", apply_default_css=False, elem_id="train-command")
        self.peak = gr.HTML("", apply_default_css=False, elem_id="train-peak")
        self.start = gr.Button("Start", variant="primary", elem_id="train-start")
        self.faults = gr.HTML("", apply_default_css=False, elem_id="train-faults")
        self.timer = gr.Timer(READ_EVERY)
        shown = [self.state, self.stop, self.resume]
        choose = [self.stage, self.form], [self.form, self.command, self.faults, self.peak]
        self.stage.input(self._choose_stage, *choose, **HANDLER_OPTIONS)
        newest: dict[str, Any] = {"trigger_mode": "always_last", **HANDLER_OPTIONS}
        gr.on([self.form.input, self.form.submit], self._check, self.form, [self.command, self.start], **newest)
        self.form.submit(self._plan, self.form, self.peak, **newest)
        self.start.click(self._start, self.form, [self.faults, *shown], **HANDLER_OPTIONS)
        self.stop.click(self._act(self.starter.stop), None, [self.faults, *shown], **HANDLER_OPTIONS)
        self.resume.click(self._act(self.starter.resume), None, [self.faults, *shown], **HANDLER_OPTIONS)
        self.timer.tick(self._look, self.state, shown, **HANDLER_OPTIONS)
        self.on_page_open: tuple[Callable[..., Any], list[Any], list[Any]] = (
            self._open_page,
            [],
            [self.stage, self.form, *shown],
        )

    def _open_page(self) -> tuple[Any, ...]:
        """A page was opened: the form of the run that was started last, else an empty one."""
        last = self.starter.last()
        stage = SFT if last is None else last.stage
        given = {"run": str(self.app.root / "mine")} if last is None else last.texts
        return stage.name, form_value(stage, given), *self._look(None)

    def _choose_stage(self, name: str, value: Any) -> tuple[Any, ...]:
        """Another stage: its form, with what was written in the one before where both mean the same by it."""
        before, given = _given(value)
        stage = BY_NAME.get(name, SFT)
        old, new = (kind.config.__dataclass_fields__ for kind in (before, stage))
        kept = {key: text for key, text in given.items() if key in old and new.get(key) is old[key]}
        return form_value(stage, kept), "", "", ""

    def _check(self, value: Any) -> tuple[Any, Any]:
        """The command line with its faults, and whether it can be started."""
        stage, given = _given(value)
        command = ""
        try:
            command = _command_html(command_text(stage, given))
            self.starter.read(stage, given)
        except UserError as error:
            return command + _faults_html(error), gr.update(interactive=False)
        return command, gr.update(interactive=True)

    def _plan(self, value: Any) -> Iterator[str]:
        """The peak of memory, which takes some seconds; nothing where the settings have faults."""
        stage, given = _given(value)
        try:
            config = self.starter.read(stage, given)
        except UserError:
            yield ""
            return
        yield _soft_html(f"{PEAK}: being planned ...")
        try:
            yield _soft_html(f"{PEAK}: {peak_text(stage, config)}")
        except UserError as error:
            yield _soft_html(f"{PEAK}: {error}")

    def _start(self, value: Any) -> tuple[Any, ...]:
        stage, given = _given(value)
        return self._act(lambda: self.starter.start(stage, given))()

    def _act(self, act: Callable[[], None]) -> Callable[[], tuple[Any, ...]]:
        """A handler that does something to the run, and shows why it could not."""

        def handle() -> tuple[Any, ...]:
            try:
                act()
            except UserError as error:
                return _faults_html(error), *self._look(None)
            return "", *self._look(None)

        return handle

    def _look(self, displayed: str | None) -> tuple[Any, ...]:
        """The state of the run that was started last, and the buttons that fit it; nothing where all is as before."""
        last = self.starter.last()
        html = "" if last is None else self._state_html(last)
        if html == displayed:
            return gr.skip(), gr.skip(), gr.skip()
        is_alive, can_continue = last is not None and last.is_alive, last is not None and last.can_continue
        return html, gr.update(visible=is_alive), gr.update(visible=can_continue)

    def _state_html(self, last: Started) -> str:
        state = "at work" if last.is_alive else "stopped" if last.can_continue else last.outcome
        states = [found for found in self.watcher.read_states([last.run]) if found.stage == last.stage.name]
        lines = "\n".join(self.starter.log_lines())
        return (
            f'<section class="train"><p><strong>{last.stage.name} of {safe_html(last.run)}: '
            f"{safe_html(state)}</strong></p>{chart.states_table(states)}"
            f'<p class="soft">{SHARED if last.is_alive else "Its curves are in Watch."}</p>'
            f"{_command_html(command_text(last.stage, last.texts))}<pre>{safe_html(lines)}</pre></section>"
        )


def _given(value: Any) -> tuple[Stage, dict[str, str]]:
    """The stage and the texts of a form as a browser sent it, which may be anything."""
    if not isinstance(value, dict):
        return SFT, {}
    stage, given = value.get("stage"), value.get("given")
    texts = (
        {str(name): text for name, text in given.items() if isinstance(text, str)} if isinstance(given, dict) else {}
    )
    return BY_NAME.get(stage, SFT) if isinstance(stage, str) else SFT, texts


def _command_html(command: str) -> str:
    copy = '<button type="button" class="quiet" data-copy title="copy this command">copy</button>'
    return (
        f'<div class="card command"><header><span>The same in a terminal</span>{copy}</header>'
        f'<pre class="text">{safe_html(command)}</pre></div>'
    )


def _faults_html(error: UserError) -> str:
    return f'<p class="faults" role="alert">{safe_html(str(error))}</p>'


def _soft_html(text: str) -> str:
    return f'<div class="train"><p class="soft" role="status">{safe_html(text)}</p></div>'
