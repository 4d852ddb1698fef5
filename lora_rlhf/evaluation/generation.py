"""Generates one response of every system to every prompt, all from one base in the same batches."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from lora_rlhf.data.batches import response_batch
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.template import decode_response, pad_id, stop_ids
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.model.drawing import Response
from lora_rlhf.model.engines import usual_engine
from lora_rlhf.model.forward import Sequences
from lora_rlhf.model.generate import draw_seeds, generate_mixed
from lora_rlhf.model.shared import SharedModel


def generate_responses(
    config: EvaluateConfig,
    model: SharedModel,
    roles: Sequence[str],
    prompts: Sequence[EncodedPrompt],
    temperatures: Sequence[float],
) -> list[list[Response]]:
    """One response of each role to each prompt, at the role's temperature: a list for each role.

    Seeds come from the configuration and are the same for every role: equal roles give equal responses. Roles of one
    temperature share batches, in which the responses of one role are neighbours, because their lengths are similar.
    """
    seeds = draw_seeds(torch.Generator().manual_seed(config.seed), len(prompts), 1)
    responses_by_role: list[list[Response]] = [[] for _ in roles]
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
            engine=usual_engine(model, config.max_prompt_tokens + config.max_response_tokens),
        )
        responses = [
            replace(response, text=decode_response(model.tokenizer, response.ids).strip()) for (response,) in groups
        ]
        for number, i in enumerate(indices):
            responses_by_role[i] = responses[number * len(prompts) : (number + 1) * len(prompts)]
    return responses_by_role


def padded_sequences(model: SharedModel, prompts: Sequence[EncodedPrompt], answers: Sequence[Response]) -> Sequences:
    """Prompts and responses as padded tensors on the model's device."""
    return Sequences(
        *response_batch(
            [prompt.prompt_ids for prompt in prompts], [answer.ids for answer in answers], pad_id(model.tokenizer)
        )
    ).to(model.device)
