"""Sampling: many responses at once from the active role, at exactly the distribution that the log-probs describe."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from lora_rlhf.errors import UserError
from lora_rlhf.model.decode_plain import generate_plain
from lora_rlhf.model.decode_static import generate_static
from lora_rlhf.model.drawing import Drawing, GeneratedResponse
from lora_rlhf.model.shared import SharedModel

Engine = Literal["plain", "static"]

__all__ = ["Engine", "GeneratedResponse", "draw_seeds", "generate", "generate_seeded"]


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
    drawn: Callable[[int], None] = lambda _tokens: None,
) -> list[list[GeneratedResponse]]:
    """A response of each prompt for each of its seeds, in order; as many seeds for one prompt as for another.

    Each token is drawn from softmax(logits / temperature) in float32, over the whole vocabulary; temperature 0 takes
    the most probable one. At most `batch_size` responses run at a time. A response hangs on its prompt and its seed
    alone, not on the others beside it, nor on how many run at a time or in which process, nor, up to rounding, on the
    engine; "static" is for models that `engines.static_fault` finds nothing wrong with. `drawn` is told of tokens as
    they are drawn.
    """
    num_samples = len(seeds[0]) if seeds else 1
    _check(model, prompt_ids, max_new_tokens, temperature, num_samples, batch_size)
    drawing = Drawing(max_new_tokens, temperature, stop_ids)
    run = generate_static if engine == "static" else generate_plain
    with _eval_mode(model):
        return run(model, prompt_ids, seeds, drawing, batch_size, drawn)


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
