"""The batch that a stage makes of a few rows, token by token: its text, and what the stage uses it for."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lora_rlhf.configs.catalogue import Stage
from lora_rlhf.data.batches import (
    IGNORED_LABEL,
    packed_sft_batch,
    pad_left,
    pad_right,
    ranking_batch,
    response_batch,
    sft_batch,
)
from lora_rlhf.data.encode import EncodedExample, EncodedPrompt, EncodedRanking, EncodedSteps
from lora_rlhf.data.template import pad_id, stop_ids
from lora_rlhf.model.forward import position_ids
from lora_rlhf.model.generate import Response

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenKind = Literal["prompt", "response", "end", "padding"]

CUT_NOTE = "the response was cut at max_response_tokens: it has no token that ends it"
ENDLESS_NOTE = "the response did not end within max_response_tokens: its score is the fixed missing_eos_score"
UNSAMPLED_NOTE = "sampling begins after the last token"

REPLACEMENT = "\ufffd"  # the replacement character: a decoder writes it for a character of which bytes are missing
TOKENS_BEFORE = 8  # tokens before a token that its text can depend on: a character has at most 4 bytes


@dataclass(frozen=True)
class Cell:
    """One token of a batch.

    text: what the token adds to the text before it. token_kind: `end` is the token that ends a response. counts: the
    token is in the loss, its state is scored, or it is an action, as the stage uses responses. position: its position
    id; None for padding. score: the reward model's score is read at this token, or added to its reward.
    """

    id: int
    text: str
    token_kind: TokenKind
    counts: bool
    position: int | None
    score: bool = False


@dataclass(frozen=True)
class Line:
    """One row of a batch, or one document of a packed row; `title` says where it comes from, `notes` what was cut."""

    title: str
    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = ()

    def count(self, *token_kinds: TokenKind) -> int:
        """How many cells have one of these kinds."""
        return sum(cell.token_kind in token_kinds for cell in self.cells)

    @property
    def num_counted(self) -> int:
        """How many cells count (`Cell.counts`)."""
        return sum(cell.counts for cell in self.cells)


@dataclass(frozen=True)
class Batch:
    """All lines, and the shapes of the tensors that a trainer gets."""

    stage: Stage
    shapes: dict[str, tuple[int, ...]]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Origin:
    """The row's place in its file (file and line), and notes on what the length limits did to the row."""

    place: str
    notes: tuple[str, ...] = ()


def demonstration_batch(
    stage: Stage,
    tokenizer: "PreTrainedTokenizerBase",
    examples: Sequence[EncodedExample],
    origins: Sequence[Origin],
    packing: bool,
) -> Batch:
    """The batch of demonstrations, a line each. With `packing` all of them are in one row of the tensors."""
    tensors = packed_sft_batch(examples) if packing else sft_batch(examples, pad_id(tokenizer))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    lengths = [len(example.context_ids) + len(example.response_ids) for example in examples]
    lines = []
    for row, (example, origin) in enumerate(zip(examples, origins, strict=True)):
        start = sum(lengths[:row]) if packing else 0
        cell_index = (0, slice(start, start + lengths[row])) if packing else (row, slice(None))
        ids, counts_mask = tensors["input_ids"][cell_index], tensors["labels"][cell_index] != IGNORED_LABEL
        mask = torch.ones_like(ids, dtype=torch.bool) if packing else tensors["attention_mask"][cell_index].bool()
        positions = tensors["position_ids"][cell_index] if packing else torch.arange(len(ids))
        cells = _row_cells(tokenizer, ids, mask, counts_mask, positions, len(example.context_ids))
        lines.append(_line_with_end_note(origin.place, cells, origin.notes, CUT_NOTE))
    note = "packed: all in one row, positions begin again at each, and attention stays inside each"
    return Batch(stage, shapes, tuple(lines), (note,) if packing else ())


def ranked_response_batch(
    stage: Stage,
    tokenizer: "PreTrainedTokenizerBase",
    rankings: Sequence[EncodedRanking],
    origins: Sequence[Origin],
) -> Batch:
    """The batch of rankings: each response is a row, after a copy of its prompt.

    Either the last token of each response is scored, or all its tokens are in the loss: `stage.scores` decides.
    """
    prompts, prompt_mask, responses, response_mask = ranking_batch(rankings, pad_id(tokenizer))
    titles, notes = [], []
    for ranking, origin in zip(rankings, origins, strict=True):
        num_responses = len(ranking.ranks)
        titles += [
            f"{origin.place}, response {i + 1} of {num_responses}, rank {ranking.ranks[i]}"
            for i in range(num_responses)
        ]
        is_tied = len(set(ranking.ranks)) == 1
        notes_with_tie = (*origin.notes, "all responses share a rank: nothing can be learned from this ranking")
        notes += [notes_with_tie if is_tied else origin.notes] * num_responses
    score_mask = torch.zeros_like(response_mask)
    if stage.scores:
        score_mask[torch.arange(len(score_mask)), response_mask.sum(dim=1) - 1] = True
    marks = (score_mask if stage.scores else response_mask, score_mask)
    parts = (prompts, prompt_mask, responses, response_mask)
    return _prompt_response_batch(stage, tokenizer, parts, marks, (titles, notes), CUT_NOTE)


