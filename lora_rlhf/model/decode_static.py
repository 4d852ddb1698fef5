"""The static engine: fixed slots over a cache written in place. A slot that becomes free takes the next response."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from lora_rlhf.model.decode_step import Slots, Step, capture_of
from lora_rlhf.model.drawing import Drawing, Response, RowRoles, draw_tokens, draw_uniforms
from lora_rlhf.model.heads import lm_logits
from lora_rlhf.model.shared import SharedModel

# Free slots are refilled once they are this share of all. Reading prompts costs about as much as a step of all slots,
# so that with responses of L tokens the share that costs least is near sqrt(2 / L), a quarter for L = 32.
REFILL_AT = 0.25
READ_TOKENS = 4096  # of prompts, padding included, that are read at a time: enough to keep a GPU busy
COLUMNS = 16  # attention covers a multiple of this many columns
GRAPH_COLUMNS = 64  # with CUDA graphs, of this many or of a quarter of the width: each multiple costs a graph
LOOK_EVERY = 4  # steps with CUDA graphs between two looks at which slots have finished: each look waits for the GPU


def generate_static(
    model: SharedModel,
    prompts: list[list[int]],
    seeds: list[list[int]],
    drawing: Drawing,
    row_roles: RowRoles,
    batch_size: int,
    on_tokens: Callable[[int], None],
) -> list[list[Response]]:
    """A response of each prompt for each of its seeds, in order, in `batch_size` slots.

    Each prompt is read once, however many samples it has. `on_tokens` is called every few steps with the number of
    tokens that they drew. For models in which `engines.find_static_fault` finds no fault.
    """
    return _Run(model, prompts, seeds, drawing, row_roles, batch_size, on_tokens).run() if prompts else []


@dataclass
class _ReadPrompts:
    """Prompts that were read together, and the samples of them that no slot has taken yet."""

    cache: DynamicCache
    logits: Tensor  # (n, V) of the first token of each
    prompts: list[int]
    waiting: deque[tuple[int, int]]  # (row, sample)


class _Run:
    """One call of the engine: the prompts that wait, those that are read, and the response in each slot."""

    def __init__(
        self,
        model: SharedModel,
        prompts: list[list[int]],
        seeds: list[list[int]],
        drawing: Drawing,
        row_roles: RowRoles,
        batch_size: int,
        on_tokens: Callable[[int], None],
    ) -> None:
        self.model, self.prompts, self.seeds, self.drawing = model, prompts, seeds, drawing
        self.row_roles, self.samples, self.on_tokens = row_roles, len(seeds[0]), on_tokens
        # Longest first: prompts of like lengths pad little, and memory that does not suffice shows at once.
        self.waiting = deque(sorted(range(len(prompts)), key=lambda i: -len(prompts[i])))
        self.read_prompts: _ReadPrompts | None = None  # with samples that still wait for a slot
        self.results: list[dict[int, Response]] = [{} for _ in prompts]

        count = min(batch_size, len(prompts) * self.samples)
        self.width = _multiple(max(map(len, prompts)) + drawing.max_new_tokens, 16)
        layers = len(DynamicCache(config=model.config).layers)
        self.slots = Slots(count, layers, self.width, drawing.max_new_tokens, model.device)
        self.occupants: list[tuple[int, int] | None] = [None] * count  # (prompt, sample) in each slot; None: it is free
        self.last_columns = [0] * count  # an upper bound of each slot's position, known without waiting for the GPU
        self.unreported_tokens = 0
        self.step = Step(model, self.slots, drawing, row_roles, capture_of(model))

    def run(self) -> list[list[Response]]:
        while True:
            self._collect()
            while self._fill():
                self._collect()  # the first token may have been the last
            if not any(self.occupants):
                return [[by_sample[sample] for sample in range(self.samples)] for by_sample in self.results]
            self._advance()

    @property
    def _left(self) -> int:
        """Responses that no slot has taken yet."""
        return len(self.waiting) * self.samples + (len(self.read_prompts.waiting) if self.read_prompts else 0)

    def _fill(self) -> bool:
        """Start waiting responses if enough slots are free to make it worth while. Returns whether any was started."""
        free = [slot for slot, occupant in enumerate(self.occupants) if occupant is None]
        if not self._left or len(free) < min(self._left, math.ceil(REFILL_AT * len(self.occupants))):
            return False
        while free and self._left:
            prompts = self.read_prompts or self._read_next(len(free))
            count = min(len(free), len(prompts.waiting))
            self._begin(prompts, [prompts.waiting.popleft() for _ in range(count)], free[:count])
            self.read_prompts, free = (prompts if prompts.waiting else None), free[count:]
        return True

    def _read_next(self, responses: int) -> _ReadPrompts:
        """Read the next prompts, for about this many responses. They are padded on the right, which no token sees."""
        longest = len(self.prompts[self.waiting[0]])
        count = min(math.ceil(responses / self.samples), max(1, READ_TOKENS // longest), len(self.waiting))
        indices = [self.waiting.popleft() for _ in range(count)]
        device, cache = self.model.device, DynamicCache(config=self.model.config)
        self.row_roles.assign(torch.tensor([self.row_roles.indices[i] for i in indices], device=device))
        padded = [self.prompts[i] + [0] * (longest - len(self.prompts[i])) for i in indices]
        hidden = self.model.backbone(
            input_ids=torch.tensor(padded, device=device),
            position_ids=torch.arange(longest, device=device).expand(count, longest),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        last = torch.tensor([len(self.prompts[i]) - 1 for i in indices], device=device)
        logits = lm_logits(self.model.causal, hidden[torch.arange(count, device=device), last]).float()
        waiting = deque((row, sample) for row in range(count) for sample in range(self.samples))
        return _ReadPrompts(cache, logits, indices, waiting)

    def _begin(self, read: _ReadPrompts, samples: list[tuple[int, int]], free: list[int]) -> None:
        """Draw the first tokens of `samples`, each (row of `read`, number of the sample), and fill the free slots."""
        device, limit = self.model.device, self.drawing.max_new_tokens
        rows = torch.tensor([row for row, _ in samples], device=device)
        slots = torch.tensor(free, device=device)
        responses = [(read.prompts[row], sample) for row, sample in samples]
        lengths = [len(self.prompts[prompt]) for prompt, _ in responses]
        numbers = torch.stack([draw_uniforms(self.seeds[prompt][sample], limit) for prompt, sample in responses]).to(
            device
        )
        roles = torch.tensor([self.row_roles.indices[prompt] for prompt, _ in responses], device=device)
        token = draw_tokens(read.logits[rows], self.drawing.temperature, numbers[:, 0])
        more = ~self.step.stops(token) if limit > 1 else torch.zeros_like(token, dtype=torch.bool)
        self.slots.begin(slots, roles, token, torch.tensor(lengths, device=device), numbers, more)
        self.slots.cache.place(read.cache, rows, slots)
        for slot, response, length in zip(free, responses, lengths, strict=True):
            self.occupants[slot], self.last_columns[slot] = response, length
        self.unreported_tokens += len(samples)

    def _advance(self) -> None:
        """With graphs, a few steps of all slots. Without, one step of those that are busy."""
        if not self.step.captures:
            self._close_ranks()
        busy = [slot for slot, occupant in enumerate(self.occupants) if occupant is not None]
        steps, rows = (LOOK_EVERY, len(self.occupants)) if self.step.captures else (1, len(busy))
        if max(self.last_columns[slot] for slot in busy) > self.width + LOOK_EVERY:
            raise RuntimeError("decoding steps do not move the responses on: a captured CUDA graph is empty")
        for _ in range(steps):
            self.step(rows, self._columns(max(self.last_columns[slot] for slot in busy) + 1))
            for slot in busy:
                self.last_columns[slot] += 1
        self.unreported_tokens += steps * len(busy)

    def _columns(self, needed: int) -> int:
        unit = max(GRAPH_COLUMNS, _multiple(self.width // 4, 64)) if self.step.captures else COLUMNS
        return min(self.width, _multiple(needed, unit))

    def _close_ranks(self) -> None:
        """Move the last responses into free slots before them, so that the first slots are all busy."""
        count = sum(map(bool, self.occupants))
        targets = [slot for slot in range(count) if self.occupants[slot] is None]
        sources = [slot for slot in range(count, len(self.occupants)) if self.occupants[slot] is not None]
        if not sources:
            return
        columns, device = max(self.last_columns[slot] for slot in sources), self.model.device
        self.slots.move(torch.tensor(sources, device=device), torch.tensor(targets, device=device), columns)
        for source, target in zip(sources, targets, strict=True):
            self.occupants[target], self.last_columns[target] = self.occupants[source], self.last_columns[source]
            self.occupants[source] = None

    def _collect(self) -> None:
        """Take the responses that have ended out of their slots."""
        running = self.slots.running.tolist()  # waits for the GPU
        if self.unreported_tokens:
            self.on_tokens(self.unreported_tokens)
            self.unreported_tokens = 0
        ended = {slot: occupant for slot, occupant in enumerate(self.occupants) if occupant and not running[slot]}
        if not ended:
            return
        slots = torch.tensor(list(ended), device=self.model.device)
        tokens, counts = self.slots.drawn[slots].tolist(), self.slots.count[slots].tolist()
        for (slot, (prompt, sample)), row, count in zip(ended.items(), tokens, counts, strict=True):
            ids = row[:count]
            self.results[prompt][sample] = Response(ids, ids[-1] in self.drawing.stop_ids)
            self.occupants[slot] = None


def _multiple(number: int, unit: int) -> int:
    """The number, rounded up to a multiple of the unit."""
    return -(-number // unit) * unit
