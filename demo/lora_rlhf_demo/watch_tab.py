"""The Watch tab: metrics of running and finished runs drawn over each other, and their samples over time."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from lora_rlhf_demo import chart
from lora_rlhf_demo.runs import list_runs
from lora_rlhf_demo.state import HANDLER_OPTIONS, App
from lora_rlhf_demo.watch import MOST_RUNS, Watcher

READ_EVERY = 2.0  # seconds between two readings of the files
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
                label="Runs, drawn over each other", elem_id="watch-runs",
            )  # fmt: skip
        self.read_states = gr.HTML("", apply_default_css=False, elem_id="watch-states")
        self.plots = gr.HTML("", apply_default_css=False, elem_id="watch-plots")
        with gr.Accordion("Samples over time", open=True, elem_id="watch-samples"):
            self.read_samples = gr.HTML("", apply_default_css=False)
        self.timer = gr.Timer(READ_EVERY)
        outputs = [self.version, self.read_states, self.plots, self.read_samples]
        self.runs.change(self._redraw, [self.runs, self.version], outputs, **HANDLER_OPTIONS)
        self.timer.tick(self._redraw, [self.runs, self.version], outputs, **HANDLER_OPTIONS)
        self.runs.focus(self._update_choices, None, self.runs, **HANDLER_OPTIONS)
        self.on_page_open: tuple[Callable[..., Any], list[Any], list[Any]] = (
            self._open_page,
            [],
            [self.runs, *outputs],
        )

    def _open_page(self) -> tuple[Any, ...]:
        """A page was opened: draws the first run, finished or not."""
        run_names = self._run_names()
        first_name = next((run.name for run in self.app.runs()), run_names[0] if run_names else None)
        runs = [] if first_name is None else [first_name]
        return gr.update(choices=run_names, value=runs), *self._redraw(runs, None)

    def _redraw(self, runs: list[str] | None, displayed_version: Any) -> Any:
        """The page, if its version is not the displayed one any more."""
        runs = runs or []
        version = (tuple(runs), self.watcher.version(runs))
        if version == displayed_version:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        figures = self.watcher.read_figures(runs)
        plots = chart.legend_html(runs) + chart.charts_html(figures, runs) if figures else EMPTY
        samples = chart.samples_html(self.watcher.read_samples(runs), len(runs) > 1)
        return version, chart.states_table(self.watcher.read_states(runs)), plots, samples

    def _update_choices(self) -> Any:
        """The names of the runs, with those that were begun since the page was opened."""
        return gr.update(choices=self._run_names())

    def _run_names(self) -> list[str]:
        return [run.name for run in list_runs(self.app.root)]
