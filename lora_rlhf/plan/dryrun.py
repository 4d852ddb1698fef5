"""Measures passes through a model by running a few of its layers on tensors without storage: memory, and work."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lora_rlhf.algo.logprobs import chunked_logprobs
from lora_rlhf.model.decode_weights import MergedWeights
from lora_rlhf.model.drawing import draw_tokens
from lora_rlhf.model.engines import find_static_fault
from lora_rlhf.model.forward import CHUNK_LOGITS
from lora_rlhf.model.kv_cache import SlotCache
from lora_rlhf.model.skeleton import Counts, Skeleton
from lora_rlhf.plan.cards import Card
from lora_rlhf.plan.meter import Meter
from lora_rlhf.plan.pairs import PairStep, measure_pair_step
from lora_rlhf.plan.stand_ins import HeadStandIn, make_hidden_states
from lora_rlhf.plan.work import Cost, Operation, Work

FEW_LAYERS, MORE_LAYERS = 2, 4  # layers: at least two of each kind in models that alternate two kinds
ROWS, MORE_ROWS = 2, 3  # not 1, because a single row runs other kernels

ByteSeries = list[int]  # bytes in use after each operation of a pass


class Measured(NamedTuple):
    """What a run of passes has shown: for each pass, the bytes after each operation, and what each operation does."""

    bytes: dict[str, ByteSeries]
    operations: dict[str, list[Operation]]


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
class LayeredWork:
    """The operations of a pass through few layers and through more of them; each layer adds the same."""

    few: Work
    more: Work

    def cost(self, rows: int, layers: int, card: Card) -> Cost:
        """What the pass costs with that many rows and layers."""
        few, share = self.few.cost(rows, card), (layers - FEW_LAYERS) / (MORE_LAYERS - FEW_LAYERS)
        return few + (self.more.cost(rows, card) + few * -1) * share


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

    work: "scoring", "training", "training again" (with gradient checkpointing), "prefill", "step" in the middle of a
    response and "merged step". head_work: "logprobs", "logprobs, entropy" and "logprobs, gradients" of one chunk of
    tokens, and "drawing" of a token for each row, with its logits. chunk_tokens: of a chunk. is_static: whether slots
    with CUDA graphs can be stepped; else the step is that of the plain engine, whose cache grows. pairs: of a step of
    `dpo`, if it was asked for.
    """

    prompt: int
    response: int
    training: dict[bool, dict[str, Plane]]
    scoring: Plane
    decoding: dict[str, Plane]
    logprobs: ChunkedLine
    logprobs_scoring: ChunkedLine
    values: Line
    scores: Line
    work: dict[str, LayeredWork]
    head_work: dict[str, Work]
    chunk_tokens: int
    is_static: bool
    pairs: PairStep | None


