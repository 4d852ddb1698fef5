"""Metrics to TensorBoard, Weights & Biases and Trackio while a stage runs, by Accelerate's trackers."""

import contextlib
import importlib.util
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_rlhf.system.plain_files import require_no_link

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

log = logging.getLogger("lora_rlhf")

NAMES = ("tensorboard", "wandb", "trackio")  # each is also the name of the package that it needs
FOLDER = "tracking"  # inside the folder of the stage
PROJECT = "lora-rlhf"  # what runs are filed under, unless WANDB_PROJECT says otherwise
# How long Weights & Biases may send at the end of a stage. Its default has no limit, even without a network; what was
# not sent stays on disk, for `wandb sync`.
FINISH_SECONDS = "60"


def faults(names: Sequence[str]) -> list[str]:
    """Everything wrong with these names of trackers, each with what to do; imports none of them."""
    unknown = [f"tracker {name!r} is unknown; choose from {', '.join(NAMES)}" for name in names if name not in NAMES]
    missing = [name for name in NAMES if name in names and not _is_installed(name)]
    return [*unknown, *(f"tracker {name!r} is not installed: pip install {name}" for name in missing)]


class Trackers:
    """The trackers of one stage; without names it does nothing. Of several processes, only the main one gives names.

    A tracker that fails (no network, a full disk) is switched off with one warning: its errors never stop a stage.
    """

    def __init__(self, names: Sequence[str], folder: Path, run: str, config: Mapping[str, Any], identity: str) -> None:
        """Starts the trackers. Files go into `folder`/tracking; Trackio keeps one database for all runs (TRACKIO_DIR).

        `run` is the title to show. `config` is shown beside the metrics: plain JSON values, no secrets. `identity` is
        the same when a stage is resumed, so that Weights & Biases and Trackio continue theirs, and else another.
        """
        self._folder = folder / FOLDER
        require_no_link(folder, self._folder)
        self._config = dict(config)
        self._running: dict[str, GeneralTracker] = {}
        self._starts_tensorboard = "tensorboard" in names
        if "wandb" in names:
            with self._switch_off_on_error("wandb"):
                self._running["wandb"] = self._wandb(run, identity)
        if "trackio" in names:
            with self._switch_off_on_error("trackio"):
                self._running["trackio"] = self._trackio(run, identity)

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Records the metrics of a step; those that are None, NaN or infinite are left out."""
        values = {name: float(v) for name, v in metrics.items() if v is not None and math.isfinite(v)}
        if self._starts_tensorboard:
            self._starts_tensorboard = False
            with self._switch_off_on_error("tensorboard"):
                self._running["tensorboard"] = self._tensorboard(step)
        for name, tracker in list(self._running.items()):
            with self._switch_off_on_error(name):
                tracker.log(values, step=step)

    def close(self) -> None:
        """Writes and sends what is left. Closed trackers record nothing more."""
        self._starts_tensorboard = False
        for name, tracker in list(self._running.items()):
            with self._switch_off_on_error(name):
                tracker.finish()
        self._running.clear()

    def _tensorboard(self, step: int) -> "GeneralTracker":
        """Begins with the first logged step: what a run logged from that step on, before it was resumed, is hidden."""
        from accelerate.tracking import TensorBoardTracker
        from torch.utils.tensorboard.summary import hparams

        tracker = TensorBoardTracker("tensorboard", self._folder, purge_step=step)
        _start(tracker)
        # in the file of the metrics; Accelerate's own method shows the configuration as a second run
        for summary in hparams({name: _scalar(value) for name, value in self._config.items()}, {}):
            tracker.tracker.file_writer.add_summary(summary)
        return tracker

    def _wandb(self, run: str, identity: str) -> "GeneralTracker":
        from accelerate.tracking import WandBTracker

        self._folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", FINISH_SECONDS)
        tracker = WandBTracker(
            os.environ.get("WANDB_PROJECT", PROJECT),
            name=run,
            id=identity,
            resume="allow",
            reinit="finish_previous",  # otherwise a stage after one whose tracker failed would be added to that one
            dir=str(self._folder),
            config=self._config,
            allow_val_change=True,
        )
        _start(tracker)
        return tracker

    def _trackio(self, run: str, identity: str) -> "GeneralTracker":
        from accelerate.tracking import TrackioTracker

        # Trackio identifies a run by its name alone
        tracker = TrackioTracker(PROJECT, name=f"{run} {identity[:8]}", resume="allow", config=self._config)
        _start(tracker)
        return tracker

    @contextlib.contextmanager
    def _switch_off_on_error(self, name: str) -> Iterator[None]:
        """Runs a tracker's call; after an error the tracker is off, with one warning."""
        try:
            yield
        except Exception as error:  # three libraries, their networks and files: any exception is possible
            self._running.pop(name, None)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            log.warning("%s is off from now on (%s); metrics.jsonl has every figure", name, reason)


def _start(tracker: "GeneralTracker") -> None:
    from accelerate import PartialState

    PartialState()  # Accelerate's trackers refuse to log without one; a second call changes nothing
    tracker.start()


def _is_installed(name: str) -> bool:
    """Whether the package can be imported. A folder of that name without code, such as wandb's logs, does not count."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def _scalar(value: Any) -> bool | int | float | str:
    """A value as TensorBoard's table of configurations can hold it."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)
