"""Teacher-forced passes over given prompts and responses: log-probabilities, values and scores of the active role.

Each runs the backbone once and applies a head to the positions that need one; (B, T, V) logits never exist.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lora_rlhf.algo.logprobs import chunked_logprobs, token_logprobs
from lora_rlhf.model.heads import lm_logits
from lora_rlhf.model.shared import SharedModel

CHUNK_LOGITS = 2**25  # logits in memory at a time: 128 MiB in float32


@dataclass(frozen=True)
class Sequences:
    """Prompts and their responses: prompts (B, P) padded on the left, responses (B, R) on the right.

    Masks are bool, True on real tokens. The ids in the padding do not matter. Every prompt has a token.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    response_ids: Tensor
    response_mask: Tensor

    def __post_init__(self) -> None:
        shapes = [tuple(part.shape) for part in self._parts]
        if shapes[0] != shapes[1] or shapes[2] != shapes[3] or shapes[0][0] != shapes[2][0]:
            raise ValueError(f"expected (B, P) twice and (B, R) twice, got {shapes}")

    def __len__(self) -> int:
        return self.prompt_ids.shape[0]

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.prompt_ids, self.prompt_mask, self.response_ids, self.response_mask

    def index(self, rows: Tensor | slice | list[int]) -> "Sequences":
        """The rows with these indices."""
        return Sequences(*(part[rows] for part in self._parts))

    def to(self, device: torch.device | str) -> "Sequences":
        """The same sequences on another device."""
        return Sequences(*(part.to(device) for part in self._parts))

    def micro_batches(self, micro_batch_size: int) -> list[list[int]]:
        """Groups of at most `micro_batch_size` row indices, of similar length; the longest group first.

        Similar lengths need little padding, and with the longest first a run that does not fit in memory fails at once.
        """
        lengths = self.prompt_mask.sum(dim=1) + self.response_mask.sum(dim=1)
        order = lengths.argsort(descending=True, stable=True).tolist()
        return [order[start : start + micro_batch_size] for start in range(0, len(order), micro_batch_size)]

    def trim(self) -> "Sequences":
        """The same sequences without the columns that are padding in every row."""
        lengths = [mask.sum(dim=1).max() for mask in (self.prompt_mask, self.response_mask)]
        # one transfer for all three: each transfer waits for the GPU
        padded, longest_prompt, longest_response = torch.stack([self.prompt_mask[:, -1].all(), *lengths]).tolist()
        if not padded:
            raise ValueError("a prompt is empty, or not padded on the left")
        start = self.prompt_ids.shape[1] - longest_prompt
        return Sequences(
            self.prompt_ids[:, start:],
            self.prompt_mask[:, start:],
            self.response_ids[:, :longest_response],
            self.response_mask[:, :longest_response],
        )


