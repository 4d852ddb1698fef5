"""What is compared: one response of every system to every prompt, all from one base in the same batches."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from lora_rlhf.data.batches import response_batch
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.template import decode_response, pad_id, stop_ids
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.model.drawing import Response
from lora_rlhf.model.forward import Sequences
from lora_rlhf.model.generate import draw_seeds, generate_mixed
from lora_rlhf.model.shared import SharedModel


def respond(
    config: EvaluateConfig,
    model: SharedModel,
    roles: Sequence[str],
    prompts: Sequence[EncodedPrompt],
    temperatures: Sequence[float],
) -> list[list[Response]]:
    """One response of each role to each prompt, at the role's temperature: a list a role, in the prompts' order.

    Seeds come from the configuration and are the same for every role: equal roles give equal responses. Roles of one
    temperature share their batches; those of one role stand together, for they are of like length.
    """
    seeds = draw_seeds(torch.Generator().manual_seed(config.seed), len(prompts), 1)
    answers_of: list[list[Response]] = [[] for _ in roles]
    for temperature in dict.fromkeys(temperatures):
        indices = [i for i, role_temperature in enumerate(temperatures) if role_temperature == temperature]
        groups = generate_mixed(
            model,
            [roles[i] for i in indices for _ in prompts],
            [prompt.prompt_ids for prompt in prompts] * len(indices),
            seeds * len(indices),
            max_new_tokens=config.max_response_tokens,
            temperature=temperature,
            stop_ids=stop_ids(model.tokenizer),
            batch_size=config.generation_batch_size,
        )
        answers = [replace(r, text=decode_response(model.tokenizer, r.ids).strip()) for (r,) in groups]
        for number, i in enumerate(indices):
            answers_of[i] = answers[number * len(prompts) : (number + 1) * len(prompts)]
    return answers_of


def sequences_of(model: SharedModel, prompts: Sequence[EncodedPrompt], answers: Sequence[Response]) -> Sequences:
    """Prompts and responses as padded tensors on the model's device."""
    return Sequences(
        *response_batch([p.prompt_ids for p in prompts], [a.ids for a in answers], pad_id(model.tokenizer))
    ).to(model.device)
