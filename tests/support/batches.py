"""Batches for the tests of the model room."""

import torch

from lora_rlhf.model.forward import Sequences

PROMPT_LENGTHS = (5, 9, 2, 7)
RESPONSE_LENGTHS = (6, 3, 8, 1)


def random_lists(seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    """Four prompts and responses of unlike lengths, longer together than a sliding window of 16."""
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(5, 300, (length,), generator=generator).tolist()

    return [draw(n) for n in PROMPT_LENGTHS], [draw(n) for n in RESPONSE_LENGTHS]


def sequences(
    prompts: list[list[int]], responses: list[list[int]], pad: int = 1, extra_left: int = 0, extra_right: int = 0
) -> Sequences:
    """Pad by hand: prompts on the left, responses on the right."""
    left = max(map(len, prompts)) + extra_left
    right = max(map(len, responses)) + extra_right
    return Sequences(
        torch.tensor([[pad] * (left - len(p)) + p for p in prompts]),
        torch.tensor([[False] * (left - len(p)) + [True] * len(p) for p in prompts]),
        torch.tensor([r + [pad] * (right - len(r)) for r in responses]),
        torch.tensor([[True] * len(r) + [False] * (right - len(r)) for r in responses]),
    )


def random_batch(seed: int = 0) -> Sequences:
    return sequences(*random_lists(seed))
