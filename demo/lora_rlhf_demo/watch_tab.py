"""The Watch tab: metrics of running and finished runs drawn over each other, and their samples over time."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from lora_rlhf.render.curves import Look, curves_html
from lora_rlhf_demo import chart
from lora_rlhf_demo.runs import list_runs
from lora_rlhf_demo.state import HANDLER_OPTIONS, App
from lora_rlhf_demo.watch import MOST_RUNS, Watcher

READ_EVERY = 2.0  # seconds between two readings of the files
MOST_SMOOTHING = 0.5  # of a curve
EMPTY = '<p class="note">No metrics yet: the plots appear as soon as a stage of these runs has written some.</p>'


class WatchTab:
    """The controls of the tab and their handlers. The version that a page displays is in its `gr.State`."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.watcher = Watcher(app.root)
        self.version = gr.State(None)
        with gr.Row(equal_height=False):
            self.runs = gr.Dropdown(
                [], multiselect=True, max_choices=MOST_RUNS,
                label="Runs, drawn over each other", elem_id="watch-runs", scale=3, min_width=280,
            )  # fmt: skip
            self.smoothing = gr.Slider(
                0.0, MOST_SMOOTHING, 0.0, step=0.02, label="Smoothing",
                info="share of a curve in each mean", elem_id="watch-smoothing", scale=2, min_width=280,
            )  # fmt: skip
            self.is_log = gr.Checkbox(False, label="Log scale", elem_id="watch-log", scale=1, min_width=280)
        self.read_states = gr.HTML("", apply_default_css=False, elem_id="watch-states")
        self.plots = gr.HTML("", apply_default_css=False, elem_id="watch-plots")
        with gr.Accordion("Samples over time", open=True, elem_id="watch-samples"):
            self.read_samples = gr.HTML("", apply_default_css=False)
        self.timer = gr.Timer(READ_EVERY)
        inputs = [self.runs, self.smoothing, self.is_log, self.version]
        outputs = [self.version, self.read_states, self.plots, self.read_samples]
        for trigger in (self.runs.change, self.smoothing.release, self.is_log.change, self.timer.tick):
            trigger(self._redraw, inputs, outputs, **HANDLER_OPTIONS)
        self.runs.focus(self._update_choices, None, self.runs, **HANDLER_OPTIONS)
        self.on_page_open: tuple[Callable[..., Any], list[Any], list[Any]] = (
            self._open_page,
            [],
            [self.runs, *outputs],
        )

    def _open_page(self) -> tuple[Any, ...]:
        """A page was opened: draws the run that is at work, else the first one."""
        run_names = self._run_names()
        names = [*self.watcher.live_runs(run_names), *(run.name for run in self.app.runs()), *run_names]
        return gr.update(choices=run_names, value=names[:1]), *self._redraw(names[:1], 0.0, False, None)

    def _redraw(self, runs: list[str] | None, smoothing: float, is_log: bool, displayed_version: Any) -> Any:
        """The page, if its version is not the displayed one any more."""
        runs, look = runs or [], Look(min(MOST_SMOOTHING, max(0.0, float(smoothing))), bool(is_log))
        version = (tuple(runs), look, self.watcher.version(runs))
        if version == displayed_version:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        figures = self.watcher.read_figures(runs)
        plots = chart.legend_html(runs) + curves_html(figures, runs, look) if figures else EMPTY
        samples = chart.samples_html(self.watcher.read_samples(runs), len(runs) > 1)
        return version, chart.states_table(self.watcher.read_states(runs)), plots, samples

    def _update_choices(self) -> Any:
        """The names of the runs, with those that were begun since the page was opened."""
        return gr.update(choices=self._run_names())

    def _run_names(self) -> list[str]:
        return [run.name for run in list_runs(self.app.root)]
