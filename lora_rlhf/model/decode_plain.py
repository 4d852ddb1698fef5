"""The plain engine: one batch after the other, over a cache that grows by a token a step. It runs every model."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache

from lora_rlhf.model.drawing import Drawing, Response, RowRoles, draw_tokens, draw_uniforms
from lora_rlhf.model.forward import position_ids
from lora_rlhf.model.heads import lm_logits
from lora_rlhf.model.shared import SharedModel

COMPACT_SHARE = 0.85  # finished rows are dropped if at most this share still runs: each drop copies the cache


def generate_plain(
    model: SharedModel,
    prompts: list[list[int]],
    seeds: list[list[int]],
    drawing: Drawing,
    row_roles: RowRoles,
    batch_size: int,
    on_tokens: Callable[[int], None],
) -> list[list[Response]]:
    """A response to each prompt for each of its seeds, in order, at most `batch_size` at a time.

    `on_tokens` is called after every step with the number of tokens that it drew.
    """
    num_samples = len(seeds[0]) if seeds else 1
    results: list[list[Response]] = [[] for _ in prompts]
    # Longest first: batches of similar lengths need little padding, and too little memory fails at once.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    samples_per_round = [min(batch_size, num_samples - num_done) for num_done in range(0, num_samples, batch_size)]
    prompts_per_batch = max(1, batch_size // samples_per_round[0])
    for start in range(0, len(order), prompts_per_batch):
        indices = order[start : start + prompts_per_batch]
        batch_roles = RowRoles([row_roles.indices[i] for i in indices], row_roles.mixture)
        for batch_samples in samples_per_round:
            batch_seeds = [seeds[i][len(results[i]) : len(results[i]) + batch_samples] for i in indices]
            batch = Batch(model, [prompts[i] for i in indices], batch_seeds, drawing, batch_roles)
            while not batch.is_done:
                on_tokens(batch.step())
            responses = batch.responses()
            for row, i in enumerate(indices):
                results[i] += responses[row * batch_samples : (row + 1) * batch_samples]
    return results


class Batch:
    """Responses that are drawn together: each prompt is read once, then each step draws a token per running response.

    tokens, logprobs (N, limit) and length (N,): the tokens of each of the N responses so far. The length of a running
    response is the limit.
    """

    def __init__(
        self,
        model: SharedModel,
        prompts: list[list[int]],
        seeds: list[list[int]],
        drawing: Drawing,
        row_roles: RowRoles,
    ) -> None:
        self.model, self.drawing, self.row_roles, self.num_samples = model, drawing, row_roles, len(seeds[0])
        num_responses, limit, device = len(prompts) * self.num_samples, drawing.max_new_tokens, model.device
        self.tokens = torch.zeros((num_responses, limit), dtype=torch.long, device=device)
        self.logprobs = torch.zeros((num_responses, limit), device=device)
        self.length = torch.full((num_responses,), limit, device=device)
        self.finished = torch.zeros(num_responses, dtype=torch.bool, device=device)
        self.steps = 0  # number of steps so far
        self.num_running = num_responses
        flat_seeds = [seed for prompt_seeds in seeds for seed in prompt_seeds]
        self._uniforms = torch.stack([draw_uniforms(seed, limit) for seed in flat_seeds], dim=1).to(device)
        self._stops = torch.tensor(drawing.stop_ids, device=device)
        self._cache = DynamicCache(config=model.config)
        # For each row in the cache: the index of its response, whether it runs, and its role.
        self._response = torch.arange(num_responses, device=device)
        self._running = torch.ones(num_responses, dtype=torch.bool, device=device)
        self._role = torch.tensor(row_roles.indices, device=device).repeat_interleave(self.num_samples)
        # The tokens that each row sees, and their positions (n, T). Before the first step these are the prompts'.
        self._ids, self._mask = _pad_prompts(prompts, device)
        self._position = position_ids(self._mask)

    @property
    def is_done(self) -> bool:
        """Whether every response has ended."""
        return self.num_running == 0 or self.steps == self.drawing.max_new_tokens

    def step(self) -> int:
        """Draws a token for every row in the cache; returns the number of these rows."""
        logits = self._next_logits() if self.steps else self._prefill_prompts()
        uniforms = self._uniforms[self.steps, self._response]
        new_tokens, new_logprobs = draw_tokens(logits, self.drawing.temperature, uniforms, self.drawing.top_p)
        self.tokens[self._response, self.steps] = new_tokens
        self.logprobs[self._response, self.steps] = new_logprobs
        self.steps += 1
        stopped = self._running & torch.isin(new_tokens, self._stops)
        self.length[self._response[stopped]] = self.steps
        self.finished[self._response[stopped]] = True
        self._running &= ~stopped
        self.num_running = int(self._running.sum())
        return len(new_tokens)

    def responses(self) -> list[Response]:
        """The responses in the order of the prompts, all samples of a prompt in a row."""
        columns = (self.tokens, self.length, self.finished, self.logprobs)
        return [
            Response(tokens[:length], finished, logprobs=logprobs[:length])
            for tokens, length, finished, logprobs in zip(*(column.tolist() for column in columns), strict=True)
        ]

    def _prefill_prompts(self) -> Tensor:
        """Reads the prompts into the cache. Logits (N, V) of every response's first token."""
        logits = self._read_ids(self._ids, self._role[:: self.num_samples]).repeat_interleave(self.num_samples, dim=0)
        if self.num_samples > 1:
            rows = torch.arange(len(self._mask), device=logits.device)
            self._cache.reorder_cache(rows.repeat_interleave(self.num_samples))
        self._mask = self._mask.repeat_interleave(self.num_samples, dim=0)
        self._position = self._position[:, -1:].repeat_interleave(self.num_samples, dim=0)
        return logits

    def _next_logits(self) -> Tensor:
        """Logits (n, V) of the next token of the rows, after dropping finished ones if they are many."""
        if self.num_running <= COMPACT_SHARE * len(self._response):
            running_rows = self._running.nonzero().squeeze(1)
            # the only way to select rows that linear attention and convolutions have
            self._cache.reorder_cache(running_rows)
            self._response, self._running = self._response[running_rows], self._running[running_rows]
            self._role, self._mask = self._role[running_rows], self._mask[running_rows]
            self._position = self._position[running_rows]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._response), 1)], dim=1)
        self._position = self._position + 1
        return self._read_ids(self.tokens[self._response, self.steps - 1].unsqueeze(1), self._role)

    def _read_ids(self, ids: Tensor, role: Tensor) -> Tensor:
        """Reads ids (n, T) into the cache. Float32 logits (n, V) of the token after the last one."""
        self.row_roles.assign(role)
        hidden = self.model.backbone(
            input_ids=ids,
            attention_mask=self._mask.long(),
            position_ids=self._position,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return lm_logits(self.model.causal, hidden[:, -1]).float()


def _pad_prompts(prompts: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Pads prompts on the left: ids (n, T), and a mask that is True on the prompts' tokens."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return ids, torch.arange(width, device=device) >= width - lengths.unsqueeze(1)
