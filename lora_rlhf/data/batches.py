"""Ids to padded or packed tensors, with masks or labels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_rlhf.data.encode import EncodedExample, EncodedRanking

IGNORED_LABEL = -100  # the label that PyTorch's cross-entropy leaves out


def pad_left(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pads on the left; returns (ids (B, P) int64, mask (B, P) bool), where P is the length of the longest one."""
    return _pad(sequences, pad_id, at_left=True)


def pad_right(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pads on the right; returns (ids (B, R) int64, mask (B, R) bool), where R is the length of the longest one."""
    return _pad(sequences, pad_id, at_left=False)


def _pad(sequences: Sequence[Sequence[int]], pad_id: int, at_left: bool) -> tuple[Tensor, Tensor]:
    """Pads all to the longest one; returns the ids, `pad_id` in the padded cells, and a mask that is False in these."""
    width = max((len(sequence) for sequence in sequences), default=0)
    ids = torch.full((len(sequences), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(sequences), width), dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        start = width - len(sequence) if at_left else 0
        ids[row, start : start + len(sequence)] = torch.tensor(sequence, dtype=torch.int64)
        mask[row, start : start + len(sequence)] = True
    return ids, mask


def sft_batch(examples: Sequence[EncodedExample], pad_id: int) -> dict[str, Tensor]:
    """One example a row, padded on the right: `input_ids`, `attention_mask` and `labels`, (B, T) int64 each.

    `labels` are the response's own ids in their positions (the model shifts them), and IGNORED_LABEL before the
    response and on the padding.
    """
    input_ids, mask = pad_right([[*example.context_ids, *example.response_ids] for example in examples], pad_id)
    labels, _ = pad_right([_response_labels(example) for example in examples], IGNORED_LABEL)
    return {"input_ids": input_ids, "attention_mask": mask.long(), "labels": labels}


def packed_sft_batch(examples: Sequence[EncodedExample]) -> dict[str, Tensor]:
    """All examples in one row, one after another: `input_ids`, `labels` and `position_ids`, (1, T) int64 each.

    There is no attention mask: the model tells the examples apart because positions begin at 0 with each of them. The
    model's cache must be off. The first label of an example is IGNORED_LABEL: the example before would predict it.
    """
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    for example in examples:
        labels += [IGNORED_LABEL, *_response_labels(example)[1:]]
        ids += [*example.context_ids, *example.response_ids]
        positions += range(len(ids) - len(positions))
    return {
        name: torch.tensor([row], dtype=torch.int64)
        for name, row in (("input_ids", ids), ("labels", labels), ("position_ids", positions))
    }


def _response_labels(example: EncodedExample) -> list[int]:
    """The response's ids, and IGNORED_LABEL for each id before them."""
    return [IGNORED_LABEL] * len(example.context_ids) + example.response_ids


def ranking_batch(rankings: Sequence[EncodedRanking], pad_id: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(prompt_ids, prompt_mask, response_ids, response_mask): a row for each response, ranking after ranking.

    Prompts are padded on the left, responses on the right; a ranking's prompt is repeated for each of its responses.
    """
    prompts = [ranking.prompt_ids for ranking in rankings for _ in ranking.response_ids]
    responses = [response for ranking in rankings for response in ranking.response_ids]
    return *pad_left(prompts, pad_id), *pad_right(responses, pad_id)


def response_batch(
    prompt_ids: Sequence[list[int]], response_ids: Sequence[list[int]], pad_id: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(prompt_ids, prompt_mask, response_ids, response_mask): a row for each prompt with its response."""
    return *pad_left(prompt_ids, pad_id), *pad_right(response_ids, pad_id)
