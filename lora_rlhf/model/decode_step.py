"""One token for every slot of a static cache: a step that runs eagerly, or on a GPU is replayed as a CUDA graph."""

import contextlib
import functools
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_rlhf.model.adapted_linear import LinearMode
from lora_rlhf.model.drawing import Drawing, RowRoles, draw_tokens
from lora_rlhf.model.heads import lm_logits
from lora_rlhf.model.kv_cache import SlotCache
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import first_line

log = logging.getLogger("lora_rlhf")


class Slots:
    """The state of S slots: in each a response, its cache, and the tokens drawn so far. All is written in place.

    role (S,): the index of the response's role, see `RowRoles`. token, position (S,): the token to read next, and its
    position. count (S,): tokens drawn. running (S,): False once a stop token or the limit was reached, and in empty
    slots; these compute on, but their position and count stay. uniforms, drawn, logprobs (S, limit + 1): each
    response's random numbers, tokens and their log-probabilities, with one column more for slots that do not run.
    """

    def __init__(self, slots: int, num_layers: int, width: int, limit: int, device: torch.device) -> None:
        self.num_slots, self.width = slots, width
        self.role = torch.zeros(slots, dtype=torch.long, device=device)
        self.token = torch.zeros(slots, dtype=torch.long, device=device)
        self.position = torch.zeros(slots, dtype=torch.long, device=device)
        self.count = torch.zeros(slots, dtype=torch.long, device=device)
        self.running = torch.zeros(slots, dtype=torch.bool, device=device)
        self.uniforms = torch.zeros((slots, limit + 1), dtype=torch.float64, device=device)
        self.drawn = torch.zeros((slots, limit + 1), dtype=torch.long, device=device)
        self.logprobs = torch.zeros((slots, limit + 1), device=device)
        self.cache = SlotCache(num_layers, width, self.position)

    def start(
        self,
        slots: Tensor,
        role: Tensor,
        token: Tensor,
        length: Tensor,
        uniforms: Tensor,
        is_running: Tensor,
        logprob: Tensor,
    ) -> None:
        """Starts responses in slots (n,). All are (n,), uniforms (n, limit). `is_running`: the response continues."""
        self.role[slots] = role
        self.token[slots], self.position[slots], self.running[slots] = token, length, is_running
        self.count[slots] = 1
        self.uniforms[slots, :-1] = uniforms
        self.drawn[slots, 0], self.logprobs[slots, 0] = token, logprob

    def move(self, sources: Tensor, targets: Tensor, columns: int) -> None:
        """Copies slots (n,) with the first columns of their cache to other slots (n,), and stops the sources."""
        rows = self.role, self.token, self.position, self.count, self.running, self.uniforms, self.drawn, self.logprobs
        for state in rows:
            state[targets] = state[sources]
        self.running[sources] = False
        self.cache.move(sources, targets, columns)


Replay = Callable[[], None]
Capture = Callable[[Replay], Replay]


