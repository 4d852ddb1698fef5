"""Measures the memory of passes through a model by running a few of its layers on tensors without storage."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lora_rlhf.algo.logprobs import chunked_logprobs
from lora_rlhf.model.forward import CHUNK_LOGITS
from lora_rlhf.model.skeleton import Counts, Skeleton
from lora_rlhf.plan.meter import Meter

FEW_LAYERS, MORE_LAYERS = 2, 4  # layers: at least two of each kind in models that alternate two kinds
ROWS, MORE_ROWS = 2, 3  # not 1, because a single row runs other kernels

ByteSeries = list[int]  # bytes in use after each operation of a pass


@dataclass(frozen=True)
class Envelope:
    """The peak bytes of a pass for any number of rows: the maximum of lines (bytes without rows, bytes per row)."""

    lines: tuple[tuple[float, float], ...]

    @classmethod
    def from_series(cls, fewer: ByteSeries, more: ByteSeries) -> "Envelope":
        """From series of one pass with ROWS and with MORE_ROWS rows. Raises ValueError if their lengths differ."""
        if len(fewer) != len(more):
            raise ValueError(f"a pass of {MORE_ROWS} rows takes {len(more)} operations, of {ROWS} rows {len(fewer)}")
        slopes = ((a, (b - a) / (MORE_ROWS - ROWS)) for a, b in zip(fewer, more, strict=True))
        lines = {(a - slope * ROWS, slope) for a, slope in slopes}
        highest_start, upper_lines = float("-inf"), []
        for start, slope in sorted(lines, key=lambda line: (-line[1], -line[0])):
            if start > highest_start:  # else an earlier line is above this one everywhere
                highest_start = start
                upper_lines.append((start, slope))
        return cls(tuple(upper_lines))

    def bytes_at(self, rows: int) -> float:
        """The bytes for that many rows."""
        return max(start + slope * rows for start, slope in self.lines)


@dataclass(frozen=True)
class Plane:
    """The peak bytes of a pass for any number of rows and layers; each layer adds the same bytes."""

    few: Envelope
    more: Envelope

    def bytes_at(self, rows: int, layers: int) -> float:
        """The bytes for that many rows and layers."""
        few, more = self.few.bytes_at(rows), self.more.bytes_at(rows)
        return few + (more - few) * (layers - FEW_LAYERS) / (MORE_LAYERS - FEW_LAYERS)


@dataclass(frozen=True)
class Line:
    """A straight line through two measurements (rows, bytes)."""

    first: tuple[int, float]
    second: tuple[int, float]

    @classmethod
    def from_measurements(cls, measure: Callable[[int], float], fewer: int, more: int) -> "Line":
        """A line through the measured bytes of two numbers of rows."""
        return cls((fewer, measure(fewer)), (more, measure(more)))

    def bytes_at(self, rows: int) -> float:
        """The bytes for that many rows."""
        slope = (self.second[1] - self.first[1]) / (self.second[0] - self.first[0])
        return self.first[1] + slope * (rows - self.first[0])


@dataclass(frozen=True)
class ChunkedLine:
    """The bytes of a head that works in chunks: one line for rows that fit one chunk, another for more rows."""

    rows_of_a_chunk: int
    within: Line
    beyond: Line

    def bytes_at(self, rows: int) -> float:
        """The bytes for that many rows."""
        return (self.within if rows <= self.rows_of_a_chunk else self.beyond).bytes_at(rows)


@dataclass(frozen=True)
class Passes:
    """The bytes of passes over rows of a prompt and a response, without weights, adapters, gradients and optimizer.

    prompt, response: tokens of each row. `training` has "forward", "saved" (activations for the backward pass) and
    "backward", without and with gradient checkpointing; `decoding` has "prefill", "cache" (keys and values at full
    length) and "step".
    """

    prompt: int
    response: int
    training: dict[bool, dict[str, Plane]]
    scoring: Plane
    decoding: dict[str, Plane]
    logprobs: ChunkedLine
    logprobs_alone: ChunkedLine  # without the entropy, which SFT does not use
    logprobs_scoring: ChunkedLine
    values: Line
    scores: Line
    operations: float  # of one step of decoding


def measure_passes(counts: Counts, build_skeleton: Callable[[int], Skeleton], prompt: int, response: int) -> Passes:
    """Measures the passes on a few layers, with prompts and responses of the maximum lengths in tokens.

    build_skeleton: makes a skeleton with the given number of layers.
    """
    skeletons = {layers: build_skeleton(layers) for layers in (FEW_LAYERS, MORE_LAYERS)}

    def measure_planes(measure: Callable[[Skeleton, int], dict[str, ByteSeries]]) -> dict[str, Plane]:
        """Calls `measure(skeleton, rows)` for two numbers of layers and of rows; returns the planes by name."""
        few, more = (
            [measure(skeletons[layers], rows) for rows in (ROWS, MORE_ROWS)] for layers in (FEW_LAYERS, MORE_LAYERS)
        )
        return {name: Plane(*(Envelope.from_series(a[name], b[name]) for a, b in (few, more))) for name in few[0]}

    skeleton = skeletons[FEW_LAYERS]
    decoding = measure_planes(partial(_measure_decoding, prompt=prompt, response=response))
    operations = decoding.pop("operations").bytes_at(1, counts.layers)
    length = prompt + response
    return Passes(
        prompt,
        response,
        {
            checkpointing: measure_planes(partial(_measure_training_step, length=length, checkpointing=checkpointing))
            for checkpointing in (False, True)
        },
        measure_planes(partial(_measure_scoring_pass, length=length))["forward"],
        decoding,
        _logprob_head_line(skeleton, counts, prompt, response, training=True),
        _logprob_head_line(skeleton, counts, prompt, response, training=True, entropy=False),
        _logprob_head_line(skeleton, counts, prompt, response, training=False),
        Line.from_measurements(lambda rows: _scalar_head_peak_bytes(skeleton, counts, rows, prompt, response), 1, 2),
        Line.from_measurements(lambda rows: _scalar_head_peak_bytes(skeleton, counts, rows, prompt, 1), 1, 2),
        operations,
    )


def _make_inputs(rows: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ids, mask and positions (B, T) of an unpadded batch."""
    mask = torch.ones((rows, length), dtype=torch.bool)
    return torch.zeros((rows, length), dtype=torch.long), mask.long(), mask.long().cumsum(dim=-1)


