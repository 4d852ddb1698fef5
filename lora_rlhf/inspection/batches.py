"""The batch that a stage makes of a few rows, cell by cell: what stands there, and what it counts for."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lora_rlhf.configs.catalogue import Stage
from lora_rlhf.data.batches import IGNORED, packed_sft_batch, pad_left, pad_right, ranking_batch, sft_batch
from lora_rlhf.data.encode import EncodedExample, EncodedPrompt, EncodedRanking
from lora_rlhf.data.template import pad_id, stop_ids
from lora_rlhf.model.forward import position_ids
from lora_rlhf.model.generate import Response

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Role = Literal["prompt", "response", "end", "padding"]

CUT = "the response was cut at max_response_tokens: it has no token that ends it"
ENDLESS = "the response did not end within max_response_tokens: its score is the fixed missing_eos_score"
UNSAMPLED = "sampling begins after the last token"

HALF = "\ufffd"  # what stands for a character whose bytes are not all there
CONTEXT = 8  # tokens before one that its text can hang on: a character has at most 4 bytes


@dataclass(frozen=True)
class Cell:
    """One place of a batch.

    text: what the token adds to the text before it. role: `end` is the token that ends a response. counts: it is in the
    loss, its state is scored, or it is an action, as the stage uses responses. position: its position id; None for
    padding. score: the reward model's score is read, or added to the rewards, here.
    """

    id: int
    text: str
    role: Role
    counts: bool
    position: int | None
    score: bool = False


@dataclass(frozen=True)
class Line:
    """One row of a batch, or one document of a packed row; `title` says where it comes from, `notes` what was cut."""

    title: str
    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = ()

    def count(self, *roles: Role) -> int:
        """How many cells have one of these roles."""
        return sum(cell.role in roles for cell in self.cells)

    @property
    def counted(self) -> int:
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
    """Where a row stands in its file, and what the length limits did to it."""

    place: str
    notes: tuple[str, ...] = ()


def demonstration_lines(
    stage: Stage,
    tokenizer: "PreTrainedTokenizerBase",
    examples: Sequence[EncodedExample],
    origins: Sequence[Origin],
    packing: bool,
) -> Batch:
    """The batch of demonstrations; with `packing` each of them is a line of its own, of the one row that they fill."""
    tensors = packed_sft_batch(examples) if packing else sft_batch(examples, pad_id(tokenizer))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    lengths = [len(example.prompt_ids) + len(example.response_ids) for example in examples]
    lines = []
    for row, (example, origin) in enumerate(zip(examples, origins, strict=True)):
        start = sum(lengths[:row]) if packing else 0
        at = (0, slice(start, start + lengths[row])) if packing else (row, slice(None))
        ids, counts = tensors["input_ids"][at], tensors["labels"][at] != IGNORED
        mask = torch.ones_like(ids, dtype=torch.bool) if packing else tensors["attention_mask"][at].bool()
        positions = tensors["position_ids"][at] if packing else torch.arange(len(ids))
        cells = _cells(tokenizer, ids, mask, counts, positions, len(example.prompt_ids))
        lines.append(_line(origin.place, cells, origin.notes, CUT))
    note = "packed: all in one row, positions begin again at each, and attention stays inside each"
    return Batch(stage, shapes, tuple(lines), (note,) if packing else ())


def ranking_lines(
    stage: Stage,
    tokenizer: "PreTrainedTokenizerBase",
    rankings: Sequence[EncodedRanking],
    origins: Sequence[Origin],
) -> Batch:
    """The batch of rankings: each response is a row, behind a copy of its prompt.

    Of a response its last token is scored, or all its tokens are in the loss, as the stage uses them.
    """
    prompts, prompt_mask, responses, response_mask = ranking_batch(rankings, pad_id(tokenizer))
    titles, notes = [], []
    for ranking, origin in zip(rankings, origins, strict=True):
        count = len(ranking.ranks)
        titles += [f"{origin.place}, response {i + 1} of {count}, rank {ranking.ranks[i]}" for i in range(count)]
        tied = len(set(ranking.ranks)) == 1
        both = (*origin.notes, "all responses share a rank: nothing can be learned from this ranking")
        notes += [both if tied else origin.notes] * count
    score = torch.zeros_like(response_mask)
    if stage.scores:
        score[torch.arange(len(score)), response_mask.sum(dim=1) - 1] = True
    marks = (score if stage.scores else response_mask, score)
    parts = (prompts, prompt_mask, responses, response_mask)
    return _prompts_and_responses(stage, tokenizer, parts, marks, (titles, notes), CUT)


def prompt_lines(
    stage: Stage,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[EncodedPrompt],
    origins: Sequence[Origin],
    responses: Sequence[Response] | None,
) -> Batch:
    """The batch of prompts, and behind them the responses that were sampled, if any."""
    pad = pad_id(tokenizer)
    left = pad_left([prompt.prompt_ids for prompt in prompts], pad)
    right = pad_right([[] if responses is None else responses[row].ids for row in range(len(prompts))], pad)
    score = torch.zeros_like(right[1])
    for row, response in enumerate(responses or ()):
        score[row, len(response.ids) - 1] = True
    titles, notes = [origin.place for origin in origins], [origin.notes for origin in origins]
    without_end = UNSAMPLED if responses is None else ENDLESS
    return _prompts_and_responses(stage, tokenizer, (*left, *right), (right[1], score), (titles, notes), without_end)


def _prompts_and_responses(
    stage: Stage,
    tokenizer: "PreTrainedTokenizerBase",
    parts: tuple[Tensor, Tensor, Tensor, Tensor],
    marks: tuple[Tensor, Tensor],
    headings: tuple[list[str], list[tuple[str, ...]]],
    without_end: str,
) -> Batch:
    """Lines of prompts (B, P) padded on the left and responses (B, R) on the right.

    marks: which response tokens count, and which is scored, (B, R) bool each. headings: titles and notes of the lines.
    """
    names = ("prompt_ids", "prompt_mask", "response_ids", "response_mask")
    shapes = {name: tuple(part.shape) for name, part in zip(names, parts, strict=True) if part.shape[1]}
    prompts, prompt_mask, responses, response_mask = parts
    ids, mask = torch.cat([prompts, responses], dim=1), torch.cat([prompt_mask, response_mask], dim=1)
    counts, score = (torch.cat([torch.zeros_like(prompt_mask), mark], dim=1) for mark in marks)
    positions = position_ids(mask)
    lines = []
    for row, (title, notes) in enumerate(zip(*headings, strict=True)):
        cells = _cells(tokenizer, ids[row], mask[row], counts[row], positions[row], prompts.shape[1], score[row])
        lines.append(_line(title, cells, notes, without_end))
    return Batch(stage, shapes, tuple(lines))


def _line(title: str, cells: tuple[Cell, ...], notes: tuple[str, ...], without_end: str) -> Line:
    line = Line(title, cells, notes)
    return line if line.count("end") else Line(title, cells, (*notes, without_end))


def _cells(
    tokenizer: "PreTrainedTokenizerBase",
    ids: Tensor,
    mask: Tensor,
    counts: Tensor,
    positions: Tensor,
    response_start: int,
    score: Tensor | None = None,
) -> tuple[Cell, ...]:
    """The cells of one row; all tensors (T,). What stands at `response_start` and after is the response."""
    texts = iter(pieces(tokenizer, ids[mask].tolist()))
    stops = stop_ids(tokenizer)
    cells = []
    for position, token in enumerate(ids.tolist()):
        if not mask[position]:
            cells.append(Cell(token, tokenizer.decode([token]), "padding", bool(counts[position]), None))
            continue
        role: Role = "prompt" if position < response_start else "response"
        if role == "response" and token in stops:
            role = "end"
        is_score = score is not None and bool(score[position])
        cells.append(Cell(token, next(texts), role, bool(counts[position]), int(positions[position]), is_score))
    return tuple(cells)


def pieces(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[str]:
    """What each token adds to the text of those before it; its name in the vocabulary where that is nothing.

    A character that takes several tokens stands at the last of them, after a replacement character at the others.
    """
    texts = []
    for end in range(len(ids)):
        start = max(0, end - CONTEXT)
        before = tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False)
        after = tokenizer.decode(ids[start : end + 1], clean_up_tokenization_spaces=False)
        kept = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False))
        added = after[sum(1 for _ in kept) :]
        texts.append(added or (HALF if after.endswith(HALF) else _name(tokenizer, ids[end])))
    return texts


def _name(tokenizer: "PreTrainedTokenizerBase", token: int) -> str:
    # models have more rows than their tokenizer has tokens where sizes are rounded up, and can sample these
    return tokenizer.convert_ids_to_tokens(token) or f"<no token {token}>"
