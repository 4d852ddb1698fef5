"""One role's optimizer step: micro-batches that fit, gradients of all processes summed, checked, clipped, applied."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lora_rlhf.model.optimizers import OptimizerName, make_optimizer, moments, put_back
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stages.fitting import Pieces
from lora_rlhf.system import workers
from lora_rlhf.system.errors import UserError

EPS = 1e-5  # AdamW's: with PyTorch's 1e-8 the first PPO updates are several times larger (arXiv 2403.17031)

Accumulate = Callable[[int], dict[str, float]]


class NotFinite(Exception):
    """A loss, gradient, score or log-probability is not a number, or infinite; nothing was applied."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class RoleOptimizer:
    """AdamW for one role, in one of the forms that `OptimizerName` lists."""

    def __init__(
        self,
        model: SharedModel,
        role: str,
        learning_rate: float,
        max_grad_norm: float,
        pieces: Pieces,
        eps: float = EPS,
        optimizer: OptimizerName = "adamw",
    ) -> None:
        self.role = role
        self._model, self._pieces, self._max_grad_norm = model, pieces, max_grad_norm
        self._named = model.named_parameters_of(role)
        self._parameters = [parameter for _, parameter in self._named]
        self._adamw = make_optimizer(optimizer, self._parameters, learning_rate, eps)

    def set_learning_rate(self, learning_rate: float) -> None:
        """From the next step on."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate

    def step(
        self, accumulate: Accumulate, inspect: Callable[[dict[str, float]], None] | None = None
    ) -> dict[str, float]:
        """One step; returns the summed metrics, and `grad_norm`, the gradient's norm before it was clipped.

        `accumulate(size)` goes forward and backward over this process's rows in micro-batches of at most `size` and
        returns metrics that add up over rows. It may be called again, with a smaller size, when memory runs out.
        NotFinite, before anything is applied, for a metric or gradient that is not finite; so may `inspect`, which is
        shown the metrics, raise to prevent the step.
        """
        totals, norm = self._gradient(accumulate)
        for name, value in {**totals, "gradient": norm}.items():
            if not math.isfinite(value):
                raise NotFinite(name)
        if inspect is not None:
            inspect(totals)
        self._adamw.step()
        return {**totals, "grad_norm": norm}

    def rehearse(self, accumulate: Accumulate) -> None:
        """The whole step at its largest, without a trace: it fails here rather than in the middle of the night."""
        before, state = self._model.adapter_state(self.role), self.state()
        devices = [self._model.device] if self._model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            self._gradient(accumulate)
            self._adamw.step()
        self._model.load_adapter_state(self.role, before)
        self.load(state)
        self._adamw.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """AdamW's moments, copied to the CPU, under the role's and the parameters' names."""
        return {
            f"{self.role}.{moment}.{name}": value
            for name, parameter in self._named
            for moment, value in moments(self._adamw, parameter).items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Puts the moments back, bit for bit. UserError for another optimizer's, RuntimeError for another shape."""
        for name, parameter in self._named:
            named = {moment: f"{self.role}.{moment}.{name}" for moment in self._adamw.state[parameter]}
            if missing := sorted(set(named.values()) - state.keys()):
                raise UserError(f"the checkpoint lacks {missing[0]}: give the --optimizer that the run began with")
            put_back(self._adamw, parameter, {moment: state[key] for moment, key in named.items()})

    def _gradient(self, accumulate: Accumulate) -> tuple[dict[str, float], float]:
        def begin_anew(size: int) -> dict[str, float]:
            self._adamw.zero_grad()
            return accumulate(size)

        with self._model.role(self.role, training=True):
            totals = self._pieces.run(begin_anew, f"the update of {self.role}")
        workers.sum_gradients(self._parameters)
        self._model.check_gradients(self.role)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        return workers.sum_all(totals), float(norm)