class GraphCapture:
    """Captures steps on a device as CUDA graphs, which share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.graph_pool_handle()

    def __call__(self, run: Replay) -> Replay:
        """Returns a function that repeats the work of `run` on the GPU. RuntimeError with the first cause."""
        graph, stream_before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        cause: RuntimeError | None = None
        try:
            # thread_local: other threads, such as NCCL's watchdog, must not spoil the capture
            with torch.cuda.graph(
                graph, self._pool, _capture_stream(self._device.index), capture_error_mode="thread_local"
            ):
                try:
                    run()
                except RuntimeError as error:
                    cause = error  # the end of the capture raises again, and says less
                    raise
        except RuntimeError as error:
            torch.cuda.set_stream(stream_before)  # PyTorch 2.13 stays on the capture's stream
            self._release_pool()
            raise cause or error from None
        replay: Replay = graph.replay
        return replay

    def _release_pool(self) -> None:
        """After a failed capture, frees the memory that PyTorch 2.13 would still reserve (pytorch/pytorch#190348)."""
        with contextlib.suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(self._device.index, self._pool)
            torch._C._cuda_releasePool(self._device.index, self._pool)
        torch.cuda.empty_cache()


@functools.cache
def _capture_stream(index: int) -> torch.cuda.Stream:
    """The stream of all captures on a device: each stream keeps a workspace of cuBLAS forever."""
    return torch.cuda.Stream(index)


@contextlib.contextmanager
def refuse_waits(device: torch.device) -> Iterator[None]:
    """Inside, on a GPU: RuntimeError, with file and line, if an operation waits for the GPU or copies from or to it."""
    if device.type != "cuda":
        yield
        return
    mode_before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode")  # that it is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise RuntimeError(f"{first_line(error)}, in {frame.filename}, line {frame.lineno}") from error
    finally:
        torch.cuda.set_sync_debug_mode(mode_before)


def make_capture(model: SharedModel) -> Capture | None:
    """The capture of a model's steps; None if they run eagerly: on a CPU, or after a capture has failed."""
    if model.device.type != "cuda":
        return None
    if model.base.spec.quantization == "int8" and model.capture_fault is None:
        _give_up_capture(model, "8-bit layers look for outliers in their inputs at each step")
    return None if model.capture_fault else GraphCapture(model.device)


def _give_up_capture(model: SharedModel, fault: str) -> None:
    """Records and logs that the model's steps are not captured."""
    model.capture_fault = fault
    name = type(model.causal).__name__
    log.warning("%s: its decoding step cannot be captured as a CUDA graph, so it runs step by step (%s)", name, fault)


@dataclass
class Kept:
    """What stays on a GPU from one call of the static engine to the next of the same role: slots, steps and weights.

    step: with its slots and its captured steps. weights: a merged copy, which each call writes again in place.
    """

    step: "Step | None" = None
    weights: LinearMode | None = None

    def release(self) -> bool:
        """Lets go of all; returns whether there was anything."""
        was_kept = self.step is not None or self.weights is not None
        self.step = self.weights = None
        return was_kept


class Step:
    """Reads each slot's token, draws the next one and stores it.

    With `capture`, a size that occurs twice is captured: the first time runs eagerly, which also warms up the kernels
    and shows whether the step waits for the GPU, which no graph can. The captured steps live as long as this object.
    They read what they read then: an adapter's parameters, or merged weights, that change in place. If a capture
    fails, this and all later steps of the model run eagerly.
    """

    def __init__(
        self,
        model: SharedModel,
        slots: Slots,
        drawing: Drawing,
        row_roles: RowRoles,
        capture: Capture | None = None,
    ) -> None:
        self.model, self.slots, self.drawing, self.row_roles = model, slots, drawing, row_roles
        self._capture, self._mode = capture, model.mode
        self._replays: dict[tuple[int, int], Replay | None] = {}
        self._captured_copies: list[object] = []  # the 16-bit copies of the adapter that captured steps write and read
        self._columns = torch.arange(slots.cache.view.width, device=model.device)
        self._stops = torch.tensor(drawing.stop_ids, dtype=torch.long, device=model.device)

    @property
    def is_capturing(self) -> bool:
        """Whether steps are captured; False after a capture has failed."""
        return self._capture is not None

    def serves(self, drawing: Drawing, row_roles: RowRoles, count: int, batch_size: int, width: int) -> bool:
        """Whether another call, of the same role, can go on with these slots and captured steps."""
        slots, has_roles = self.slots, self.row_roles.mixture or row_roles.mixture
        is_large = count <= slots.num_slots <= batch_size and width <= slots.width
        is_same = self._mode is self.model.mode and drawing == self.drawing
        return self.is_capturing and is_large and is_same and not has_roles

    def __call__(self, rows: int, columns: int) -> None:
        """One step of the first `rows` slots, none of which has a token at or beyond `columns`."""
        size = (rows, columns)
        if self._capture is not None and size not in self._replays:
            self._replays[size] = None
            with self._give_up_on_error(), refuse_waits(self.model.device):
                return self._run_eagerly(rows, columns)
        elif self._capture is not None and self._replays[size] is None:
            with self._give_up_on_error():
                self._replays[size] = self._capture(lambda: self._run_eagerly(rows, columns))
                self._captured_copies.append(self.model.rounded_copies)
        replay = self._replays.get(size)
        if replay is None:
            self._run_eagerly(rows, columns)
        else:
            replay()

    @contextlib.contextmanager
    def _give_up_on_error(self) -> Iterator[None]:
        """An error in the block ends the capturing; steps run eagerly from then on.

        A step that waits does so in the pass of the model, which may be repeated: it writes the same cells again.
        """
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._capture = None
            _give_up_capture(self.model, first_line(error))

    def _run_eagerly(self, rows: int, columns: int) -> None:
        """Draws the next token of the first `rows` slots without a graph."""
        slots, drawing = self.slots, self.drawing
        position, count, running = (state[:rows] for state in (slots.position, slots.count, slots.running))
        uniforms = slots.uniforms[:rows].gather(1, count[:, None])[:, 0]
        token, logprob = draw_tokens(self.logits(rows, columns), drawing.temperature, uniforms)
        slots.token[:rows] = token
        slots.drawn[:rows].scatter_(1, count[:, None], token[:, None])
        slots.logprobs[:rows].scatter_(1, count[:, None], logprob[:, None])
        position += running
        count += running
        running &= ~self.is_stop(token) & (count < drawing.max_new_tokens)

    def logits(self, rows: int, columns: int) -> Tensor:
        """Reads the tokens of the first `rows` slots into the cache. Float32 logits (rows, V) of the next tokens."""
        slots = self.slots
        position = slots.position[:rows]
        slots.cache.set_view(rows, columns)
        self.row_roles.assign(slots.role[:rows])  # a graph repeats this too, and reads the roles in place
        hidden = self.model.backbone(
            input_ids=slots.token[:rows, None],
            attention_mask=self._attention_mask(position, columns),
            position_ids=position[:, None],
            past_key_values=slots.cache,
            use_cache=True,
        ).last_hidden_state
        return lm_logits(self.model.causal, hidden[:, -1]).float()

    def is_stop(self, token: Tensor) -> Tensor:
        """Whether each token (n,) ends a response."""
        return (token[:, None] == self._stops).any(dim=1)

    def _attention_mask(self, position: Tensor, columns: int) -> Tensor:
        """(rows, 1, 1, columns), added to the scores: each row sees its columns up to the token that it reads.

        From a bool mask PyTorch's attention would make this again in each layer.
        """
        hidden, dtype = (self._columns[:columns] > position[:, None])[:, None, None], self.model.causal.dtype
        return torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min)
