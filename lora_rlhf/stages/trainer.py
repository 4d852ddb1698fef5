"""The service that trains roles: optimizer steps that fit into memory, checkpoints, stopping, figures."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from lora_rlhf.configs.common import TrainingConfig
from lora_rlhf.configs.values import to_yaml
from lora_rlhf.model.adapters import read_adapter
from lora_rlhf.model.devices import is_device_failure
from lora_rlhf.model.optimizers import copy_moments, load_moments, make_optimizer
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import ELAPSED, StageFolder
from lora_rlhf.stages.auto_batch import AutoBatch
from lora_rlhf.stages.checkpoint import Checkpoint, Checkpoints
from lora_rlhf.stages.interrupt import Request, graceful
from lora_rlhf.system import workers
from lora_rlhf.system.errors import Stopped, UserError, first_line
from lora_rlhf.system.tracking import Trackers

log = logging.getLogger("lora_rlhf")

# Peaks of learning rates that LoRA adapters are trained with; outside of them little or nothing sensible is learned.
USUAL_LEARNING_RATES = (1e-5, 1e-2)
# In float16 small gradients of activations round to 0: losses are multiplied by this, and adapters' gradients, which
# are float32, are divided by it. A power of two changes no digit.
FLOAT16_LOSS_SCALE = 2.0**12
EPS = 1e-5  # AdamW's: with PyTorch's 1e-8 the first PPO updates are several times larger (arXiv 2403.17031)
FAILURE = "failure.json"
GO_ON = "Give the same command again to go on"

Accumulate = Callable[[int], dict[str, float]]
Snapshot = Callable[[], tuple[Mapping[str, Any], Mapping[str, Tensor]]]


class NotFinite(Exception):
    """A loss, gradient, score or log-probability is not a number, or infinite; nothing was applied."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class RoleOptimizer:
    """One role's AdamW, in the form that the config names. `peak` is its highest learning rate."""

    def __init__(
        self,
        config: TrainingConfig,
        model: SharedModel,
        role: str,
        peak: float,
        batch: AutoBatch,
        eps: float = EPS,
    ) -> None:
        lowest, highest = USUAL_LEARNING_RATES
        if not lowest <= peak <= highest:
            effect = "will hardly move" if peak < lowest else "may destroy"
            log.warning(
                "learning rate of %s: %g is outside the usual %g to %g for LoRA; training %s the adapter",
                *(role, peak, lowest, highest, effect),
            )
        self.role = role
        self.has_moved = False  # whether a step of this process changed a parameter
        self._peak, self._max_grad_norm = peak, config.max_grad_norm
        self._loss_scale = FLOAT16_LOSS_SCALE if model.causal.dtype == torch.float16 else 1.0
        self._model, self._batch = model, batch
        self._named = model.named_parameters_of(role)
        self._parameters = [parameter for _, parameter in self._named]
        self._adamw = make_optimizer(config.optimizer, self._parameters, peak, eps)

    def set_learning_rate(self, share_of_peak: float) -> float:
        """Sets the learning rate, as a share of its peak, from the next step on; returns it."""
        rate = self._peak * share_of_peak
        for group in self._adamw.param_groups:
            group["lr"] = rate
        return rate

    def step(
        self, accumulate: Accumulate, inspect: Callable[[dict[str, float]], None] | None = None
    ) -> dict[str, float]:
        """One step; returns the summed metrics, and `grad_norm`, the gradient's norm before it was clipped.

        `accumulate(size)` goes forward and backward over this process's rows in micro-batches of at most `size` and
        returns metrics that add up over rows. It may be called again, with a smaller size, when memory runs out.
        NotFinite, before anything is applied, for a metric or gradient that is not finite; `inspect`, which gets the
        metrics, may raise as well to prevent the step.
        """
        totals, norm = self._compute_gradient(accumulate)
        for name, value in {**totals, "gradient": norm}.items():
            if not math.isfinite(value):
                raise NotFinite(name)
        if inspect is not None:
            inspect(totals)
        before = [] if self.has_moved else [parameter.detach().clone() for parameter in self._parameters]
        self._adamw.step()
        self.has_moved = self.has_moved or not all(map(torch.equal, before, self._parameters))
        return {**totals, "grad_norm": norm}

    def require_moved(self) -> None:
        """Stopped where no step of this process has changed the adapter: the run learns nothing."""
        if not self.has_moved:
            raise Stopped(
                f"the {self.role} adapter did not move: nothing is learned. Its learning rate is {self._peak:g}; "
                "10 to 100 times what full fine-tuning takes (1e-4 to 2e-3) is usual for LoRA"
            )

    def rehearse(self, accumulate: Accumulate) -> None:
        """Takes a step and undoes it, so that the largest step fails at the start and not hours later."""
        parameters, optimizer_state = self._model.adapter_state(self.role), self.state()
        devices = [self._model.device] if self._model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            self._compute_gradient(accumulate)
            self._adamw.step()
        self._model.load_adapter_state(self.role, parameters)
        self.load(optimizer_state)
        self._adamw.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """AdamW's moments, copied to the CPU, under the role's and the parameters' names; a loss scale other than 1."""
        scale = {} if self._loss_scale == 1 else {f"{self.role}.loss_scale": torch.tensor(self._loss_scale)}
        return scale | {
            f"{self.role}.{moment}.{name}": value
            for name, parameter in self._named
            for moment, value in copy_moments(self._adamw, parameter).items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restores the moments and the loss scale, bit for bit.

        Raises UserError if the checkpoint was written by another kind of optimizer, RuntimeError if a shape differs.
        """
        if f"{self.role}.loss_scale" in state:
            self._loss_scale = float(state[f"{self.role}.loss_scale"])
        for name, parameter in self._named:
            keys = {moment: f"{self.role}.{moment}.{name}" for moment in self._adamw.state[parameter]}
            if missing := sorted(set(keys.values()) - state.keys()):
                raise UserError(f"the checkpoint lacks {missing[0]}: give the --optimizer that the run began with")
            load_moments(self._adamw, parameter, {moment: state[key] for moment, key in keys.items()})

    def _compute_gradient(self, accumulate: Accumulate) -> tuple[dict[str, float], float]:
        """Metrics and the gradient's norm, summed over all processes; the gradient is clipped.

        Where only the gradient is not finite, the loss scale is halved and the pass repeated, down to a scale of 1.
        """

        def begin_anew(size: int) -> dict[str, float]:
            self._adamw.zero_grad()
            return accumulate(size)

        while True:
            self._model.loss_scale = self._loss_scale
            try:
                with self._model.role(self.role, training=True):
                    totals = self._batch.run(begin_anew, f"the update of {self.role}")
            finally:
                self._model.loss_scale = 1.0
            workers.sum_gradients(self._parameters)
            self._model.check_gradients(self.role)
            if self._loss_scale != 1:
                for parameter in self._parameters:
                    assert parameter.grad is not None
                    parameter.grad /= self._loss_scale
            norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm))
            totals = workers.sum_all(totals)
            has_overflown = not math.isfinite(norm) and all(map(math.isfinite, totals.values()))
            if not has_overflown or self._loss_scale == 1:
                return totals, norm
            self._loss_scale /= 2
            log.info("a float16 gradient overflowed: the loss scale of %s is now %g", self.role, self._loss_scale)


class Trainer:
    """What stands around one stage's training: checkpoints between steps, stopping, and where figures go.

    `snapshot` gives what the stage itself must remember in a checkpoint, as JSON values and as tensors. `unit` is what
    the stage counts in: "step" or "iteration".
    """

    def __init__(
        self,
        config: TrainingConfig,
        model: SharedModel,
        folder: StageFolder,
        optimizers: Mapping[str, RoleOptimizer],
        snapshot: Snapshot,
        unit: str = "step",
    ) -> None:
        self._config, self._folder, self._model = config, folder, model
        self._optimizers, self._snapshot, self._unit = optimizers, snapshot, unit
        self._checkpoints = Checkpoints(folder, config.keep_checkpoints)
        self._request = Request()
        self._trackers: Trackers | None = None
        self._last_saved = self._last_done = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside the block signals are noted instead of ending the process, and figures are reported."""
        settings = yaml.safe_load(to_yaml(self._config))
        name, identity = f"{self._config.run}/{self._folder.stage}", self._folder.identity
        names = self._config.report_to if workers.is_main() else ()
        self._trackers = Trackers(names, self._folder.path, name, settings, identity)
        try:
            with graceful(self._unit) as self._request:
                yield
        except RuntimeError as error:
            if not is_device_failure(error):
                raise
            raise Stopped(self._device_failure_text(error)) from error
        finally:
            self._trackers.close()

    def resume(self) -> Checkpoint | None:
        """An unfinished run's checkpoint, its adapters and optimizers put back; None where a run begins."""
        if not self._folder.resumes:
            return None
        checkpoint = self._checkpoints.resume()
        self._last_saved = self._last_done = checkpoint.step
        for role, optimizer in self._optimizers.items():
            self._model.load_adapter_state(role, read_adapter(checkpoint.folder / role)[1])
            optimizer.load(checkpoint.tensors)
        return checkpoint

    def log(self, step: int, metrics: Mapping[str, float], details: Mapping[str, Any] | None = None) -> None:
        """One row of figures, to metrics.jsonl and wherever else they are to go. details: for metrics.jsonl alone."""
        self._folder.log(step, {**metrics, **(details or {}), ELAPSED: round(self._folder.seconds, 3)})
        if self._trackers is not None:
            self._trackers.log(step, metrics)

    def save_or_stop(self, done: int, total: int, score: float | None = None) -> None:
        """Between two steps, `done` of `total` behind us: saves when it is due, and stops when somebody asked to.

        `score` ranks the checkpoints, higher is better. Raises Stopped after saving.
        """
        self._last_done = done
        self._folder.record_total(total)
        must_stop = self._request.is_made and done < total
        if must_stop or (done % self._config.save_every == 0 and done < total):
            self._save(done, score)
        if must_stop:
            raise Stopped(
                f"stopped after {self._unit} {done} of {total}; everything is saved. {GO_ON}", self._request.exit_status
            )

    def save_and_stop(self, done: int, total: int, reason: str) -> Stopped:
        """The error to raise between two steps, after saving, for a reason that is none of the training's."""
        if done > self._last_saved:
            self._save(done, None)
        return Stopped(f"{reason}. Stopped after {self._unit} {done} of {total}; everything is saved. {GO_ON}")

    def _save(self, done: int, score: float | None) -> None:
        state, tensors = self._snapshot()
        for optimizer in self._optimizers.values():
            tensors = {**tensors, **optimizer.state()}
        self._checkpoints.save(done, state, tensors, self._write_adapters, score)
        self._last_saved = done

    def write_failure(self, step: int, error: NotFinite, rows: list[dict[str, Any]], advice: str) -> Stopped:
        """The error to raise when step `step` gave a number that is not finite; its rows are kept for inspection."""
        self._folder.write(FAILURE, {"step": step, "not_finite": error.what, "batch": rows})
        if self._model.causal.dtype == torch.float16:
            advice = f"float16 ends at 65,504: begin a new run with --compute_dtype float32, if not: {advice}"
        return Stopped(
            f"{self._unit} {step}: {error.what} is not finite; it was not applied. Its batch is in "
            f"{self._folder.path / FAILURE}, the last checkpoint is of {self._unit} {self._last_saved}. {advice}"
        )

    def _device_failure_text(self, error: RuntimeError) -> str:
        """What to say when the GPU failed: nothing more can be saved, and what was saved is whole."""
        kept = (
            f"the checkpoint of {self._unit} {self._last_saved} is kept"
            if self._last_saved
            else f"no checkpoint had been written (--save_every {self._config.save_every})"
        )
        return (
            f"the GPU failed after {self._unit} {self._last_done} ({first_line(error)}); {kept}. nvidia-smi shows "
            f"whether it answers; a driver that is gone needs a restart of the machine. {GO_ON}"
        )

    def _write_adapters(self, folder: Path) -> None:
        for role in self._optimizers:
            self._model.save_role(role, folder / role)
