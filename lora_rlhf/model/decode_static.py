"""The static engine: fixed slots over a cache written in place; a slot that becomes free takes the next response."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from lora_rlhf.model.decode_step import Slots, Step
from lora_rlhf.model.drawing import Cast, Drawing, GeneratedResponse, draw, uniforms
from lora_rlhf.model.heads import lm_logits
from lora_rlhf.model.shared import SharedModel

# Free slots wait until they are this share of all: reading prompts costs about as much as a step of all slots, so that
# with responses of L tokens the share that costs least is near sqrt(2 / L), a quarter for L = 32.
REFILL_AT = 0.25
READ_TOKENS = 4096  # of prompts, padding included, that are read at a time: enough to keep a GPU busy
COLUMNS = 16  # attention covers whole multiples of so many columns
GRAPH_COLUMNS = 64  # and of so many, or a quarter of the width, where each multiple costs a graph
LOOK_EVERY = 4  # steps on a GPU between two looks at who has finished, each of which waits for the GPU


def generate_static(
    model: SharedModel,
    prompts: list[list[int]],
    seeds: list[list[int]],
    drawing: Drawing,
    cast: Cast,
    batch_size: int,
    drawn: Callable[[int], None],
) -> list[list[GeneratedResponse]]:
    """A response of each prompt for each of its seeds, in order, in `batch_size` slots.

    Each prompt is read once, whatever its samples. `drawn` is told every few steps how many tokens they gave. For
    models that `engines.static_fault` finds nothing wrong with.
    """
    return _Run(model, prompts, seeds, drawing, cast, batch_size, drawn).run() if prompts else []


@dataclass
class _Read:
    """Prompts that were read together, and the samples of them that no slot has taken yet."""

    cache: DynamicCache
    logits: Tensor  # (n, V) of the first token of each
    prompts: list[int]
    waiting: deque[tuple[int, int]]  # (row, sample)


class _Run:
    """One call of the engine: what waits, what is read, and which response each slot holds."""

    def __init__(
        self,
        model: SharedModel,
        prompts: list[list[int]],
        seeds: list[list[int]],
        drawing: Drawing,
        cast: Cast,
        batch_size: int,
        drawn: Callable[[int], None],
    ) -> None:
        self.model, self.prompts, self.seeds, self.drawing, self.tell = model, prompts, seeds, drawing, drawn
        self.cast, self.samples = cast, len(seeds[0])
        # Longest first: prompts of like lengths pad little, and memory that does not suffice shows at once.
        self.waiting = deque(sorted(range(len(prompts)), key=lambda i: -len(prompts[i])))
        self.read: _Read | None = None
        self.results: list[dict[int, GeneratedResponse]] = [{} for _ in prompts]

        count = min(batch_size, len(prompts) * self.samples)
        self.width = _multiple(max(map(len, prompts)) + drawing.max_new_tokens, 16)
        layers = len(DynamicCache(config=model.config).layers)
        self.slots = Slots(count, layers, self.width, drawing.max_new_tokens, model.device)
        self.held: list[tuple[int, int] | None] = [None] * count  # (prompt, sample)
        self.ahead = [0] * count  # an upper bound of each slot's position, known without waiting for the GPU
        self.untold = 0  # tokens
        self.step = Step(model, self.slots, drawing, cast, graphs=model.device.type == "cuda")

    def run(self) -> list[list[GeneratedResponse]]:
        while True:
            self._collect()
            while self._fill():
                self._collect()  # the first token may have been the last
            if not any(self.held):
                return [[found[sample] for sample in range(self.samples)] for found in self.results]
            self._advance()

    @property
    def _left(self) -> int:
        """Responses that no slot has taken yet."""
        return len(self.waiting) * self.samples + (len(self.read.waiting) if self.read else 0)

    def _fill(self) -> bool:
        """Start waiting responses, if enough slots are free to make it worth while; whether any was started."""
        free = [slot for slot, held in enumerate(self.held) if held is None]
        if not self._left or len(free) < min(self._left, math.ceil(REFILL_AT * len(self.held))):
            return False
        while free and self._left:
            read = self.read or self._read_prompts(len(free))
            taken = [read.waiting.popleft() for _ in range(min(len(free), len(read.waiting)))]
            self._begin(read, taken, free[: len(taken)])
            self.read, free = (read if read.waiting else None), free[len(taken) :]
        return True

    def _read_prompts(self, responses: int) -> _Read:
        """Read the next prompts, about as many as the responses that can start. Padding on the right is not seen."""
        longest = len(self.prompts[self.waiting[0]])
        count = min(math.ceil(responses / self.samples), max(1, READ_TOKENS // longest), len(self.waiting))
        chosen = [self.waiting.popleft() for _ in range(count)]
        device, cache = self.model.device, DynamicCache(config=self.model.config)
        self.cast.assign(torch.tensor([self.cast.places[i] for i in chosen], device=device))
        padded = [self.prompts[i] + [0] * (longest - len(self.prompts[i])) for i in chosen]
        hidden = self.model.backbone(
            input_ids=torch.tensor(padded, device=device),
            position_ids=torch.arange(longest, device=device).expand(count, longest),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        last = torch.tensor([len(self.prompts[i]) - 1 for i in chosen], device=device)
        logits = lm_logits(self.model.causal, hidden[torch.arange(count, device=device), last]).float()
        waiting = deque((row, sample) for row in range(count) for sample in range(self.samples))
        return _Read(cache, logits, chosen, waiting)

    def _begin(self, read: _Read, taken: list[tuple[int, int]], free: list[int]) -> None:
        """Draw the first tokens of `taken` (rows and samples of what was read), and put them into free slots."""
        device, limit = self.model.device, self.drawing.max_new_tokens
        rows, slots = (torch.tensor(places, device=device) for places in ([row for row, _ in taken], free))
        responses = [(read.prompts[row], sample) for row, sample in taken]
        lengths = [len(self.prompts[prompt]) for prompt, _ in responses]
        numbers = torch.stack([uniforms(self.seeds[prompt][sample], limit) for prompt, sample in responses]).to(device)
        roles = torch.tensor([self.cast.places[prompt] for prompt, _ in responses], device=device)
        token = draw(read.logits[rows], self.drawing.temperature, numbers[:, 0])
        more = ~self.step.stops(token) if limit > 1 else torch.zeros_like(token, dtype=torch.bool)
        self.slots.begin(slots, roles, token, torch.tensor(lengths, device=device), numbers, more)
        self.slots.cache.place(read.cache, rows, slots)
        for slot, response, length in zip(free, responses, lengths, strict=True):
            self.held[slot], self.ahead[slot] = response, length
        self.untold += len(taken)

    def _advance(self) -> None:
        """A step, or with graphs a few; without them only of slots that hold something."""
        if not self.step.graphs:
            self._close_ranks()
        steps, rows = (LOOK_EVERY, len(self.held)) if self.step.graphs else (1, sum(map(bool, self.held)))
        busy = [slot for slot, held in enumerate(self.held) if held is not None]
        for _ in range(steps):
            self.step(rows, self._columns(max(self.ahead[slot] for slot in busy) + 1))
            for slot in busy:
                self.ahead[slot] += 1
        self.untold += steps * len(busy)

    def _columns(self, needed: int) -> int:
        unit = max(GRAPH_COLUMNS, _multiple(self.width // 4, 64)) if self.step.graphs else COLUMNS
        return min(self.width, _multiple(needed, unit))

    def _close_ranks(self) -> None:
        """Move the last responses into free slots before them, so that the first slots are all busy."""
        count = sum(map(bool, self.held))
        targets = [slot for slot in range(count) if self.held[slot] is None]
        sources = [slot for slot in range(count, len(self.held)) if self.held[slot] is not None]
        if not sources:
            return
        come, go = (torch.tensor(slots, device=self.model.device) for slots in (sources, targets))
        self.slots.move(come, go, max(self.ahead[slot] for slot in sources))
        for source, target in zip(sources, targets, strict=True):
            self.held[target], self.ahead[target] = self.held[source], self.ahead[source]
            self.held[source] = None

    def _collect(self) -> None:
        """Take the responses that have ended out of their slots."""
        running = self.slots.running.tolist()  # waits for the GPU
        if self.untold:
            self.tell(self.untold)
            self.untold = 0
        ended = [slot for slot, held in enumerate(self.held) if held is not None and not running[slot]]
        if not ended:
            return
        places = torch.tensor(ended, device=self.model.device)
        tokens, counts = self.slots.drawn[places].tolist(), self.slots.count[places].tolist()
        for slot, row, count in zip(ended, tokens, counts, strict=True):
            prompt, sample = self.held[slot] or (0, 0)
            ids = row[:count]
            self.results[prompt][sample] = GeneratedResponse(ids, ids[-1] in self.drawing.stop_ids)
            self.held[slot] = None


def _multiple(number: int, of: int) -> int:
    """The number, rounded up to a multiple."""
    return -(-number // of) * of
