"""One token for every slot of a static cache: the same step run eagerly, or on a GPU replayed as a CUDA graph."""

import functools
import logging

import torch
from torch import Tensor

from lora_rlhf.model.drawing import Cast, Drawing, draw
from lora_rlhf.model.heads import lm_logits
from lora_rlhf.model.kv_cache import SlotCache
from lora_rlhf.model.shared import SharedModel

log = logging.getLogger("lora_rlhf")


class Slots:
    """What is under way: in each slot a response, its cache, and the tokens drawn so far. All written in place.

    role (S,): the place of the response's role, see `Cast`. token, position (S,): the token to read next and where it
    stands. count (S,): tokens drawn. running (S,): False once a stop token or the limit was reached, and in slots that
    hold nothing: these compute on, but their position and count stay. uniforms, drawn (S, limit + 1): each response's
    randomness and tokens, with a column to spare for them.
    """

    def __init__(self, slots: int, num_layers: int, width: int, limit: int, device: torch.device) -> None:
        self.role = torch.zeros(slots, dtype=torch.long, device=device)
        self.token = torch.zeros(slots, dtype=torch.long, device=device)
        self.position = torch.zeros(slots, dtype=torch.long, device=device)
        self.count = torch.zeros(slots, dtype=torch.long, device=device)
        self.running = torch.zeros(slots, dtype=torch.bool, device=device)
        self.uniforms = torch.zeros((slots, limit + 1), dtype=torch.float64, device=device)
        self.drawn = torch.zeros((slots, limit + 1), dtype=torch.long, device=device)
        self.cache = SlotCache(num_layers, width, self.position)

    def begin(self, slots: Tensor, role: Tensor, token: Tensor, length: Tensor, uniforms: Tensor, more: Tensor) -> None:
        """Start responses in slots (n,): roles, first tokens, prompt lengths, if `more` is to come (n,); uniforms."""
        self.role[slots] = role
        self.token[slots], self.position[slots], self.running[slots] = token, length, more
        self.count[slots] = 1
        self.uniforms[slots, :-1] = uniforms
        self.drawn[slots, 0] = token

    def move(self, sources: Tensor, targets: Tensor, columns: int) -> None:
        """Copy some slots (n,) with the first columns of their cache to others (n,); the sources run no more."""
        for state in (self.role, self.token, self.position, self.count, self.running, self.uniforms, self.drawn):
            state[targets] = state[sources]
        self.running[sources] = False
        self.cache.move(sources, targets, columns)


class Step:
    """Reads each slot's token, draws the next one and notes it.

    With `graphs`, each size that comes twice is captured as a CUDA graph: the first time runs eagerly, which also warms
    the kernels up. The graphs live as long as this object, so that no change of role, adapter or slots can make one
    stale; weights that change in place would not. Where capture fails, all goes on eagerly.
    """

    def __init__(self, model: SharedModel, slots: Slots, drawing: Drawing, cast: Cast, graphs: bool) -> None:
        self.model, self.slots, self.drawing, self.cast, self.graphs = model, slots, drawing, cast, graphs
        self._column = torch.arange(slots.cache.view.width, device=model.device)
        self._stops = torch.tensor(drawing.stop_ids, dtype=torch.long, device=model.device)
        self._additive = model.config._attn_implementation == "eager"  # which adds its mask to the scores
        self._captured: dict[tuple[int, int], torch.cuda.CUDAGraph | None] = {}
        self._pool = torch.cuda.graph_pool_handle() if graphs else None

    def __call__(self, rows: int, columns: int) -> None:
        """One step of the first `rows` slots, none of which has a token at or beyond `columns`."""
        size = (rows, columns)
        if self.graphs and size in self._captured and self._captured[size] is None:
            self._captured[size] = self._capture(rows, columns)
        graph = self._captured.setdefault(size, None)
        if graph is None:
            self._run(rows, columns)
        else:
            graph.replay()

    def _capture(self, rows: int, columns: int) -> torch.cuda.CUDAGraph | None:
        try:
            graph = torch.cuda.CUDAGraph()
            # thread_local: what other threads do, such as NCCL's watchdog, must not spoil the capture
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._run(rows, columns)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.graphs = False
            _say_eager(type(self.model.causal).__name__, str(error).strip().split("\n")[0])
            return None
        return graph

    def _run(self, rows: int, columns: int) -> None:
        slots, drawing = self.slots, self.drawing
        position, count, running = (state[:rows] for state in (slots.position, slots.count, slots.running))
        numbers = slots.uniforms[:rows].gather(1, count[:, None])[:, 0]
        token = draw(self.logits(rows, columns), drawing.temperature, numbers)
        slots.token[:rows] = token
        slots.drawn[:rows].scatter_(1, count[:, None], token[:, None])
        position += running
        count += running
        running &= ~self.stops(token) & (count < drawing.max_new_tokens)

    def logits(self, rows: int, columns: int) -> Tensor:
        """Read the tokens of the first `rows` slots into the cache: float32 logits (rows, V) of the ones after them."""
        slots = self.slots
        position = slots.position[:rows]
        slots.cache.look_at(rows, columns)
        self.cast.assign(slots.role[:rows])  # a graph holds this too, and reads the roles where they stand
        hidden = self.model.backbone(
            input_ids=slots.token[:rows, None],
            attention_mask=self._mask(position, columns),
            position_ids=position[:, None],
            past_key_values=slots.cache,
            use_cache=True,
        ).last_hidden_state
        return lm_logits(self.model.causal, hidden[:, -1]).float()

    def stops(self, token: Tensor) -> Tensor:
        """Which tokens (n,) end a response."""
        return (token[:, None] == self._stops).any(dim=1)

    def _mask(self, position: Tensor, columns: int) -> Tensor:
        """(rows, 1, 1, columns): each row sees its columns up to the token that it reads."""
        visible = (self._column[:columns] <= position[:, None])[:, None, None]
        if not self._additive:
            return visible
        dtype = self.model.causal.dtype
        return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)


@functools.cache
def _say_eager(model: str, reason: str) -> None:
    """Once for each model, since every rollout tries again."""
    log.warning("%s: its decoding step cannot be captured as a CUDA graph, so it runs step by step (%s)", model, reason)
