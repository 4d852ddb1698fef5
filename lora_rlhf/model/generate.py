"""Sampling: many responses at once from the active role, at exactly the distribution that the log-probs describe."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from lora_rlhf.errors import UserError
from lora_rlhf.model.forward import position_ids
from lora_rlhf.model.heads import lm_logits
from lora_rlhf.model.shared import SharedModel

COMPACT_AT = 0.85  # drop finished rows when at most this share still runs: dropping copies the cache once


@dataclass(frozen=True)
class GeneratedResponse:
    """One sampled response. `ids` ends with the stop token where `finished`; else the token limit cut it."""

    ids: list[int]
    finished: bool


@torch.no_grad()
def generate(
    model: SharedModel,
    prompt_ids: list[list[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    stop_ids: list[int],
    generator: torch.Generator,
    num_samples: int = 1,
    batch_size: int,
) -> list[list[GeneratedResponse]]:
    """`num_samples` responses of each prompt, in the prompts' order, from the role that the caller has entered.

    The same generator state gives the same responses, up to rounding, whatever `batch_size` is: see `generate_seeded`.
    """
    seeds = draw_seeds(generator, len(prompt_ids), num_samples)
    return generate_seeded(
        model,
        prompt_ids,
        seeds,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        stop_ids=stop_ids,
        batch_size=batch_size,
    )


def draw_seeds(generator: torch.Generator, num_prompts: int, num_samples: int) -> list[list[int]]:
    """A seed for each response to be sampled."""
    if num_samples < 1:
        raise ValueError(f"num_samples {num_samples} must be at least 1")
    seeds: list[list[int]] = torch.randint(2**62, (num_prompts, num_samples), generator=generator).tolist()
    return seeds


@torch.no_grad()
def generate_seeded(
    model: SharedModel,
    prompt_ids: list[list[int]],
    seeds: list[list[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    stop_ids: list[int],
    batch_size: int,
) -> list[list[GeneratedResponse]]:
    """A response of each prompt for each of its seeds, in order; as many seeds for one prompt as for another.

    Each token is drawn from softmax(logits / temperature) in float32, over the whole vocabulary; temperature 0 takes
    the most probable one. At most `batch_size` responses run at a time. A response hangs on its prompt and its seed
    alone, not on the others beside it, nor on how many run at a time or in which process.
    """
    num_samples = len(seeds[0]) if seeds else 1
    _check(model, prompt_ids, max_new_tokens, temperature, num_samples, batch_size)
    results: list[list[GeneratedResponse]] = [[] for _ in prompt_ids]
    # Longest first: batches of like lengths pad little, and memory that does not suffice shows at once.
    order = sorted(range(len(prompt_ids)), key=lambda i: -len(prompt_ids[i]))
    rounds = [min(batch_size, num_samples - done) for done in range(0, num_samples, batch_size)]
    step = max(1, batch_size // rounds[0])
    with _eval_mode(model):
        for first in range(0, len(order), step):
            chosen = order[first : first + step]
            for samples in rounds:
                prompts = [prompt_ids[i] for i in chosen]
                own = [seeds[i][len(results[i]) : len(results[i]) + samples] for i in chosen]
                responses = _run_batch(model, prompts, own, max_new_tokens, temperature, stop_ids)
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
    max_new_tokens: int,
    temperature: float,
    stop_ids: list[int],
) -> list[GeneratedResponse]:
    """Each prompt is read once; then one token a step for every response that still runs."""
    device = model.device
    ids, mask = _pad_left(prompts, device)
    samples = len(seeds[0])
    total = len(prompts) * samples
    uniforms = torch.stack([_uniforms(seed, max_new_tokens) for own in seeds for seed in own], dim=1).to(device)
    tokens = torch.zeros((total, max_new_tokens), dtype=torch.long, device=device)
    lengths = torch.full((total,), max_new_tokens, device=device)
    finished = torch.zeros(total, dtype=torch.bool, device=device)
    stops = torch.tensor(stop_ids, device=device)

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
    for step in range(max_new_tokens):
        drawn = _draw(logits, temperature, uniforms[step, rows.place])
        tokens[rows.place, step] = drawn
        stopped = rows.running & torch.isin(drawn, stops)
        lengths[rows.place[stopped]] = step + 1
        finished[rows.place[stopped]] = True
        rows.running &= ~stopped
        num_running = int(rows.running.sum())
        if num_running == 0 or step == max_new_tokens - 1:
            break
        if num_running <= COMPACT_AT * len(drawn):
            kept = rows.running.nonzero().squeeze(1)
            cache.batch_select_indices(kept)
            rows, drawn = rows.keep(kept), drawn[kept]
        rows.mask = torch.cat([rows.mask, rows.mask.new_ones(len(drawn), 1)], dim=1)
        rows.position = rows.position + 1
        logits = _next_logits(model, drawn.unsqueeze(1), rows.mask, rows.position, cache)
    texts = zip(tokens.tolist(), lengths.tolist(), finished.tolist(), strict=True)
    return [GeneratedResponse(row[:length], done) for row, length, done in texts]


def _next_logits(model: SharedModel, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    """Read ids (n, T) into the cache; float32 logits (n, V) of the token after the last one only."""
    hidden = model.backbone(
        input_ids=ids, attention_mask=mask.long(), position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state
    return lm_logits(model.causal, hidden[:, -1]).float()


def _uniforms(seed: int, count: int) -> Tensor:
    """A response's own randomness, one number a token: (count,) float64, on the CPU."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _draw(logits: Tensor, temperature: float, uniforms: Tensor) -> Tensor:
    """One token a row, by inverting the cumulative distribution at a uniform number: (n, V), (n,) -> (n,).

    One random number a row instead of one a token of the vocabulary. Summed in float64: over 100,000 tokens float32
    would lose the rare ones.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = (logits / temperature).softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    # right=True steps over tokens of probability 0, whose cumulative value is that of the token before.
    target = uniforms.unsqueeze(1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)


def _pad_left(prompts: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return ids, torch.arange(width, device=device) >= width - lengths.unsqueeze(1)


def _check(
    model: SharedModel,
    prompt_ids: list[list[int]],
    max_new_tokens: int,
    temperature: float,
    num_samples: int,
    batch_size: int,
) -> None:
    if min(max_new_tokens, num_samples, batch_size) < 1 or temperature < 0:
        raise ValueError(
            f"max_new_tokens {max_new_tokens}, num_samples {num_samples}, batch_size {batch_size} must be at least 1, "
            f"temperature {temperature} at least 0"
        )
    context = getattr(model.config, "max_position_embeddings", None)
    for number, prompt in enumerate(prompt_ids, start=1):
        if not prompt:
            raise UserError(f"prompt {number} of {len(prompt_ids)} has no tokens")
        if context is not None and len(prompt) + max_new_tokens > context:
            raise UserError(
                f"prompt {number} of {len(prompt_ids)} has {len(prompt)} tokens; with {max_new_tokens} new ones that "
                f"exceeds the model's context of {context}. Shorten the prompt or lower the number of new tokens"
            )


@contextmanager
def _eval_mode(model: SharedModel) -> Iterator[None]:
    """Without dropout, and without gradient checkpointing, which cannot use a cache; then the mode that was."""
    was_training = model.causal.training
    model.causal.eval()
    try:
        yield
    finally:
        model.causal.train(was_training)
