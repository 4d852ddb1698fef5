"""The plain engine: one batch after the other, over a cache that grows by a token a step. Every model can do this."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from lora_rlhf.model.drawing import Drawing, GeneratedResponse, draw, uniforms
from lora_rlhf.model.forward import position_ids
from lora_rlhf.model.heads import lm_logits
from lora_rlhf.model.shared import SharedModel

COMPACT_AT = 0.85  # drop finished rows when at most this share still runs: dropping copies the cache once


def generate_plain(
    model: SharedModel,
    prompts: list[list[int]],
    seeds: list[list[int]],
    drawing: Drawing,
    batch_size: int,
    drawn: Callable[[int], None],
) -> list[list[GeneratedResponse]]:
    """A response of each prompt for each of its seeds, in order, at most `batch_size` at a time.

    `drawn` is told after every step how many tokens it gave.
    """
    num_samples = len(seeds[0]) if seeds else 1
    results: list[list[GeneratedResponse]] = [[] for _ in prompts]
    # Longest first: batches of like lengths pad little, and memory that does not suffice shows at once.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    rounds = [min(batch_size, num_samples - done) for done in range(0, num_samples, batch_size)]
    step = max(1, batch_size // rounds[0])
    for first in range(0, len(order), step):
        chosen = order[first : first + step]
        for samples in rounds:
            own = [seeds[i][len(results[i]) : len(results[i]) + samples] for i in chosen]
            responses = _run_batch(model, [prompts[i] for i in chosen], own, drawing, drawn)
            for place, i in enumerate(chosen):
                results[i] += responses[place * samples : (place + 1) * samples]
    return results


@dataclass
class _Rows:
    """The responses still in the batch, and which of all they are."""

    place: Tensor  # (n,) row in the results
    running: Tensor  # (n,) bool
    mask: Tensor  # (n, tokens so far)
    position: Tensor  # (n, 1) of the last token

    def keep(self, rows: Tensor) -> "_Rows":
        return _Rows(self.place[rows], self.running[rows], self.mask[rows], self.position[rows])


def _run_batch(
    model: SharedModel,
    prompts: list[list[int]],
    seeds: list[list[int]],
    drawing: Drawing,
    drawn: Callable[[int], None],
) -> list[GeneratedResponse]:
    """Each prompt is read once; then one token a step for every response that still runs."""
    device, limit = model.device, drawing.max_new_tokens
    ids, mask = _pad_left(prompts, device)
    samples = len(seeds[0])
    total = len(prompts) * samples
    numbers = torch.stack([uniforms(seed, limit) for own in seeds for seed in own], dim=1).to(device)
    tokens = torch.zeros((total, limit), dtype=torch.long, device=device)
    lengths = torch.full((total,), limit, device=device)
    finished = torch.zeros(total, dtype=torch.bool, device=device)
    stops = torch.tensor(drawing.stop_ids, device=device)

    cache = DynamicCache(config=model.config)
    positions = position_ids(mask)
    logits = _next_logits(model, ids, mask, positions, cache).repeat_interleave(samples, dim=0)
    cache.batch_repeat_interleave(samples)
    rows = _Rows(
        torch.arange(total, device=device),
        torch.ones(total, dtype=torch.bool, device=device),
        mask.repeat_interleave(samples, dim=0),
        positions[:, -1:].repeat_interleave(samples, dim=0),
    )
    for step in range(limit):
        latest = draw(logits, drawing.temperature, numbers[step, rows.place])
        tokens[rows.place, step] = latest
        stopped = rows.running & torch.isin(latest, stops)
        lengths[rows.place[stopped]] = step + 1
        finished[rows.place[stopped]] = True
        rows.running &= ~stopped
        num_running = int(rows.running.sum())
        drawn(len(latest))
        if num_running == 0 or step == limit - 1:
            break
        if num_running <= COMPACT_AT * len(latest):
            kept = rows.running.nonzero().squeeze(1)
            cache.batch_select_indices(kept)
            rows, latest = rows.keep(kept), latest[kept]
        rows.mask = torch.cat([rows.mask, rows.mask.new_ones(len(latest), 1)], dim=1)
        rows.position = rows.position + 1
        logits = _next_logits(model, latest.unsqueeze(1), rows.mask, rows.position, cache)
    texts = zip(tokens.tolist(), lengths.tolist(), finished.tolist(), strict=True)
    return [GeneratedResponse(row[:length], done) for row, length, done in texts]


def _next_logits(model: SharedModel, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    """Read ids (n, T) into the cache; float32 logits (n, V) of the token after the last one only."""
    hidden = model.backbone(
        input_ids=ids, attention_mask=mask.long(), position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state
    return lm_logits(model.causal, hidden[:, -1]).float()


def _pad_left(prompts: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return ids, torch.arange(width, device=device) >= width - lengths.unsqueeze(1)
