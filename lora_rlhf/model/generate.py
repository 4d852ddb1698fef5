"""Sampling: many responses at once, of one role or several, from the very distribution that log-probs are taken of."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch

from lora_rlhf.model.decode_plain import Batch, generate_plain
from lora_rlhf.model.decode_static import generate_static
from lora_rlhf.model.drawing import Drawing, Response, RowRoles
from lora_rlhf.model.mixed import Mixture
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError

Engine = Literal["plain", "static"]
ENGINES = {"plain": generate_plain, "static": generate_static}

__all__ = [
    "Engine",
    "Response",
    "draw_seeds",
    "generate",
    "generate_mixed",
    "generate_seeded",
    "stream_mixed",
]


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
    engine: Engine = "plain",
) -> list[list[Response]]:
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
        engine=engine,
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
    engine: Engine = "plain",
    on_tokens: Callable[[int], None] = lambda _count: None,
) -> list[list[Response]]:
    """A response of each prompt for each of its seeds, in order; as many seeds for one prompt as for another.

    Each token is drawn from softmax(logits / temperature) in float32, over the whole vocabulary; temperature 0 takes
    the most probable one. At most `batch_size` responses run at a time. A response depends on its prompt and its seed
    alone: not on the other responses, nor on how many run at a time or in which process, nor, up to rounding, on the
    engine. "static" is for models in which `engines.static_fault` finds no fault. `on_tokens` is called with the number
    of tokens drawn since its last call.
    """
    _check(model, prompt_ids, seeds, max_new_tokens, temperature, batch_size)
    drawing = Drawing(max_new_tokens, temperature, stop_ids)
    row_roles = RowRoles([0] * len(prompt_ids))
    with _eval_mode(model):
        return ENGINES[engine](model, prompt_ids, seeds, drawing, row_roles, batch_size, on_tokens)


def generate_mixed(
    model: SharedModel,
    roles: Sequence[str],
    prompt_ids: list[list[int]],
    seeds: list[list[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    stop_ids: list[int],
    batch_size: int,
    engine: Engine = "plain",
    on_tokens: Callable[[int], None] = lambda _count: None,
) -> list[list[Response]]:
    """As `generate_seeded`, but `roles[i]` answers prompt i, all in the same batches. No role need be active.

    Each role gives, up to rounding, the responses that it gives alone. In 8 bits rounding depends on the other rows of
    a batch, so that responses differ sooner than in 4.
    """
    distinct, indices = _role_indices(roles, prompt_ids)
    _check(model, prompt_ids, seeds, max_new_tokens, temperature, batch_size)
    drawing = Drawing(max_new_tokens, temperature, stop_ids)
    with model.mixture(distinct) as mixture:
        return ENGINES[engine](model, prompt_ids, seeds, drawing, RowRoles(indices, mixture), batch_size, on_tokens)


def stream_mixed(
    model: SharedModel,
    roles: Sequence[str],
    prompt_ids: list[list[int]],
    seeds: list[int],
    *,
    max_new_tokens: int,
    temperature: float,
    stop_ids: list[int],
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[list[int | None]]:
    """One response of `roles[i]` to each prompt i, token by token: yields after every step each row's new token.

    The tokens are those of `generate_mixed`; None for a response that has ended. The stream ends with the last
    response, or before the next step once `stop` returns True. It has its own cache and a copy of the roles as they
    were at the call. Between two steps the model is in the state that it had before, so that others can use it
    meanwhile. A stream that is dropped or closed leaves nothing behind.
    """
    distinct, indices = _role_indices(roles, prompt_ids)
    single_seeds = [[seed] for seed in seeds]
    _check(model, prompt_ids, single_seeds, max_new_tokens, temperature, batch_size=1)
    if not prompt_ids:
        return iter(())
    mixture = model.mixture(distinct)
    drawing = Drawing(max_new_tokens, temperature, stop_ids)
    batch = Batch(model, prompt_ids, single_seeds, drawing, RowRoles(indices, mixture))
    return _stream(batch, mixture, stop)


def _stream(batch: Batch, mixture: Mixture, stop: Callable[[], bool]) -> Iterator[list[int | None]]:
    while not (batch.done or stop()):
        with mixture:
            batch.step()
        latest, lengths = batch.tokens[:, batch.steps - 1].tolist(), batch.length.tolist()
        yield [token if length >= batch.steps else None for token, length in zip(latest, lengths, strict=True)]


def _role_indices(roles: Sequence[str], prompt_ids: list[list[int]]) -> tuple[list[str], list[int]]:
    """Each role once, and the index of each prompt's role among them."""
    if len(roles) != len(prompt_ids):
        raise ValueError(f"{len(roles)} roles for {len(prompt_ids)} prompts")
    distinct = list(dict.fromkeys(roles))
    return distinct, [distinct.index(role) for role in roles]


def _check(
    model: SharedModel,
    prompt_ids: list[list[int]],
    seeds: list[list[int]],
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
) -> None:
    num_samples = len(seeds[0]) if seeds else 1
    if min(max_new_tokens, num_samples, batch_size) < 1 or temperature < 0:
        raise ValueError(
            f"max_new_tokens {max_new_tokens}, num_samples {num_samples}, batch_size {batch_size} must be at least 1, "
            f"temperature {temperature} at least 0"
        )
    if len(seeds) != len(prompt_ids):
        raise ValueError(f"seeds of {len(seeds)} prompts for {len(prompt_ids)} prompts")
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
    """Inside, no dropout, and no gradient checkpointing, which cannot use a cache. Then the mode from before."""
    was_training = model.causal.training
    model.causal.eval()
    try:
        yield
    finally:
        model.causal.train(was_training)
