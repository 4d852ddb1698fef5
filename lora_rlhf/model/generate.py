"""Sampling: many responses at once, of one role or several, from the distribution that the log-probabilities are of."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch

from lora_rlhf.model.decode_plain import Batch, generate_plain
from lora_rlhf.model.decode_static import generate_static
from lora_rlhf.model.decode_step import Kept
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
    """`num_samples` responses to each prompt, in the prompts' order, of the active role.

    The same generator state gives the same responses, up to rounding, for any `batch_size`: see `generate_seeded`.
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
    kept: Kept | None = None,
) -> list[list[Response]]:
    """A response to each prompt for each of its seeds, in order; all prompts have the same number of seeds.

    Each token is drawn from softmax(logits / temperature) in float32, over the whole vocabulary; temperature 0 takes
    the most probable one. At most `batch_size` responses run at a time. A response depends only on its prompt and its
    seed: not on the other responses, their number or the process, and, up to rounding, not on the engine. "static" is
    for models in which `engines.find_static_fault` finds no fault. `on_tokens` is called with the number of tokens
    drawn since its last call. `kept`: what the static engine keeps for the next call of this role.
    """
    _check_arguments(model, prompt_ids, seeds, max_new_tokens, temperature, batch_size)
    drawing = Drawing(max_new_tokens, temperature, stop_ids)
    row_roles = RowRoles([0] * len(prompt_ids))
    with _use_eval_mode(model):
        if engine == "static":
            return generate_static(model, prompt_ids, seeds, drawing, row_roles, batch_size, on_tokens, kept)
        return generate_plain(model, prompt_ids, seeds, drawing, row_roles, batch_size, on_tokens)


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
    a batch, so responses differ sooner than in 4 bits.
    """
    distinct_roles, indices = _distinct_roles_and_indices(roles, prompt_ids)
    _check_arguments(model, prompt_ids, seeds, max_new_tokens, temperature, batch_size)
    drawing = Drawing(max_new_tokens, temperature, stop_ids)
    with model.mixture(distinct_roles) as mixture:
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
    top_p: float = 1.0,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[list[int | None]]:
    """One response of `roles[i]` to each prompt i, token by token: yields each row's new token after every step.

    The tokens are those of `generate_mixed`, or of the most probable ones where `top_p` is below 1 (see `draw_tokens`);
    None for a response that has ended. The stream ends with the last response, or before the next step when `stop`
    returns True. It has its own cache and a copy of the roles from the time of the call. Between two steps the model is
    in its former state, so other code can use it. A closed or abandoned stream leaves nothing behind.
    """
    distinct_roles, indices = _distinct_roles_and_indices(roles, prompt_ids)
    single_seeds = [[seed] for seed in seeds]
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p {top_p}: it must be above 0 and at most 1")
    _check_arguments(model, prompt_ids, single_seeds, max_new_tokens, temperature, batch_size=1)
    if not prompt_ids:
        return iter(())
    mixture = model.mixture(distinct_roles)
    drawing = Drawing(max_new_tokens, temperature, stop_ids, top_p)
    batch = Batch(model, prompt_ids, single_seeds, drawing, RowRoles(indices, mixture))
    return _stream_tokens(batch, mixture, stop)


def _stream_tokens(batch: Batch, mixture: Mixture, stop: Callable[[], bool]) -> Iterator[list[int | None]]:
    """The generator of `stream_mixed`."""
    while not (batch.is_done or stop()):
        with mixture:
            batch.step()
        new_tokens, lengths = batch.tokens[:, batch.steps - 1].tolist(), batch.length.tolist()
        yield [token if length >= batch.steps else None for token, length in zip(new_tokens, lengths, strict=True)]


def _distinct_roles_and_indices(roles: Sequence[str], prompt_ids: list[list[int]]) -> tuple[list[str], list[int]]:
    """Each role once, and the index of each prompt's role among them."""
    if len(roles) != len(prompt_ids):
        raise ValueError(f"{len(roles)} roles for {len(prompt_ids)} prompts")
    distinct_roles = list(dict.fromkeys(roles))
    return distinct_roles, [distinct_roles.index(role) for role in roles]


def _check_arguments(
    model: SharedModel,
    prompt_ids: list[list[int]],
    seeds: list[list[int]],
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
) -> None:
    """ValueError or UserError for arguments that cannot be used, such as a prompt that is too long for the model."""
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
def _use_eval_mode(model: SharedModel) -> Iterator[None]:
    """Inside, no dropout, and no gradient checkpointing, which cannot use a cache. Restores the former mode."""
    was_training = model.causal.training
    model.causal.eval()
    try:
        yield
    finally:
        model.causal.train(was_training)
