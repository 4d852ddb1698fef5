"""The static engine: fixed slots over a cache written in place. A slot that becomes free takes the next response."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from lora_rlhf.model.decode_step import Kept, Slots, Step, make_capture
from lora_rlhf.model.drawing import Drawing, Response, RowRoles, draw_tokens, draw_uniforms
from lora_rlhf.model.heads import lm_logits
from lora_rlhf.model.shared import SharedModel

# Free slots are refilled once they are this share of all. Reading prompts costs about as much as a step of all slots,
# so that with responses of L tokens the share that costs least is near sqrt(2 / L), a quarter for L = 32.
REFILL_SHARE = 0.25
PREFILL_TOKENS = 4096  # of prompts, padding included, that are read at a time: enough to keep a GPU busy
COLUMN_UNIT = 16  # attention covers a multiple of this many columns
GRAPH_COLUMN_UNIT = 64  # with CUDA graphs, of this many or of a quarter of the width: each multiple costs a graph
STEPS_PER_LOOK = 4  # steps with CUDA graphs between two looks at which slots have finished: each look waits for the GPU


def generate_static(
    model: SharedModel,
    prompts: list[list[int]],
    seeds: list[list[int]],
    drawing: Drawing,
    row_roles: RowRoles,
    batch_size: int,
    on_tokens: Callable[[int], None],
    kept: Kept | None = None,
) -> list[list[Response]]:
    """A response to each prompt for each of its seeds, in order, in `batch_size` slots.

    Each prompt is read once, for all its samples. `on_tokens` is called every few steps with the number of tokens that
    they drew. Only for models in which `engines.find_static_fault` finds no fault. With `kept`, this goes on with the
    slots and captured steps of the last call where they serve, and leaves its own there; an error leaves none.
    """
    if not prompts:
        return []
    step = None
    if kept is not None:
        step, kept.step = kept.step, None
    run = _Run(model, prompts, seeds, drawing, row_roles, batch_size, on_tokens, step)
    del step
    responses = run.run()
    if kept is not None and run.step.is_capturing:
        kept.step = run.step
    return responses


@dataclass
class _PrefilledPrompts:
    """Prompts that were read together, and their samples that are not in a slot yet."""

    cache: DynamicCache
    logits: Tensor  # (n, V) of the first token of each
    prompts: list[int]
    samples_left: deque[tuple[int, int]]  # (row, sample)


class _Run:
    """One call of the engine: the prompts that were not read yet, those that were, and the response in each slot."""

    def __init__(
        self,
        model: SharedModel,
        prompts: list[list[int]],
        seeds: list[list[int]],
        drawing: Drawing,
        row_roles: RowRoles,
        batch_size: int,
        on_tokens: Callable[[int], None],
        step: Step | None,
    ) -> None:
        self.model, self.prompts, self.seeds, self.drawing = model, prompts, seeds, drawing
        self.row_roles, self.num_samples, self.on_tokens = row_roles, len(seeds[0]), on_tokens
        # Longest first: prompts of like lengths pad little, and memory that does not suffice shows at once.
        self.prompts_left = deque(sorted(range(len(prompts)), key=lambda i: -len(prompts[i])))
        self.prefilled_prompts: _PrefilledPrompts | None = None  # with samples that still wait for a slot
        self.results: list[dict[int, Response]] = [{} for _ in prompts]

        count = min(batch_size, len(prompts) * self.num_samples)
        width = _round_up(max(map(len, prompts)) + drawing.max_new_tokens, 16)
        if step is None or not step.serves(drawing, row_roles, count, batch_size, width):
            layers = len(DynamicCache(config=model.config).layers)
            slots = Slots(count, layers, width, drawing.max_new_tokens, model.device)
            step = Step(model, slots, drawing, row_roles, make_capture(model))
        self.step, self.slots, self.width = step, step.slots, step.slots.width
        # (prompt, sample) in each slot; None: it is free
        self.occupants: list[tuple[int, int] | None] = [None] * self.slots.num_slots
        # an upper bound of each slot's position, known without waiting for the GPU
        self.last_columns = [0] * self.slots.num_slots
        self.unreported_tokens = 0

    def run(self) -> list[list[Response]]:
        """Fills slots, steps, and collects responses until all have ended; returns them in the prompts' order."""
        while True:
            self._collect_finished()
            while self._fill_free_slots():
                self._collect_finished()  # the first token may have been the last
            if not any(self.occupants):
                return [[by_sample[sample] for sample in range(self.num_samples)] for by_sample in self.results]
            self._advance()

    @property
    def _num_left(self) -> int:
        """The number of responses that are not in a slot yet."""
        return len(self.prompts_left) * self.num_samples + (
            len(self.prefilled_prompts.samples_left) if self.prefilled_prompts else 0
        )

    def _fill_free_slots(self) -> bool:
        """Starts responses if enough slots are free to be worth it. Returns whether any was started."""
        free_slots = [slot for slot, occupant in enumerate(self.occupants) if occupant is None]
        if not self._num_left or len(free_slots) < min(self._num_left, math.ceil(REFILL_SHARE * len(self.occupants))):
            return False
        while free_slots and self._num_left:
            prefilled = self.prefilled_prompts or self._prefill_next(len(free_slots))
            count = min(len(free_slots), len(prefilled.samples_left))
            self._start_responses(
                prefilled, [prefilled.samples_left.popleft() for _ in range(count)], free_slots[:count]
            )
            self.prefilled_prompts, free_slots = (prefilled if prefilled.samples_left else None), free_slots[count:]
        return True

    def _prefill_next(self, num_responses: int) -> _PrefilledPrompts:
        """Reads the next prompts, for about `num_responses` responses; padded on the right, which no token sees."""
        longest = len(self.prompts[self.prompts_left[0]])
        count = min(
            math.ceil(num_responses / self.num_samples), max(1, PREFILL_TOKENS // longest), len(self.prompts_left)
        )
        indices = [self.prompts_left.popleft() for _ in range(count)]
        device, cache = self.model.device, DynamicCache(config=self.model.config)
        self.row_roles.assign(torch.tensor([self.row_roles.indices[i] for i in indices], device=device))
        padded = [self.prompts[i] + [0] * (longest - len(self.prompts[i])) for i in indices]
        hidden = self.model.backbone(
            input_ids=torch.tensor(padded, device=device),
            position_ids=torch.arange(longest, device=device).expand(count, longest),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        last_indices = torch.tensor([len(self.prompts[i]) - 1 for i in indices], device=device)
        logits = lm_logits(self.model.causal, hidden[torch.arange(count, device=device), last_indices]).float()
        samples_left = deque((row, sample) for row in range(count) for sample in range(self.num_samples))
        return _PrefilledPrompts(cache, logits, indices, samples_left)

    def _start_responses(self, prefilled: _PrefilledPrompts, samples: list[tuple[int, int]], free: list[int]) -> None:
        """Draws the first tokens of `samples`, each (row of `prefilled`, number of sample), and fills free slots."""
        device, limit = self.model.device, self.drawing.max_new_tokens
        rows = torch.tensor([row for row, _ in samples], device=device)
        slots = torch.tensor(free, device=device)
        responses = [(prefilled.prompts[row], sample) for row, sample in samples]
        lengths = [len(self.prompts[prompt]) for prompt, _ in responses]
        numbers = torch.stack([draw_uniforms(self.seeds[prompt][sample], limit) for prompt, sample in responses]).to(
            device
        )
        roles = torch.tensor([self.row_roles.indices[prompt] for prompt, _ in responses], device=device)
        token, logprob = draw_tokens(prefilled.logits[rows], self.drawing.temperature, numbers[:, 0])
        is_running = ~self.step.is_stop(token) if limit > 1 else torch.zeros_like(token, dtype=torch.bool)
        self.slots.start(slots, roles, token, torch.tensor(lengths, device=device), numbers, is_running, logprob)
        self.slots.cache.copy_prompts(prefilled.cache, rows, slots)
        for slot, response, length in zip(free, responses, lengths, strict=True):
            self.occupants[slot], self.last_columns[slot] = response, length
        self.unreported_tokens += len(samples)

    def _advance(self) -> None:
        """With graphs, a few steps of all slots. Without, one step of those that are busy."""
        if not self.step.is_capturing:
            self._move_to_first_slots()
        busy = [slot for slot, occupant in enumerate(self.occupants) if occupant is not None]
        steps, rows = (STEPS_PER_LOOK, len(self.occupants)) if self.step.is_capturing else (1, len(busy))
        if max(self.last_columns[slot] for slot in busy) > self.width + STEPS_PER_LOOK:
            raise RuntimeError("decoding steps do not move the responses on: a captured CUDA graph is empty")
        for _ in range(steps):
            self.step(rows, self._num_columns(max(self.last_columns[slot] for slot in busy) + 1))
            for slot in busy:
                self.last_columns[slot] += 1
        self.unreported_tokens += steps * len(busy)

    def _num_columns(self, needed: int) -> int:
        """The number of columns for a step that needs `needed` of them: a multiple of the unit."""
        unit = max(GRAPH_COLUMN_UNIT, _round_up(self.width // 4, 64)) if self.step.is_capturing else COLUMN_UNIT
        return min(self.width, _round_up(needed, unit))

    def _move_to_first_slots(self) -> None:
        """Moves the last responses into free slots before them, so that the first slots are all in use."""
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

    def _collect_finished(self) -> None:
        """Takes the responses that have ended out of their slots."""
        running = self.slots.running.tolist()  # waits for the GPU
        if self.unreported_tokens:
            self.on_tokens(self.unreported_tokens)
            self.unreported_tokens = 0
        ended = {slot: occupant for slot, occupant in enumerate(self.occupants) if occupant and not running[slot]}
        if not ended:
            return
        slots = torch.tensor(list(ended), device=self.model.device)
        states = (self.slots.drawn, self.slots.logprobs, self.slots.count)
        columns = (state[slots].tolist() for state in states)
        for (slot, (prompt, sample)), tokens, logprobs, count in zip(ended.items(), *columns, strict=True):
            ids, finished = tokens[:count], tokens[count - 1] in self.drawing.stop_ids
            self.results[prompt][sample] = Response(ids, finished, logprobs=logprobs[:count])
            self.occupants[slot] = None


def _round_up(number: int, unit: int) -> int:
    """The number, rounded up to a multiple of the unit."""
    return -(-number // unit) * unit
