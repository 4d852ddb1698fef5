"""Logits of a response given its prompt, and greedy responses: what an export and its original are compared by."""

import torch
from torch import Tensor

from lora_rlhf.model.forward import Sequences, position_ids, response_scores
from lora_rlhf.model.generate import generate
from lora_rlhf.model.heads import lm_logits
from lora_rlhf.model.merging import Mode, Part
from lora_rlhf.model.shared import SharedModel

NEVER = -1  # no token has this id, so responses do not stop


@torch.no_grad()
def response_logits(model: SharedModel, prompt_ids: list[int], response_ids: list[int]) -> Tensor:
    """The active role's logits from which each response token is drawn: (R, V), float32, on the CPU."""
    ids = torch.tensor([[*prompt_ids, *response_ids]], device=model.device)
    mask = torch.ones_like(ids)
    output = model.backbone(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask.bool()), use_cache=False)
    hidden = output.last_hidden_state[0, len(prompt_ids) - 1 : -1]
    return lm_logits(model.causal, hidden).float().cpu()


def greedy_responses(model: SharedModel, prompt_ids: list[list[int]], tokens: int) -> list[list[int]]:
    """The active role's most probable continuation of each prompt, `tokens` long, also after a stop token."""
    groups = generate(
        model,
        prompt_ids,
        max_new_tokens=tokens,
        temperature=0,
        stop_ids=[NEVER],
        generator=torch.Generator(),
        batch_size=len(prompt_ids),
    )
    return [response.ids for (response,) in groups]


@torch.no_grad()
def score_of_response(model: SharedModel, prompt_ids: list[int], response_ids: list[int]) -> float:
    """The active role's score of one response."""
    prompt, response = (torch.tensor([ids], device=model.device) for ids in (prompt_ids, response_ids))
    batch = Sequences(prompt, torch.ones_like(prompt).bool(), response, torch.ones_like(response).bool())
    return response_scores(model, batch).item()


@torch.no_grad()
def load_merged_weights(model: SharedModel, parts: list[Part], mode: Mode, dtype: torch.dtype) -> None:
    """Copies merged weights, rounded to `dtype`, into a plain model in memory: another export without a folder."""
    state = model.causal.state_dict()
    for part in parts:
        if part.joined:  # no adapter changes it, in either mode
            continue
        target, start = state[part.name], 0
        for piece in part.pieces(mode, dtype, model.device):
            end = start + (piece.shape[0] if piece.dim() else 1)
            target[start:end].copy_(piece) if piece.dim() else target.copy_(piece)
            start = end
