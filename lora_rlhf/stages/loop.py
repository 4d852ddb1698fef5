"""Around every training loop: it goes on from its checkpoint, saves, stops when asked to, and reports its figures."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import yaml
from torch import Tensor

from lora_rlhf.configs.common import TrainingConfig
from lora_rlhf.configs.values import to_yaml
from lora_rlhf.model.adapters import read_adapter
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import StageFolder
from lora_rlhf.stages.checkpoint import Checkpoint, Checkpoints
from lora_rlhf.stages.interrupt import Request, graceful
from lora_rlhf.stages.learning import NotFinite, RoleOptimizer
from lora_rlhf.system import workers
from lora_rlhf.system.errors import Stopped
from lora_rlhf.system.tracking import Trackers

log = logging.getLogger("lora_rlhf")

FAILURE = "failure.json"
GO_ON = "Give the same command again to go on"

Snapshot = Callable[[], tuple[Mapping[str, Any], Mapping[str, Tensor]]]


class TrainingLoop:
    """One stage's training. `snapshot` gives what the stage itself must remember, as JSON values and as tensors."""

    def __init__(
        self,
        config: TrainingConfig,
        folder: StageFolder,
        model: SharedModel,
        optimizers: Sequence[RoleOptimizer],
        snapshot: Snapshot,
        unit: str,
    ) -> None:
        self._config, self._folder, self._model = config, folder, model
        self._optimizers, self._snapshot, self._unit = optimizers, snapshot, unit
        self._checkpoints = Checkpoints(folder, config.keep_checkpoints)
        self._request = Request()
        self._trackers: Trackers | None = None
        self._last_saved = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside the block signals are noted instead of ending the process, and figures are reported."""
        plain = yaml.safe_load(to_yaml(self._config))
        name, identity = f"{self._config.run}/{self._folder.stage}", self._folder.identity
        names = self._config.report_to if workers.is_main() else ()
        self._trackers = Trackers(names, self._folder.path, name, plain, identity)
        try:
            with graceful() as self._request:
                yield
        finally:
            self._trackers.close()

    def resume(self) -> Checkpoint | None:
        """What an unfinished run had saved, its adapters and optimizers put back; None where one begins."""
        if not self._folder.resumes:
            return None
        found = self._checkpoints.resume()
        for optimizer in self._optimizers:
            self._model.load_adapter_state(optimizer.role, read_adapter(found.folder / optimizer.role)[1])
            optimizer.load(found.tensors)
        return found

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row of figures, to metrics.jsonl and wherever else they are to go."""
        self._folder.log(step, metrics)
        if self._trackers is not None:
            self._trackers.log(step, metrics)

    def boundary(self, step: int, of: int, part: int = 0, score: float | None = None) -> None:
        """Between two steps, `step` of which are done: saves when it is time, and stops when somebody asked to.

        `part` counts on inside what follows the step. `score` tells the best checkpoint: the higher the better.
        Raises Stopped after saving.
        """
        asked = self._request.made and step < of
        if asked or (part == 0 and step % self._config.save_every == 0 and step < of):
            state, tensors = self._snapshot()
            moments = {name: value for optimizer in self._optimizers for name, value in optimizer.state().items()}
            self._checkpoints.save(step, state, {**tensors, **moments}, self._write_adapters, part=part, score=score)
            self._last_saved = step
        if asked:
            raise Stopped(
                f"stopped after {self._unit} {step} of {of}; everything is saved. {GO_ON}", self._request.status
            )

    def broken(self, step: int, error: NotFinite, batch: list[dict[str, Any]], advice: str) -> Stopped:
        """What to raise when step `step` made a number that is none: the batch is kept for inspection."""
        self._folder.write(FAILURE, {"step": step, "not_finite": error.what, "batch": batch})
        return Stopped(
            f"{self._unit} {step}: {error.what} is not finite; it was not applied. Its batch is in "
            f"{self._folder.path / FAILURE}, the last checkpoint is of {self._unit} {self._last_saved}. {advice}"
        )

    def _write_adapters(self, folder: Any) -> None:
        for optimizer in self._optimizers:
            self._model.save_role(optimizer.role, folder / optimizer.role)
