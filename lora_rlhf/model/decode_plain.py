"""The plain engine: one batch after the other, over a cache that grows by a token a step. It runs every model."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache

from lora_rlhf.model.drawing import Drawing, Response, RowRoles, draw, uniforms
from lora_rlhf.model.forward import position_ids
from lora_rlhf.model.heads import lm_logits
from lora_rlhf.model.shared import SharedModel

COMPACT_AT = 0.85  # drop finished rows when at most this share still runs: dropping copies the cache once


def generate_plain(
    model: SharedModel,
    prompts: list[list[int]],
    seeds: list[list[int]],
    drawing: Drawing,
    row_roles: RowRoles,
    batch_size: int,
    on_tokens: Callable[[int], None],
) -> list[list[Response]]:
    """A response of each prompt for each of its seeds, in order, at most `batch_size` at a time.

    `on_tokens` is called after every step with the number of tokens that it drew.
    """
    num_samples = len(seeds[0]) if seeds else 1
    results: list[list[Response]] = [[] for _ in prompts]
    # Longest first: batches of like lengths pad little, and memory that does not suffice shows at once.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    rounds = [min(batch_size, num_samples - done) for done in range(0, num_samples, batch_size)]
    step = max(1, batch_size // rounds[0])
    for first in range(0, len(order), step):
        indices = order[first : first + step]
        batch_roles = RowRoles([row_roles.indices[i] for i in indices], row_roles.mixture)
        for samples in rounds:
            batch_seeds = [seeds[i][len(results[i]) : len(results[i]) + samples] for i in indices]
            batch = Batch(model, [prompts[i] for i in indices], batch_seeds, drawing, batch_roles)
            while not batch.done:
                on_tokens(batch.step())
            responses = batch.responses()
            for row, i in enumerate(indices):
                results[i] += responses[row * samples : (row + 1) * samples]
    return results


class Batch:
    """Responses that are drawn together: each prompt is read once, then each step gives a token to all that still run.

    tokens (N, limit) and length (N,): what each of the N responses has so far. The length of a response that still
    runs is the limit.
    """

    def __init__(
        self,
        model: SharedModel,
        prompts: list[list[int]],
        seeds: list[list[int]],
        drawing: Drawing,
        row_roles: RowRoles,
    ) -> None:
        self.model, self.drawing, self.row_roles, self.samples = model, drawing, row_roles, len(seeds[0])
        total, limit, device = len(prompts) * self.samples, drawing.max_new_tokens, model.device
        self.tokens = torch.zeros((total, limit), dtype=torch.long, device=device)
        self.length = torch.full((total,), limit, device=device)
        self.finished = torch.zeros(total, dtype=torch.bool, device=device)
        self.steps = 0  # made so far
        self.num_running = total
        flat_seeds = [seed for prompt_seeds in seeds for seed in prompt_seeds]
        self._uniforms = torch.stack([uniforms(seed, limit) for seed in flat_seeds], dim=1).to(device)
        self._stops = torch.tensor(drawing.stop_ids, device=device)
        self._cache = DynamicCache(config=model.config)
        # Of each row that is still in the cache: the number of its response, whether it runs, and its role.
        self._response = torch.arange(total, device=device)
        self._running = torch.ones(total, dtype=torch.bool, device=device)
        self._role = torch.tensor(row_roles.indices, device=device).repeat_interleave(self.samples)
        # The tokens that each row sees, and their positions (n, T). Before the first step these are the prompts'.
        self._ids, self._mask = _pad_left(prompts, device)
        self._position = position_ids(self._mask)

    @property
    def done(self) -> bool:
        """Whether every response has ended."""
        return self.num_running == 0 or self.steps == self.drawing.max_new_tokens

    def step(self) -> int:
        """Draw a token for every row, and return how many rows there were."""
        logits = self._next_logits() if self.steps else self._read_prompts()
        latest = draw(logits, self.drawing.temperature, self._uniforms[self.steps, self._response])
        self.tokens[self._response, self.steps] = latest
        self.steps += 1
        stopped = self._running & torch.isin(latest, self._stops)
        self.length[self._response[stopped]] = self.steps
        self.finished[self._response[stopped]] = True
        self._running &= ~stopped
        self.num_running = int(self._running.sum())
        return len(latest)

    def responses(self) -> list[Response]:
        """The responses, sample by sample of each prompt in turn."""
        rows = zip(self.tokens.tolist(), self.length.tolist(), self.finished.tolist(), strict=True)
        return [Response(tokens[:length], finished) for tokens, length, finished in rows]

    def _read_prompts(self) -> Tensor:
        """Logits (N, V) of every response's first token."""
        logits = self._logits(self._ids, self._role[:: self.samples]).repeat_interleave(self.samples, dim=0)
        if self.samples > 1:
            rows = torch.arange(len(self._mask), device=logits.device)
            self._cache.reorder_cache(rows.repeat_interleave(self.samples))
        self._mask = self._mask.repeat_interleave(self.samples, dim=0)
        self._position = self._position[:, -1:].repeat_interleave(self.samples, dim=0)
        return logits

    def _next_logits(self) -> Tensor:
        """Logits (n, V) of the next token of the rows, after dropping the finished ones if they are many."""
        if self.num_running <= COMPACT_AT * len(self._response):
            rows = self._running.nonzero().squeeze(1)
            self._cache.reorder_cache(rows)  # linear attention and convolutions have no other way to select rows
            self._response, self._running, self._role = self._response[rows], self._running[rows], self._role[rows]
            self._mask, self._position = self._mask[rows], self._position[rows]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._response), 1)], dim=1)
        self._position = self._position + 1
        return self._logits(self.tokens[self._response, self.steps - 1].unsqueeze(1), self._role)

    def _logits(self, ids: Tensor, role: Tensor) -> Tensor:
        """Read ids (n, T) into the cache. Float32 logits (n, V), of the token after the last one only."""
        self.row_roles.assign(role)
        hidden = self.model.backbone(
            input_ids=ids,
            attention_mask=self._mask.long(),
            position_ids=self._position,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return lm_logits(self.model.causal, hidden[:, -1]).float()


def _pad_left(prompts: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return ids, torch.arange(width, device=device) >= width - lengths.unsqueeze(1)