def step_batch(
    stage: Stage, tokenizer: "PreTrainedTokenizerBase", rows: Sequence[EncodedSteps], origins: Sequence[Origin]
) -> Batch:
    """The batch of answers whose steps are labelled: the score is read where a step with a label ends."""
    parts = response_batch([row.prompt_ids for row in rows], [row.response_ids for row in rows], pad_id(tokenizer))
    places = torch.zeros_like(parts[3])
    for index, row in enumerate(rows):
        places[index, list(row.judged)] = True
    words = {True: "good", False: "bad", None: "no label"}
    titles = [
        f"{origin.place}, steps: {', '.join(words[label] for label in row.labels)}"
        for row, origin in zip(rows, origins, strict=True)
    ]
    notes = [origin.notes for origin in origins]
    return _prompt_response_batch(stage, tokenizer, parts, (places, places), (titles, notes), CUT_NOTE)


def prompt_batch(
    stage: Stage,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[EncodedPrompt],
    origins: Sequence[Origin],
    responses: Sequence[Response] | None,
) -> Batch:
    """The batch of prompts, each with its sampled response if there are responses."""
    pad = pad_id(tokenizer)
    padded_prompts = pad_left([prompt.prompt_ids for prompt in prompts], pad)
    padded_responses = pad_right([[] if responses is None else responses[row].ids for row in range(len(prompts))], pad)
    score_mask = torch.zeros_like(padded_responses[1])
    for row, response in enumerate(responses or ()):
        score_mask[row, len(response.ids) - 1] = True
    titles, notes = [origin.place for origin in origins], [origin.notes for origin in origins]
    missing_end_note = UNSAMPLED_NOTE if responses is None else ENDLESS_NOTE
    return _prompt_response_batch(
        stage,
        tokenizer,
        (*padded_prompts, *padded_responses),
        (padded_responses[1], score_mask),
        (titles, notes),
        missing_end_note,
    )


def _prompt_response_batch(
    stage: Stage,
    tokenizer: "PreTrainedTokenizerBase",
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    response_masks: tuple[Tensor, Tensor],
    titles_and_notes: tuple[list[str], list[tuple[str, ...]]],
    missing_end_note: str,
) -> Batch:
    """Builds the batch from prompts (B, P), padded on the left, and responses (B, R), padded on the right.

    tensors: prompt_ids, prompt_mask, response_ids, response_mask. response_masks: which response tokens count, and
    which token is scored, (B, R) bool each. titles_and_notes: of the lines. missing_end_note: for a response without an
    end.
    """
    tensor_names = ("prompt_ids", "prompt_mask", "response_ids", "response_mask")
    shapes = {name: tuple(tensor.shape) for name, tensor in zip(tensor_names, tensors, strict=True) if tensor.shape[1]}
    prompts, prompt_mask, responses, response_mask = tensors
    ids, mask = torch.cat([prompts, responses], dim=1), torch.cat([prompt_mask, response_mask], dim=1)
    counts_mask, score_mask = (
        torch.cat([torch.zeros_like(prompt_mask), response_mask_part], dim=1) for response_mask_part in response_masks
    )
    positions = position_ids(mask)
    lines = []
    for row, (title, notes) in enumerate(zip(*titles_and_notes, strict=True)):
        cells = _row_cells(
            tokenizer, ids[row], mask[row], counts_mask[row], positions[row], prompts.shape[1], score_mask[row]
        )
        lines.append(_line_with_end_note(title, cells, notes, missing_end_note))
    return Batch(stage, shapes, tuple(lines))


def _line_with_end_note(title: str, cells: tuple[Cell, ...], notes: tuple[str, ...], missing_end_note: str) -> Line:
    """A line with these cells; the note is added if no token of it ends the response."""
    line = Line(title, cells, notes)
    return line if line.count("end") else Line(title, cells, (*notes, missing_end_note))


def _row_cells(
    tokenizer: "PreTrainedTokenizerBase",
    ids: Tensor,
    mask: Tensor,
    counts_mask: Tensor,
    positions: Tensor,
    response_start: int,
    score_mask: Tensor | None = None,
) -> tuple[Cell, ...]:
    """The cells of one row; all tensors (T,). Tokens from the index `response_start` on are the response."""
    texts = iter(token_texts(tokenizer, ids[mask].tolist()))
    stops = stop_ids(tokenizer)
    cells = []
    for position, token_id in enumerate(ids.tolist()):
        if not mask[position]:
            cells.append(Cell(token_id, tokenizer.decode([token_id]), "padding", bool(counts_mask[position]), None))
            continue
        token_kind: TokenKind = "prompt" if position < response_start else "response"
        if token_kind == "response" and token_id in stops:
            token_kind = "end"
        is_scored = score_mask is not None and bool(score_mask[position])
        cells.append(
            Cell(token_id, next(texts), token_kind, bool(counts_mask[position]), int(positions[position]), is_scored)
        )
    return tuple(cells)


def token_texts(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[str]:
    """The text that each token adds to the text of the tokens before it; if that is empty, its vocabulary name.

    A character of several tokens is the text of the last of them; the others get the replacement character.
    """
    texts = []
    for end in range(len(ids)):
        start = max(0, end - TOKENS_BEFORE)
        text_before = tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False)
        text_after = tokenizer.decode(ids[start : end + 1], clean_up_tokenization_spaces=False)
        common_characters = itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(text_before, text_after, strict=False)
        )
        added_text = text_after[sum(1 for _ in common_characters) :]
        texts.append(
            added_text or (REPLACEMENT if text_after.endswith(REPLACEMENT) else _vocabulary_name(tokenizer, ids[end]))
        )
    return texts


def _vocabulary_name(tokenizer: "PreTrainedTokenizerBase", token_id: int) -> str:
    # a model's vocabulary can be rounded up to more ids than its tokenizer knows, and the model can sample these ids
    return tokenizer.convert_ids_to_tokens(token_id) or f"<no token {token_id}>"
