"""What there is to see of runs while they train: curves of their metrics, the state of each stage, their samples."""

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
from lora_rlhf_demo.runs import folder_of, state_of
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
    """What a stage of a run is at."""

    run: str
    stage: str
    state: str
    step: int | None


class Sample(NamedTuple):
    """A prompt, and what one run answered to it at some steps: [(step, response)]."""

    run: str
    prompt: str
    responses: list[tuple[int, str]]


class Watcher:
    """Reads the metrics and samples of runs under one root, each file once however many pages are open."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._tails = Tails()

    def version(self, runs: Sequence[str]) -> tuple[Any, ...]:
        """Changes whenever something new is to be shown of these runs."""
        folders = self._folders(runs)
        files = [self._tails.of(folder / stage / name).version for folder in folders.values() for stage in BY_NAME
                 for name in (METRICS, SAMPLES)]  # fmt: skip
        return tuple(folders), tuple(files), tuple(self.states(runs))

    def figures(self, runs: Sequence[str]) -> list[Figure]:
        """Every plot that one of the runs has points for."""
        found = []
        for stage, plot in PLOTS:
            curves = [curve for curve in self._curves(stage, plot, runs) if curve.points]
            if curves:
                found.append(Figure(plot, curves))
        return found

    def states(self, runs: Sequence[str]) -> list[StageState]:
        """Of every stage that was begun, what became of it and how far it is."""
        found = []
        for run, folder in self._folders(runs).items():
            for stage, state in state_of(folder).stages.items():
                rows = self._tails.of(folder / stage / METRICS).rows
                steps = [row["step"] for row in rows[-1:] if isinstance(row.get("step"), int)]
                if state == RUNNING and _age(folder / stage / METRICS) > QUIET:
                    state = "not finished, and quiet for over 2 minutes"
                found.append(StageState(run, stage, state, steps[0] if steps else None))
        return found

    def samples(self, runs: Sequence[str]) -> list[Sample]:
        """How the answers to the fixed prompts changed over time."""
        found: dict[tuple[str, str], dict[int, str]] = {}
        for run, folder in self._folders(runs).items():
            for row in self._newest_samples(folder):
                prompt, response, step = row.get("prompt"), row.get("response"), row.get("step")
                if isinstance(prompt, str) and isinstance(response, str) and isinstance(step, int):
                    found.setdefault((prompt, run), {})[step] = response
        by_prompt = sorted(found, key=lambda key: list(dict.fromkeys(own for own, _ in found)).index(key[0]))
        return [Sample(run, prompt, spread(sorted(found[prompt, run].items()), MOST_STEPS))
                for prompt, run in by_prompt[: MOST_PROMPTS]]  # fmt: skip

    def _curves(self, stage: str, plot: Plot, runs: Sequence[str]) -> Iterable[Curve]:
        for run, folder in self._folders(runs).items():
            rows = self._tails.of(folder / stage / METRICS).rows
            pairs = ((row.get("step"), row.get(plot.metric)) for row in rows)
            points = [(float(step), float(value)) for step, value in pairs if _is_number(step) and _is_number(value)]
            yield Curve(run, thinned(points), _target(plot, folder / stage))

    def _newest_samples(self, folder: Path) -> list[dict[str, Any]]:
        """The samples of the run's newest stage that has any."""
        rows = (self._tails.of(folder / stage.name / SAMPLES).rows for stage in reversed(WRITERS))
        return next((own for own in rows if own), [])

    def _folders(self, runs: Sequence[str]) -> Mapping[str, Path]:
        """The folders of the runs that are there; names come from a browser."""
        found = {}
        for run in runs[:MOST_RUNS]:
            try:
                found[run] = folder_of(self.root, run)
            except UserError:
                continue
        return found


def _target(plot: Plot, folder: Path) -> float | None:
    if plot.target is None:
        return None
    try:
        value = read_yaml(folder / CONFIG).get(plot.target)
    except (UserError, OSError):
        return None
    return float(value) if _is_number(value) else None


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """The points of a curve, or the lowest and the highest of each of equal stretches: no spike is lost."""
    if len(points) <= most:
        return list(points)
    kept = []
    stretches = most // 2
    for number in range(stretches):
        stretch = points[len(points) * number // stretches : len(points) * (number + 1) // stretches]
        ends = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept


def spread(items: Sequence[tuple[int, str]], most: int) -> list[tuple[int, str]]:
    """The first, the last and some between."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
