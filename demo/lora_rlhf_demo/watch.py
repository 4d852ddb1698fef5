"""What the Watch tab displays of runs while they train: metrics, the state of each stage, and samples."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from lora_rlhf.configs.catalogue import BY_NAME, STAGES, WRITERS, Plot
from lora_rlhf.configs.values import read_yaml
from lora_rlhf.runs.folder import CONFIG, METRICS, SAMPLES
from lora_rlhf.runs.manifest import RUNNING
from lora_rlhf.system.errors import UserError
from lora_rlhf_demo.runs import find_run_folder, read_run_state
from lora_rlhf_demo.tail import Tails

MOST_RUNS = 6
MOST_POINTS = 400  # of a curve as it is drawn
MOST_STEPS = 6  # at which a prompt's samples are shown
MOST_PROMPTS = 40
QUIET = 120.0  # seconds without a new row after which a stage may no longer be at work


PLOTS = [(stage.name, plot) for stage in reversed(STAGES) for plot in stage.plots]


class Curve(NamedTuple):
    """One run in a figure: its points, and the target line or None."""

    run: str
    points: list[tuple[float, float]]
    target: float | None


class Figure(NamedTuple):
    """A plot with the curves of the runs that have it."""

    plot: Plot
    curves: list[Curve]


class StageState(NamedTuple):
    """The state of a stage, and its last step."""

    run: str
    stage: str
    state: str
    step: int | None


class Sample(NamedTuple):
    """A prompt, and a run's responses to it at some steps: [(step, response)]."""

    run: str
    prompt: str
    responses: list[tuple[int, str]]


class Watcher:
    """Reads the metrics and samples of the runs under one root, each file only once for all open pages."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._tails = Tails()

    def version(self, runs: Sequence[str]) -> tuple[Any, ...]:
        """A value that changes whenever the page of these runs changes."""
        folders = self._folder_by_run(runs)
        stage_folders = [folder / stage for folder in folders.values() for stage in BY_NAME]
        paths = [folder / name for folder in stage_folders for name in (METRICS, SAMPLES)]
        versions = tuple(self._tails.read_tail(path).version for path in paths)
        return tuple(folders), versions, tuple(self.read_states(runs))

    def read_figures(self, runs: Sequence[str]) -> list[Figure]:
        """Every plot for which at least one of the runs has points."""
        figures = []
        for stage, plot in PLOTS:
            curves = [curve for curve in self._read_curves(stage, plot, runs) if curve.points]
            if curves:
                figures.append(Figure(plot, curves))
        return figures

    def read_states(self, runs: Sequence[str]) -> list[StageState]:
        """The state of every stage that was begun, and its last step."""
        states = []
        for run, folder in self._folder_by_run(runs).items():
            for stage, state in read_run_state(folder).stages.items():
                metric_rows = self._tails.read_tail(folder / stage / METRICS).rows
                last_steps = [row["step"] for row in metric_rows[-1:] if isinstance(row.get("step"), int)]
                if state == RUNNING and _age_seconds(folder / stage / METRICS) > QUIET:
                    state = "not finished, and quiet for over 2 minutes"
                states.append(StageState(run, stage, state, last_steps[0] if last_steps else None))
        return states

    def read_samples(self, runs: Sequence[str]) -> list[Sample]:
        """The responses to the fixed prompts over time; those of one prompt follow one another."""
        responses: dict[tuple[str, str], dict[int, str]] = {}
        for run, folder in self._folder_by_run(runs).items():
            for row in self._newest_sample_rows(folder):
                prompt, response, step = row.get("prompt"), row.get("response"), row.get("step")
                if isinstance(prompt, str) and isinstance(response, str) and isinstance(step, int):
                    responses.setdefault((prompt, run), {})[step] = response
        prompts = list(dict.fromkeys(prompt for prompt, _ in responses))
        by_prompt = sorted(responses, key=lambda key: prompts.index(key[0]))
        return [
            Sample(run, prompt, pick_evenly(sorted(responses[prompt, run].items()), MOST_STEPS))
            for prompt, run in by_prompt[:MOST_PROMPTS]
        ]

    def _read_curves(self, stage: str, plot: Plot, runs: Sequence[str]) -> Iterable[Curve]:
        """One curve of a plot for each run; it may have no points."""
        for run, folder in self._folder_by_run(runs).items():
            rows = self._tails.read_tail(folder / stage / METRICS).rows
            pairs = ((row.get("step"), row.get(plot.metric)) for row in rows)
            points = [(float(step), float(value)) for step, value in pairs if _is_number(step) and _is_number(value)]
            yield Curve(run, thin_points(points), _read_target(plot, folder / stage))

    def _newest_sample_rows(self, folder: Path) -> list[dict[str, Any]]:
        """The samples of the run's newest stage that has any."""
        tails = (self._tails.read_tail(folder / stage.name / SAMPLES) for stage in reversed(WRITERS))
        return next((tail.rows for tail in tails if tail.rows), [])

    def _folder_by_run(self, runs: Sequence[str]) -> Mapping[str, Path]:
        """{run: its folder} of the runs that exist; the names come from a browser."""
        folders = {}
        for run in runs[:MOST_RUNS]:
            try:
                folders[run] = find_run_folder(self.root, run)
            except UserError:
                continue
        return folders


def _read_target(plot: Plot, folder: Path) -> float | None:
    """The value of the setting that the plot names as its target; None if there is none."""
    if plot.target is None:
        return None
    try:
        value = read_yaml(folder / CONFIG).get(plot.target)
    except (UserError, OSError):
        return None
    return float(value) if _is_number(value) else None


def thin_points(points: Sequence[tuple[float, float]], max_points: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `max_points` points: the lowest and the highest of equal parts of the curve, so that no spike is lost."""
    if len(points) <= max_points:
        return list(points)
    extremes = []
    num_parts = max_points // 2
    for number in range(num_parts):
        part = points[len(points) * number // num_parts : len(points) * (number + 1) // num_parts]
        extremes += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return extremes


def pick_evenly(items: Sequence[tuple[int, str]], max_items: int) -> list[tuple[int, str]]:
    """At most `max_items` items: the first, the last and some between."""
    if len(items) <= max_items:
        return list(items)
    return [items[round(index * (len(items) - 1) / (max_items - 1))] for index in range(max_items)]


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _age_seconds(path: Path) -> float:
    """Seconds since the file changed; 0 if it cannot be read."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
