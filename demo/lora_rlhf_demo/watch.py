"""What the Watch tab displays of runs while they train: metrics, the state of each stage, and samples."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lora_rlhf.configs.catalogue import BY_NAME, STAGES, WRITERS
from lora_rlhf.render.curves import Figure
from lora_rlhf.runs.curves import is_finite_number, read_settings, stage_figures
from lora_rlhf.runs.folder import CONFIG, ELAPSED, METRICS, SAMPLES, stage_lock
from lora_rlhf.runs.manifest import FINISHED, RUNNING, TOTAL, read_manifest
from lora_rlhf.runs.rounds import first_round, rounds_figures
from lora_rlhf.system.errors import UserError
from lora_rlhf_demo.runs import find_run_folder, read_run_state
from lora_rlhf_demo.tail import Tails

MOST_RUNS = 6
RECENT_ROWS = 30  # by which the time that is left is told
MOST_STEPS = 6  # at which a prompt's samples are shown
MOST_PROMPTS = 40
QUIET = 120.0  # seconds without a new row after which a stage may no longer be at work


class StageState(NamedTuple):
    """The state of a stage: its last step, of how many, and the seconds that the others will take; None: not known.

    is_live: a process is at work there.
    """

    run: str
    stage: str
    state: str
    step: int | None
    total: int | None = None
    seconds_left: float | None = None
    is_live: bool = False


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
        return tuple(folders), versions, tuple(self.read_states(runs)), _round_figures(self.root, folders)

    def read_figures(self, runs: Sequence[str]) -> list[Figure]:
        """Every plot for which at least one of the runs has points: over rounds first, then the newest stage's."""
        folders = self._folder_by_run(runs)
        figures = _round_figures(self.root, folders)
        for stage in reversed(STAGES):
            rows = {run: self._tails.read_tail(folder / stage.name / METRICS).rows for run, folder in folders.items()}
            settings = {run: read_settings(folders[run] / stage.name / CONFIG) if rows[run] else {} for run in folders}
            figures += stage_figures(stage, rows, settings)
        return figures

    def read_states(self, runs: Sequence[str]) -> list[StageState]:
        """The state of every stage that was begun."""
        return [
            self._read_state(run, folder, stage, state)
            for run, folder in self._folder_by_run(runs).items()
            for stage, state in read_run_state(folder).stages.items()
        ]

    def live_runs(self, runs: Sequence[str]) -> list[str]:
        """Those of the runs in which a process is at work."""
        folders = {run: find_run_folder(self.root, run) for run in runs}
        return [run for run, folder in folders.items() if any(stage_lock(folder, stage).is_held() for stage in BY_NAME)]

    def _read_state(self, run: str, folder: Path, stage: str, state: str) -> StageState:
        rows, is_live = self._tails.read_tail(folder / stage / METRICS).rows, False
        step = next((row["step"] for row in reversed(rows[-1:]) if isinstance(row.get("step"), int)), None)
        if state not in (RUNNING, FINISHED):
            return StageState(run, stage, state, step)
        total, left = _read_total(folder / stage), None
        if state == RUNNING:
            is_live = stage_lock(folder, stage).is_held() is not False
            if not is_live:
                state = "stopped; the same command goes on with it"
            elif _age_seconds(folder / stage / METRICS) > QUIET:
                state = "running, and quiet for over 2 minutes"
            elif total is not None and step is not None:
                left = estimate_seconds_left(rows, total)
        return StageState(run, stage, state, step, total, left, is_live)

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


def _round_figures(root: Path, folders: Mapping[str, Path]) -> list[Figure]:
    """The curves over rounds of the runs that have any, each under the first of its runs that is watched."""
    by_key: dict[str, Figure] = {}
    seen = set()
    for run in folders:
        first = first_round(run)
        if first in seen:
            continue
        seen.add(first)
        try:
            figures = rounds_figures(find_run_folder(root, first))
        except UserError:  # a record that cannot be read, or a first run that is gone
            continue
        for figure in figures:
            curves = [*by_key.get(figure.key, figure._replace(curves=())).curves]
            curves += [curve._replace(name=run) for curve in figure.curves]
            by_key[figure.key] = figure._replace(curves=curves)
    return list(by_key.values())


def estimate_seconds_left(rows: Sequence[Mapping[str, Any]], total: int) -> float | None:
    """How long the steps that are left will take, if they take as long as the last ones; None where that is unknown."""
    timed = [
        (row["step"], row[ELAPSED])
        for row in rows[-RECENT_ROWS:]
        if is_finite_number(row.get("step")) and is_finite_number(row.get(ELAPSED))
    ]
    if len(timed) < 2 or timed[-1][0] <= timed[0][0]:
        return None
    (first, started), (last, ended) = timed[0], timed[-1]
    return max(0.0, (total - last) * (ended - started) / (last - first))


def _read_total(folder: Path) -> int | None:
    try:
        total: int | None = read_manifest(folder).get(TOTAL)
    except UserError:
        return None
    return total


def pick_evenly(items: Sequence[tuple[int, str]], max_items: int) -> list[tuple[int, str]]:
    """At most `max_items` items: the first, the last and some between."""
    if len(items) <= max_items:
        return list(items)
    return [items[round(index * (len(items) - 1) / (max_items - 1))] for index in range(max_items)]


def _age_seconds(path: Path) -> float:
    """Seconds since the file changed; 0 if it cannot be read."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
