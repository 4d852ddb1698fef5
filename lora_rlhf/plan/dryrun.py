"""The memory that passes through a model take, measured by running its layers on tensors without storage."""

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

FEW, MORE = 2, 4  # layers: two of each kind where two kinds alternate
ROWS, MORE_ROWS = 2, 3  # a single row would run other kernels

Trail = list[int]  # bytes in use after each operation of a pass


@dataclass(frozen=True)
class Envelope:
    """The maximum of many lines (bytes without rows, bytes per row): the peak of a pass at any number of rows."""

    lines: tuple[tuple[float, float], ...]

    @classmethod
    def through(cls, fewer: Trail, more: Trail) -> "Envelope":
        """From trails of the same pass with ROWS and MORE_ROWS rows; ValueError if they differ in length."""
        if len(fewer) != len(more):
            raise ValueError(f"a pass of {MORE_ROWS} rows takes {len(more)} operations, of {ROWS} rows {len(fewer)}")
        slopes = ((a, (b - a) / (MORE_ROWS - ROWS)) for a, b in zip(fewer, more, strict=True))
        lines = {(a - slope * ROWS, slope) for a, slope in slopes}
        highest, upper = float("-inf"), []
        for start, slope in sorted(lines, key=lambda line: (-line[1], -line[0])):
            if start > highest:  # else a line that begins higher also grows faster
                highest = start
                upper.append((start, slope))
        return cls(tuple(upper))

    def at(self, rows: int) -> float:
        """Bytes with that many rows."""
        return max(start + slope * rows for start, slope in self.lines)


@dataclass(frozen=True)
class Plane:
    """The peak of a pass at any number of rows and layers; each layer adds as much as the one before."""

    few: Envelope
    more: Envelope

    def at(self, rows: int, layers: int) -> float:
        """Bytes with that many rows and layers."""
        few, more = self.few.at(rows), self.more.at(rows)
        return few + (more - few) * (layers - FEW) / (MORE - FEW)


@dataclass(frozen=True)
class Line:
    """A straight line through two measurements (rows, bytes)."""

    first: tuple[int, float]
    second: tuple[int, float]

    @classmethod
    def through(cls, measure: Callable[[int], float], fewer: int, more: int) -> "Line":
        """From measurements at two numbers of rows."""
        return cls((fewer, measure(fewer)), (more, measure(more)))

    def at(self, rows: int) -> float:
        """Bytes with that many rows."""
        slope = (self.second[1] - self.first[1]) / (self.second[0] - self.first[0])
        return self.first[1] + slope * (rows - self.first[0])


@dataclass(frozen=True)
class ChunkedLine:
    """Bytes of a head that works in chunks: one line while all rows fit one chunk, another for more rows."""

    rows_of_a_chunk: int
    within: Line
    beyond: Line

    def at(self, rows: int) -> float:
        """Bytes with that many rows."""
        return (self.within if rows <= self.rows_of_a_chunk else self.beyond).at(rows)


@dataclass(frozen=True)
class Passes:
    """The bytes of passes over rows of a prompt and a response, without weights, adapters, gradients and optimizer.

    prompt, response: tokens of each row. `training` has "forward", "kept" (what the forward leaves for the backward)
    and "backward", without and with gradient checkpointing; `decoding` has "prefill", "cache" (keys and values at full
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


def run_dry(counts: Counts, build: Callable[[int], Skeleton], prompt: int, response: int) -> Passes:
    """Measures the passes on a few layers, with prompts and responses as long as allowed.

    build: makes a skeleton with that many layers.
    """
    skeletons = {layers: build(layers) for layers in (FEW, MORE)}

    def planes(measure: Callable[[Skeleton, int], dict[str, Trail]]) -> dict[str, Plane]:
        few, more = ([measure(skeletons[layers], rows) for rows in (ROWS, MORE_ROWS)] for layers in (FEW, MORE))
        return {name: Plane(*(Envelope.through(a[name], b[name]) for a, b in (few, more))) for name in few[0]}

    skeleton = skeletons[FEW]
    decoding = planes(partial(_decoding, prompt=prompt, response=response))
    operations = decoding.pop("operations").at(1, counts.layers)
    length = prompt + response
    return Passes(
        prompt,
        response,
        {
            checkpointing: planes(partial(_training, length=length, checkpointing=checkpointing))
            for checkpointing in (False, True)
        },
        planes(partial(_scoring, length=length))["forward"],
        decoding,
        _logprobs(skeleton, counts, prompt, response, training=True),
        _logprobs(skeleton, counts, prompt, response, training=True, entropy=False),
        _logprobs(skeleton, counts, prompt, response, training=False),
        Line.through(lambda rows: _scalar_head(skeleton, counts, rows, prompt, response), 1, 2),
        Line.through(lambda rows: _scalar_head(skeleton, counts, rows, prompt, 1), 1, 2),
        operations,
    )


def _inputs(rows: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids, mask and positions (B, T), as the passes make them."""
    mask = torch.ones((rows, length), dtype=torch.bool)
    return torch.zeros((rows, length), dtype=torch.long), mask.long(), mask.long().cumsum(dim=-1)


