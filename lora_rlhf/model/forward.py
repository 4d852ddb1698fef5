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

# Rows of a pass without gradients, which keeps nothing, for each row of a micro-batch. A GPU dequantizes each weight
# once a pass, and more rows would be padded by more than that saves.
SCORED_AT_ONCE = 2
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
    hidden, ids, mask = _response_hidden_states(model, batch)
    width = batch.response_ids.shape[1]
    logprobs, entropies = _logprobs_in_chunks(model, hidden, ids, temperature, needs_entropy)
    return _place_cells(logprobs, mask, width), _place_cells(entropies, mask, width)


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
    (hidden, ids, mask), width = _response_hidden_states(model, batch), batch.response_ids.shape[1]
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
    # The head sees (N, H), never a (B, R, H) view: for that PyTorch sums in another order when gradients are on.
    hidden, _, mask = _response_hidden_states(model, batch)
    return _place_cells(model.score(hidden), mask, batch.response_ids.shape[1])


def response_scores(model: SharedModel, batch: Sequences) -> Tensor:
    """The active role's score of each response, read at its last token, minus its offset: (B,), float32."""
    trimmed = batch.trim()
    if not bool(trimmed.response_mask.any(dim=1).all()):
        raise ValueError("a response without a token has no score")
    hidden, columns = _hidden_states(model, *_join(trimmed))
    return model.score(hidden[torch.arange(len(trimmed), device=hidden.device), columns[:, -1]])


def token_scores(model: SharedModel, batch: Sequences, places: Tensor) -> Tensor:
    """The active role's scores at the response tokens where `places` (B, R) is True: (B, R) float32, 0 elsewhere.

    The score at a token has read it, so that of a response's last token is `response_scores`.
    """
    trimmed = batch.trim()
    hidden, columns = _hidden_states(model, *_join(trimmed))
    width = trimmed.response_ids.shape[1]
    chosen = places[:, :width] & trimmed.response_mask
    states, _ = _select_cells(hidden, columns[:, -width:], trimmed.response_ids, chosen)
    return _place_cells(model.score(states), chosen, batch.response_ids.shape[1])


def apply_in_micro_batches(function: Callable[[Sequences], Tensor], batch: Sequences, micro_batch_size: int) -> Tensor:
    """Applies `function` to at most `micro_batch_size` responses of similar length at a time; returns rows in order."""
    groups = batch.micro_batches(micro_batch_size)
    results = torch.cat([function(batch.index(group)) for group in groups])
    order = torch.tensor([row for group in groups for row in group], device=results.device)
    return torch.empty_like(results).index_copy_(0, order, results)


def text_logprobs(model: SharedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Log-probability of each token of a text given those before it: ids, mask (B, T) -> (B, T-1), 0 where masked."""
    hidden, columns = _hidden_states(model, ids, mask)
    pair_mask = mask[:, 1:] & mask[:, :-1]
    states, next_ids = _select_cells(hidden, columns[:, :-1], ids[:, 1:], pair_mask)
    logprobs = _logprobs_in_chunks(model, states, next_ids, 1.0, needs_entropy=False)[0]
    return _place_cells(logprobs, pair_mask, ids.shape[1] - 1)


def counted_logprobs(model: SharedModel, ids: Tensor, counted: Tensor, **batch: Tensor) -> Tensor:
    """Log-probability of the counted tokens of a batch given all before them: ids, counted (B, T) -> (N,), float32.

    `batch` is the model's input: `input_ids`, padded on the right, where no token sees it; or packed, with
    `position_ids`; (B, T) each.
    """
    batch.pop("attention_mask", None)
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


def _hidden_states(model: SharedModel, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """ids, mask (B, T) -> hidden states (B, W, H), and the column (B, T) in which each token's state is.

    The tokens of a row stand side by side from column 0 on, and W is the length of the longest row. Padding comes
    after them, where no token sees it: attention needs no mask, and runs PyTorch's causal kernel. The cache is off:
    with it, positions that start again could be read as packed documents.
    """
    columns = position_ids(mask)
    width = int(mask.sum(dim=1).max())
    # padding may be any number, but an embedding refuses numbers that are not ids; here it adds 0
    side_by_side = ids.new_zeros((len(ids), width)).scatter_add_(1, columns, torch.where(mask, ids, 0))
    return model.backbone(input_ids=side_by_side, use_cache=False).last_hidden_state, columns


def _response_hidden_states(model: SharedModel, batch: Sequences) -> tuple[Tensor, Tensor, Tensor]:
    """Of the N response tokens, row by row: the states from which they are drawn (N, H), their ids (N,).

    And the response mask of the trimmed batch, in whose True cells they stand.
    """
    trimmed = batch.trim()
    hidden, columns = _hidden_states(model, *_join(trimmed))
    columns_before = columns[:, trimmed.prompt_ids.shape[1] - 1 : -1]
    states, ids = _select_cells(hidden, columns_before, trimmed.response_ids, trimmed.response_mask)
    return states, ids, trimmed.response_mask


def _select_cells(hidden: Tensor, columns: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of the N True cells of mask (B, R): hidden (B, W, H) at their row and their column (B, R), (N, H); ids (N,)."""
    cells = mask.flatten().nonzero().squeeze(1)  # once for both: it waits for the GPU
    starts = hidden.shape[1] * torch.arange(len(hidden), device=hidden.device)
    places = (starts[:, None] + columns).flatten()[cells]
    return hidden.flatten(0, 1).index_select(0, places), ids.flatten()[cells]


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
