"""The Watch tab: metrics of running and finished runs drawn over each other, and their samples over time."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from lora_rlhf_demo import chart
from lora_rlhf_demo.runs import list_runs
from lora_rlhf_demo.state import App
from lora_rlhf_demo.watch import MOST_RUNS, Watcher

EVERY = 2.0  # seconds between two readings of the files
EMPTY = '<p class="note">No metrics yet: the plots appear as soon as a stage of these runs has written some.</p>'
FREE: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}


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
        self.states = gr.HTML("", apply_default_css=False, elem_id="watch-states")
        self.plots = gr.HTML("", apply_default_css=False, elem_id="watch-plots")
        with gr.Accordion("Samples over time", open=True, elem_id="watch-samples"):
            self.samples = gr.HTML("", apply_default_css=False)
        self.timer = gr.Timer(EVERY)
        outputs = [self.version, self.states, self.plots, self.samples]
        self.runs.change(self._draw, [self.runs, self.version], outputs, **FREE)
        self.timer.tick(self._draw, [self.runs, self.version], outputs, **FREE)
        self.runs.focus(self._offer, None, self.runs, **FREE)
        self.arrive: tuple[Callable[..., Any], list[Any], list[Any]] = (self._arrive, [], [self.runs, *outputs])

    def _arrive(self) -> tuple[Any, ...]:
        """A page was opened: draws the first run, finished or not."""
        names = self._names()
        first = next((run.name for run in self.app.runs()), names[0] if names else None)
        runs = [] if first is None else [first]
        return gr.update(choices=names, value=runs), *self._draw(runs, None)

    def _draw(self, runs: list[str] | None, displayed: Any) -> Any:
        """The page, if its version is not the displayed one any more."""
        runs = runs or []
        version = (tuple(runs), self.watcher.version(runs))
        if version == displayed:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        figures = self.watcher.figures(runs)
        plots = chart.legend(runs) + chart.charts(figures, runs) if figures else EMPTY
        samples = chart.samples(self.watcher.samples(runs), len(runs) > 1)
        return version, chart.states(self.watcher.states(runs)), plots, samples

    def _offer(self) -> Any:
        """The runs, with those that were begun since the page was opened."""
        return gr.update(choices=self._names())

    def _names(self) -> list[str]:
        return [run.name for run in list_runs(self.app.root)]