def _training(skeleton: Skeleton, rows: int, length: int, checkpointing: bool) -> dict[str, Trail]:
    with skeleton.mode:
        skeleton.train(checkpointing)
        with Meter() as meter:
            with meter.phase("forward"):
                hidden = skeleton.hidden(*_inputs(rows, length))
                loss = _Loss.apply(hidden)
                del hidden
            kept_bytes = meter.live
            with meter.phase("backward"):
                loss.backward()
        return {"kept": [kept_bytes], **{name: meter.trails[name] for name in ("forward", "backward")}}


@torch.no_grad()
def _scoring(skeleton: Skeleton, rows: int, length: int) -> dict[str, Trail]:
    with skeleton.mode:
        skeleton.eval()
        with Meter() as meter, meter.phase("forward"):
            skeleton.hidden(*_inputs(rows, length))
        return {"forward": meter.trails["forward"]}


@torch.no_grad()
def _decoding(skeleton: Skeleton, rows: int, prompt: int, response: int) -> dict[str, Trail]:
    """The pass over the prompts, and the last of the steps that follow, at which the cache is longest."""
    with skeleton.mode:
        skeleton.eval()
        with Meter() as meter, meter.phase("prefill"):
            skeleton.hidden(*_inputs(rows, prompt), skeleton.new_cache())
        prefill = meter.trails["prefill"]
        with Meter() as meter:
            cache = skeleton.new_cache()
            skeleton.hidden(*_inputs(rows, prompt + response - 2), cache)
            cache_bytes, operations_before = meter.live, meter.operations
            ids, _, positions = _inputs(rows, 1)
            mask = _inputs(rows, prompt + response - 1)[1]
            with meter.phase("step"):
                skeleton.hidden(ids, mask, positions, cache)
        step = [size - cache_bytes for size in meter.trails["step"]]
        operations = meter.operations - operations_before
        return {"prefill": prefill, "cache": [cache_bytes], "step": step, "operations": [operations]}


def _logprobs(
    skeleton: Skeleton, counts: Counts, prompt: int, response: int, training: bool, entropy: bool = True
) -> ChunkedLine:
    chunk = max(1, CHUNK_LOGITS // counts.vocab_size)

    def measure(rows: int) -> float:
        return _logprob_head(skeleton, counts, rows, prompt, response, chunk, training, entropy)

    two_chunks = -(-2 * chunk // response)  # rows
    beyond = Line.through(measure, two_chunks, 2 * two_chunks)
    return ChunkedLine(chunk // response, Line.through(measure, 1, 2), beyond)


def _logprob_head(
    skeleton: Skeleton,
    counts: Counts,
    rows: int,
    prompt: int,
    response: int,
    chunk: int,
    training: bool,
    entropy: bool,
) -> float:
    """From hidden states to log-probabilities in chunks and, in training, back to the hidden states' gradient."""
    with skeleton.mode, torch.set_grad_enabled(training):
        with Meter() as meter, meter.phase("head"):
            hidden = _hidden_states(skeleton, counts, rows, prompt + response)
            places = torch.zeros((2, rows * response), dtype=torch.long)
            flat = hidden[:, prompt - 1 : -1][places[0], places[1]]
            logprobs, _ = chunked_logprobs(flat, skeleton.logits, places[0], 1.0, chunk, entropy)
            del flat, hidden
            if training:
                logprobs.sum().backward()
        return meter.peaks["head"]


def _scalar_head(skeleton: Skeleton, counts: Counts, rows: int, prompt: int, response: int) -> float:
    """From hidden states to a value at each response token, and back; with one response token: to a score."""
    with skeleton.mode:
        skeleton.train(False)
        with Meter() as meter, meter.phase("head"):
            places = torch.zeros((2, rows * response), dtype=torch.long)
            hidden = _hidden_states(skeleton, counts, rows, prompt + response)
            hidden = hidden[:, prompt - 1 : -1][places[0], places[1]]
            values = skeleton.score(hidden.float())
            values.sum().backward()
        return meter.peaks["head"]


def _hidden_states(skeleton: Skeleton, counts: Counts, rows: int, length: int) -> Tensor:
    """(B, T, H), as the backbone would return them."""
    begin = torch.zeros((), requires_grad=True)
    states: Tensor = _Backbone.apply(begin, (rows, length, counts.hidden_size), skeleton.causal.dtype)
    return states


class _Backbone(torch.autograd.Function):
    """Stands for the backbone where only a head is measured: makes states, and takes their gradient."""

    @staticmethod
    def forward(_ctx: Any, _begin: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    @staticmethod
    def backward(_ctx: Any, *_gradients: Tensor) -> tuple[None, None, None]:
        return None, None, None


class _Loss(torch.autograd.Function):
    """Stands for a head where only the backbone is measured: takes states, and makes their gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        ctx.shape, ctx.dtype = hidden.shape, hidden.dtype
        return hidden.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_gradients: Tensor) -> Tensor:
        return torch.empty(ctx.shape, dtype=ctx.dtype)