def _measure_training_step(skeleton: Skeleton, rows: int, length: int, checkpointing: bool) -> dict[str, ByteSeries]:
    """Measures a forward and a backward pass through the layers; "saved" is the bytes between the two."""
    with skeleton.mode:
        skeleton.train(checkpointing)
        with Meter() as meter:
            with meter.record_phase("forward"):
                hidden = skeleton.hidden(*_make_inputs(rows, length))
                loss = _HeadStandIn.apply(hidden)
                del hidden
            saved_bytes = meter.live_bytes
            with meter.record_phase("backward"):
                loss.backward()
        return {"saved": [saved_bytes], **{name: meter.byte_series[name] for name in ("forward", "backward")}}


@torch.no_grad()
def _measure_scoring_pass(skeleton: Skeleton, rows: int, length: int) -> dict[str, ByteSeries]:
    """Measures a forward pass without gradients."""
    with skeleton.mode:
        skeleton.eval()
        with Meter() as meter, meter.record_phase("forward"):
            skeleton.hidden(*_make_inputs(rows, length))
        return {"forward": meter.byte_series["forward"]}


@torch.no_grad()
def _measure_decoding(skeleton: Skeleton, rows: int, prompt: int, response: int) -> dict[str, ByteSeries]:
    """Measures the pass over the prompts, and the last decoding step, which has the longest cache."""
    with skeleton.mode:
        skeleton.eval()
        with Meter() as meter, meter.record_phase("prefill"):
            skeleton.hidden(*_make_inputs(rows, prompt), skeleton.new_cache())
        prefill = meter.byte_series["prefill"]
        with Meter() as meter:
            cache = skeleton.new_cache()
            skeleton.hidden(*_make_inputs(rows, prompt + response - 2), cache)
            cache_bytes, operations_before = meter.live_bytes, meter.operations
            ids, _, positions = _make_inputs(rows, 1)
            mask = _make_inputs(rows, prompt + response - 1)[1]
            with meter.record_phase("step"):
                skeleton.hidden(ids, mask, positions, cache)
        step = [size - cache_bytes for size in meter.byte_series["step"]]
        operations = meter.operations - operations_before
        return {"prefill": prefill, "cache": [cache_bytes], "step": step, "operations": [operations]}