def measure_passes(
    counts: Counts,
    build_skeleton: Callable[[int], Skeleton],
    prompt: int,
    response: int,
    pair_rows: int | None = None,
) -> Passes:
    """Measures the passes on a few layers, with prompts and responses of the maximum lengths in tokens.

    build_skeleton: makes a skeleton with the given number of layers. pair_rows: sequences in a step of `dpo`, to
    measure it too.
    """
    skeletons = {layers: build_skeleton(layers) for layers in (FEW_LAYERS, MORE_LAYERS)}
    length = prompt + response

    def measure_passes_of(
        measure: Callable[[Skeleton, int], Measured],
    ) -> tuple[dict[str, Plane], dict[str, LayeredWork]]:
        """Calls `measure(skeleton, rows)` for two numbers of layers and of rows; returns memory and work by pass."""
        few, more = (
            [measure(skeletons[layers], rows) for rows in (ROWS, MORE_ROWS)] for layers in (FEW_LAYERS, MORE_LAYERS)
        )
        planes = {
            name: Plane(*(Envelope.from_series(a.bytes[name], b.bytes[name]) for a, b in (few, more)))
            for name in few[0].bytes
        }
        works = {
            name: LayeredWork(
                *(Work.from_operations(ROWS, a.operations[name], b.operations[name]) for a, b in (few, more))
            )
            for name in few[0].operations
        }
        return planes, works

    skeleton, chunk = skeletons[FEW_LAYERS], max(1, CHUNK_LOGITS // counts.vocab_size)
    is_static = find_static_fault(skeleton.causal.config.get_text_config(), length) is None
    read = partial(_measure_decoding, prompt=prompt, response=response, is_static=is_static)
    decoding, work = measure_passes_of(read)
    plain_step = work.pop("step")
    scoring, scoring_work = measure_passes_of(partial(_measure_scoring_pass, length=length))
    training = {}
    for checkpointing, name in ((False, "training"), (True, "training again")):
        training[checkpointing], parts = measure_passes_of(
            partial(_measure_training_step, length=length, checkpointing=checkpointing)
        )
        work[name] = parts["training"]
    middle = prompt + response // 2
    for is_merged, name in ((False, "step"), (True, "merged step")):
        step = partial(_measure_static_step, columns=middle, is_merged=is_merged)
        work[name] = measure_passes_of(step)[1]["step"] if is_static else plain_step
    head_work = {
        "logprobs": _logprob_head_work(skeleton, counts, chunk, training=False, entropy=False),
        "logprobs, entropy": _logprob_head_work(skeleton, counts, chunk, training=False, entropy=True),
        "logprobs, gradients": _logprob_head_work(skeleton, counts, chunk, training=True, entropy=False),
        "drawing": Work.from_operations(ROWS, *(_drawing(skeleton, counts, rows) for rows in (ROWS, MORE_ROWS))),
    }
    return Passes(
        prompt,
        response,
        training,
        scoring["forward"],
        decoding,
        _logprob_head_line(skeleton, counts, prompt, response, training=True),
        _logprob_head_line(skeleton, counts, prompt, response, training=False),
        Line.from_measurements(lambda rows: _scalar_head_peak_bytes(skeleton, counts, rows, prompt, response), 1, 2),
        Line.from_measurements(lambda rows: _scalar_head_peak_bytes(skeleton, counts, rows, prompt, 1), 1, 2),
        {**work, "scoring": scoring_work["forward"]},
        head_work,
        chunk,
        is_static,
        None if pair_rows is None else measure_pair_step(skeleton, counts, pair_rows, prompt, response),
    )


def _make_inputs(rows: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ids, mask and positions (B, T) of an unpadded batch."""
    mask = torch.ones((rows, length), dtype=torch.bool)
    return torch.zeros((rows, length), dtype=torch.long), mask.long(), mask.long().cumsum(dim=-1)


def _measure_training_step(skeleton: Skeleton, rows: int, length: int, checkpointing: bool) -> Measured:
    """Measures a forward and a backward pass through the layers; "saved" is the bytes between the two."""
    with skeleton.mode:
        skeleton.train(checkpointing)
        with Meter() as meter:
            with meter.record_phase("forward"):
                hidden = skeleton.hidden(_make_inputs(rows, length)[0])
                loss = HeadStandIn.apply(hidden)
                del hidden
            saved_bytes = meter.live_bytes
            with meter.record_phase("backward"):
                loss.backward()
        series = {"saved": [saved_bytes], **{name: meter.byte_series[name] for name in ("forward", "backward")}}
        return Measured(series, {"training": meter.operations["forward"] + meter.operations["backward"]})


@torch.no_grad()
def _measure_scoring_pass(skeleton: Skeleton, rows: int, length: int) -> Measured:
    """Measures a forward pass without gradients."""
    with skeleton.mode:
        skeleton.eval()
        with Meter() as meter, meter.record_phase("forward"):
            skeleton.hidden(_make_inputs(rows, length)[0])
        return Measured({"forward": meter.byte_series["forward"]}, {"forward": meter.operations["forward"]})


@torch.no_grad()
def _measure_decoding(skeleton: Skeleton, rows: int, prompt: int, response: int, is_static: bool) -> Measured:
    """Measures the pass over the prompts, and the last decoding step, which has the longest cache.

    is_static: prompts are padded on the right, where no token sees it, so that attention takes no mask.
    """
    with skeleton.mode:
        skeleton.eval()
        with Meter() as meter, meter.record_phase("prefill"):
            ids, mask, positions = _make_inputs(rows, prompt)
            skeleton.hidden(ids, None if is_static else mask, positions, skeleton.new_cache())
        prefill, operations = meter.byte_series["prefill"], {"prefill": meter.operations["prefill"]}
        with Meter() as meter:
            cache = skeleton.new_cache()
            skeleton.hidden(*_make_inputs(rows, prompt + response - 2), cache)
            cache_bytes = meter.live_bytes
            ids, _, positions = _make_inputs(rows, 1)
            mask = _make_inputs(rows, prompt + response - 1)[1]
            with meter.record_phase("step"):
                skeleton.hidden(ids, mask, positions, cache)
        step = [size - cache_bytes for size in meter.byte_series["step"]]
        operations["step"] = meter.operations["step"]
        return Measured({"prefill": prefill, "cache": [cache_bytes], "step": step}, operations)


@torch.no_grad()
def _measure_static_step(skeleton: Skeleton, rows: int, columns: int, is_merged: bool) -> Measured:
    """Measures a step of `rows` slots that all attend to `columns` columns, as `Step` takes it; without its head."""
    with skeleton.mode:
        skeleton.eval()
        ids, _, positions = _make_inputs(rows, 1)
        cache = SlotCache(len(skeleton.new_cache().layers), columns, positions[:, 0])
        mask = torch.zeros((rows, 1, 1, columns), dtype=skeleton.causal.dtype)
        plain_mode = skeleton.linears.mode
        if is_merged:
            skeleton.linears.mode = MergedWeights(skeleton.peft)
        try:
            prompts = skeleton.new_cache()
            with Meter():  # which knows the operations that need weights
                skeleton.hidden(*_make_inputs(rows, 1), prompts)
            cache.copy_prompts(prompts, positions[:, 0], positions[:, 0])  # allocates it
            with Meter() as meter, meter.record_phase("step"):
                skeleton.hidden(ids, mask, positions, cache)
        finally:
            skeleton.linears.mode = plain_mode
        return Measured({"step": meter.byte_series["step"]}, {"step": meter.operations["step"]})


@torch.no_grad()
def _drawing(skeleton: Skeleton, counts: Counts, rows: int) -> list[Operation]:
    """The operations from the last hidden states of `rows` rows to a token for each."""
    with skeleton.mode, Meter() as meter, meter.record_phase("drawing"):
        states = torch.empty((rows, counts.hidden_size), dtype=skeleton.causal.dtype)
        draw_tokens(skeleton.logits(states).float(), 1.0, torch.empty(rows, dtype=torch.float64))
    return meter.operations["drawing"]


def _logprob_head_work(skeleton: Skeleton, counts: Counts, tokens: int, training: bool, entropy: bool) -> Work:
    """The operations from hidden states of one chunk of tokens to log-probabilities and, in training, the gradient."""
    with skeleton.mode, torch.set_grad_enabled(training):
        states = torch.empty((tokens, counts.hidden_size), dtype=skeleton.causal.dtype, requires_grad=training)
        ids = torch.zeros(tokens, dtype=torch.long)
        with Meter() as meter, meter.record_phase("head"):
            logprobs, _ = chunked_logprobs(states, skeleton.logits, ids, 1.0, tokens, entropy)
            if training:
                logprobs.sum().backward()
    operations = meter.operations["head"]
    return Work.from_operations(1, operations, operations)


def _logprob_head_line(skeleton: Skeleton, counts: Counts, prompt: int, response: int, training: bool) -> ChunkedLine:
    """The peak bytes of the head that computes log-probabilities, for any number of rows; the entropy in scoring."""
    chunk = max(1, CHUNK_LOGITS // counts.vocab_size)

    def measure(rows: int) -> float:
        return _logprob_head_peak_bytes(skeleton, counts, rows, prompt, response, chunk, training)

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
) -> float:
    """The peak bytes from hidden states to log-probabilities in chunks and, in training, to their gradient."""
    with skeleton.mode, torch.set_grad_enabled(training):
        with Meter() as meter, meter.record_phase("head"):
            hidden = make_hidden_states(skeleton, counts, rows, prompt + response)
            places = torch.zeros(rows * response, dtype=torch.long)
            flat = hidden.flatten(0, 1).index_select(0, places)
            del hidden  # of which autograd keeps nothing
            logprobs, _ = chunked_logprobs(flat, skeleton.logits, places, 1.0, chunk, entropy=not training)
            del flat
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
            places = torch.zeros(rows * response, dtype=torch.long)
            hidden = make_hidden_states(skeleton, counts, rows, prompt + response)
            hidden = hidden.flatten(0, 1).index_select(0, places)
            values = skeleton.score(hidden.float())
            values.sum().backward()
        return meter.peaks["head"]