def response_logprobs(
    model: SharedModel, batch: Sequences, temperature: float = 1.0, needs_entropy: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probability of each response token given all before it, and the entropy there: (B, R) each, float32.

    0 where masked; the entropy is 0 everywhere with needs_entropy=False. The distribution is the softmax of
    logits / temperature, from which `generate` draws. Only the log-probabilities have gradients.
    """
    trimmed = batch.trim()
    hidden = _response_hidden_states(model, trimmed)
    return _masked_logprobs(
        model,
        hidden,
        trimmed.response_ids,
        trimmed.response_mask,
        batch.response_ids.shape[1],
        temperature,
        needs_entropy,
    )


@torch.no_grad()
def mixed_logprobs(model: SharedModel, roles: Sequence[str], batch: Sequences, temperature: float = 1.0) -> Tensor:
    """The log-probabilities that each row's own role gives to its response, in one pass; see `response_logprobs`."""
    distinct = list(dict.fromkeys(roles))
    with model.mixture(distinct) as mixture:
        mixture.assign(torch.tensor([distinct.index(role) for role in roles], device=model.device))
        return response_logprobs(model, batch, temperature, needs_entropy=False)[0]


@torch.no_grad()
def best_ids_and_logprobs(model: SharedModel, batch: Sequences) -> tuple[Tensor, Tensor]:
    """The most probable id at each response token, and the log-probability of the token: (B, R) float64 each.

    0 where masked. One pass gives both, to find out whether a text is what the model itself would say.
    """
    trimmed = batch.trim()
    mask, width = trimmed.response_mask, batch.response_ids.shape[1]
    hidden, ids = _response_hidden_states(model, trimmed)[mask], trimmed.response_ids[mask]
    chunk_rows = max(1, CHUNK_LOGITS // model.config.vocab_size)
    best_ids, logprobs = [], []
    for start in range(0, len(ids), chunk_rows):
        logits = lm_logits(model.causal, hidden[start : start + chunk_rows])
        best_ids.append(logits.argmax(dim=-1).double())
        logprobs.append(token_logprobs(logits, ids[start : start + chunk_rows]).double())
    return _place_cells(torch.cat(best_ids), mask, width), _place_cells(torch.cat(logprobs), mask, width)


def response_values(model: SharedModel, batch: Sequences) -> Tensor:
    """V before each response token: [:, t] sees the prompt and response[:t]. (B, R), float32, 0 where masked.

    In units of the score: the role's offset is taken off, as it is from scores.
    """
    trimmed = batch.trim()
    # The head sees (N, H), never a (B, R, H) view: for that PyTorch sums in another order when gradients are on.
    values = model.score(_response_hidden_states(model, trimmed)[trimmed.response_mask])
    return _place_cells(values, trimmed.response_mask, batch.response_ids.shape[1])


def response_scores(model: SharedModel, batch: Sequences) -> Tensor:
    """The active role's score of each response, read at its last token, minus its offset: (B,), float32."""
    trimmed = batch.trim()
    if not bool(trimmed.response_mask.any(dim=1).all()):
        raise ValueError("a response without a token has no score")
    last_indices = trimmed.prompt_ids.shape[1] + trimmed.response_mask.sum(dim=1) - 1
    hidden = _hidden_states(model, *_join(trimmed))
    return model.score(hidden[torch.arange(len(trimmed), device=hidden.device), last_indices])


def apply_in_micro_batches(function: Callable[[Sequences], Tensor], batch: Sequences, micro_batch_size: int) -> Tensor:
    """Applies `function` to at most `micro_batch_size` responses of similar length at a time; returns rows in order."""
    groups = batch.micro_batches(micro_batch_size)
    results = torch.cat([function(batch.index(group)) for group in groups])
    order = torch.tensor([row for group in groups for row in group], device=results.device)
    return torch.empty_like(results).index_copy_(0, order, results)


def text_logprobs(model: SharedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Log-probability of each token of a text given those before it: ids, mask (B, T) -> (B, T-1), 0 where masked."""
    hidden = _hidden_states(model, ids, mask)[:, :-1]
    pair_mask = mask[:, 1:] & mask[:, :-1]
    return _masked_logprobs(model, hidden, ids[:, 1:], pair_mask, ids.shape[1] - 1, 1.0, needs_entropy=False)[0]


def counted_logprobs(model: SharedModel, ids: Tensor, counted: Tensor, **batch: Tensor) -> Tensor:
    """Log-probability of the counted tokens of a batch given all before them: ids, counted (B, T) -> (N,), float32.

    `batch` is the model's input: `input_ids` with an `attention_mask`, or packed with `position_ids`, (B, T) each.
    """
    if "position_ids" not in batch:
        batch["position_ids"] = position_ids(batch["attention_mask"].bool())
    hidden = model.backbone(**batch, use_cache=False).last_hidden_state[:, :-1]
    mask = counted[:, 1:]
    return _logprobs_in_chunks(model, hidden[mask], ids[:, 1:][mask], 1.0, needs_entropy=False)[0]


def position_ids(mask: Tensor) -> Tensor:
    """0, 1, 2, ... over the True cells of each row: padding does not shift positions."""
    return (mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def _join(batch: Sequences) -> tuple[Tensor, Tensor]:
    """Prompts and responses side by side: ids and mask, (B, P + R) each."""
    ids = torch.cat([batch.prompt_ids, batch.response_ids], dim=1)
    return ids, torch.cat([batch.prompt_mask, batch.response_mask], dim=1)


def _hidden_states(model: SharedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """(B, T) -> (B, T, H). The cache is off: with it, positions that start again could be read as packed documents."""
    ids = torch.where(mask, ids, 0)  # padding may be any number, but an embedding refuses numbers that are not ids
    output = model.backbone(input_ids=ids, attention_mask=mask.long(), position_ids=position_ids(mask), use_cache=False)
    return output.last_hidden_state


def _response_hidden_states(model: SharedModel, batch: Sequences) -> Tensor:
    """(B, R, H): at [:, t] the state that has seen the prompt and response[:t], from which token t is drawn."""
    prompt = batch.prompt_ids.shape[1]
    return _hidden_states(model, *_join(batch))[:, prompt - 1 : -1]


def _masked_logprobs(
    model: SharedModel, hidden: Tensor, ids: Tensor, mask: Tensor, width: int, temperature: float, needs_entropy: bool
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of the True cells in their positions, 0 elsewhere: (B, width) each."""
    flat_logprobs, flat_entropy = _logprobs_in_chunks(model, hidden[mask], ids[mask], temperature, needs_entropy)
    return _place_cells(flat_logprobs, mask, width), _place_cells(flat_entropy, mask, width)


def _logprobs_in_chunks(
    model: SharedModel, hidden: Tensor, ids: Tensor, temperature: float, needs_entropy: bool
) -> tuple[Tensor, Tensor]:
    """hidden (N, H), ids (N,) -> log-probabilities and entropies (N,), with few logits in memory at a time."""
    chunk_rows = max(1, CHUNK_LOGITS // model.config.vocab_size)
    return chunked_logprobs(
        hidden, lambda states: lm_logits(model.causal, states), ids, temperature, chunk_rows, needs_entropy
    )


def _place_cells(cells: Tensor, mask: Tensor, width: int) -> Tensor:
    """Values of the True cells in their positions, 0 elsewhere: (B, width); `width` is the one before trimming."""
    zeros = torch.zeros(mask.shape, dtype=cells.dtype, device=mask.device)
    return functional.pad(zeros.masked_scatter(mask, cells), (0, width - mask.shape[1]))