def _logprob_head_line(
    skeleton: Skeleton, counts: Counts, prompt: int, response: int, training: bool, entropy: bool = True
) -> ChunkedLine:
    """The peak bytes of the head that computes log-probabilities, for any number of rows."""
    chunk = max(1, CHUNK_LOGITS // counts.vocab_size)

    def measure(rows: int) -> float:
        return _logprob_head_peak_bytes(skeleton, counts, rows, prompt, response, chunk, training, entropy)

    two_chunks = -(-2 * chunk // response)  # rows
    beyond = Line.from_measurements(measure, two_chunks, 2 * two_chunks)
    return ChunkedLine(chunk // response, Line.from_measurements(measure, 1, 2), beyond)


def _logprob_head_peak_bytes(
    skeleton: Skeleton,
    counts: Counts,
    rows: int,
    prompt: int,
    response: int,
    chunk: int,
    training: bool,
    entropy: bool,
) -> float:
    """The peak bytes from hidden states to log-probabilities in chunks and, in training, to their gradient."""
    with skeleton.mode, torch.set_grad_enabled(training):
        with Meter() as meter, meter.record_phase("head"):
            hidden = _make_hidden_states(skeleton, counts, rows, prompt + response)
            indices = torch.zeros((2, rows * response), dtype=torch.long)
            flat = hidden[:, prompt - 1 : -1][indices[0], indices[1]]
            logprobs, _ = chunked_logprobs(flat, skeleton.logits, indices[0], 1.0, chunk, entropy)
            del flat, hidden
            if training:
                logprobs.sum().backward()
        return meter.peaks["head"]


def _scalar_head_peak_bytes(skeleton: Skeleton, counts: Counts, rows: int, prompt: int, response: int) -> float:
    """The peak bytes from hidden states to a value for each response token, and of the backward pass.

    With one response token this is the head of the reward model.
    """
    with skeleton.mode:
        skeleton.train(False)
        with Meter() as meter, meter.record_phase("head"):
            indices = torch.zeros((2, rows * response), dtype=torch.long)
            hidden = _make_hidden_states(skeleton, counts, rows, prompt + response)
            hidden = hidden[:, prompt - 1 : -1][indices[0], indices[1]]
            values = skeleton.score(hidden.float())
            values.sum().backward()
        return meter.peaks["head"]


def _make_hidden_states(skeleton: Skeleton, counts: Counts, rows: int, length: int) -> Tensor:
    """Hidden states (B, T, H) like those of the backbone, without running it."""
    # An input that requires a gradient makes autograd run the backward pass.
    start = torch.zeros((), requires_grad=True)
    states: Tensor = _BackboneStandIn.apply(start, (rows, length, counts.hidden_size), skeleton.causal.dtype)
    return states


class _BackboneStandIn(torch.autograd.Function):
    """Replaces the backbone when a head is measured: creates hidden states, and discards their gradient."""

    @staticmethod
    def forward(_ctx: Any, _begin: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    @staticmethod
    def backward(_ctx: Any, *_gradients: Tensor) -> tuple[None, None, None]:
        return None, None, None


class _HeadStandIn(torch.autograd.Function):
    """Replaces a head when the backbone is measured: discards hidden states, and creates their gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        ctx.shape, ctx.dtype = hidden.shape, hidden.dtype
        return hidden.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_gradients: Tensor) -> Tensor:
        return torch.empty(ctx.shape, dtype=ctx.dtype)
