"""The alignment tax: the loss from training on plain text and on questions with a right answer."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from lora_rlhf.data.batches import pad_right, ranking_batch
from lora_rlhf.data.encode import EncodedRanking, Limits, encode_ranking
from lora_rlhf.data.refusals import BadRow, RefusedRows
from lora_rlhf.data.schema import Ranking, Text
from lora_rlhf.data.template import bos_before_text, encode_text, pad_id
from lora_rlhf.evaluation.columns import Column
from lora_rlhf.model.forward import Sequences, apply_in_micro_batches, response_logprobs, text_logprobs
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.probes.sets import Choice
from lora_rlhf.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_BLOCK_TOKENS = 2048  # tokens of a block, if the model's context is longer: longer blocks would take too long
MOST_TOKENS = 65536  # of held-out text that is read: enough for an interval of about a percent


@dataclass(frozen=True)
class PackedText:
    """Held-out text in blocks, as training reads it: ids and mask (N, T), and the document number of each token.

    `document_numbers` (N, T) is -1 for tokens that are not counted: padding, BOS, and the first of a block, which has
    no token before it.
    """

    ids: Tensor
    mask: Tensor
    document_numbers: Tensor
    num_documents: int


def block_tokens(model: SharedModel) -> int:
    """The number of tokens of a block: the model's context, at most MOST_BLOCK_TOKENS."""
    return min(getattr(model.config, "max_position_embeddings", None) or MOST_BLOCK_TOKENS, MOST_BLOCK_TOKENS)


def pack_text(
    tokenizer: "PreTrainedTokenizerBase", texts: Iterable[Text], window: int, most_tokens: int = MOST_TOKENS
) -> PackedText:
    """Cuts the first `most_tokens` tokens of the texts, as one stream, into blocks of `window` tokens.

    EOS follows each text (see `data.stream`). Unlike in training, the last block may be shorter. Raises UserError for a
    tokenizer without EOS, and for text of fewer than two tokens.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer {tokenizer.name_or_path!r} has no EOS token to put between texts")
    bos, eos = bos_before_text(tokenizer), tokenizer.eos_token_id
    ids: list[int] = []
    numbers: list[int] = []  # of the documents of `ids`
    for number, text in enumerate(texts):
        text_ids = [*encode_text(tokenizer, text.text), eos]
        ids += [*bos, *text_ids]
        numbers += [-1] * len(bos) + [number] * len(text_ids)
        if len(ids) >= most_tokens:
            break
    starts = range(0, min(len(ids), most_tokens), window)
    blocks = [ids[start : min(start + window, most_tokens)] for start in starts]
    block_numbers = [[-1, *numbers[start + 1 : min(start + window, most_tokens)]] for start in starts]
    num_documents = max(itertools.chain(*block_numbers), default=-1) + 1
    if not num_documents:
        raise UserError(f"the held-out text has {len(ids)} tokens: too few to predict one from another")
    (padded, mask), (document_numbers, _) = pad_right(blocks, pad_id(tokenizer)), pad_right(block_numbers, -1)
    return PackedText(padded, mask, document_numbers, num_documents)


@torch.no_grad()
def perplexity_column(model: SharedModel, role: str, text: PackedText, batch_size: int) -> Column:
    """exp(-mean log-probability) of the text's counted tokens, by document; `batch_size` blocks at a time.

    All tokens have the same weight. Only documents are independent of each other, so intervals and paired tests
    resample documents.
    """
    losses = torch.zeros(text.num_documents, dtype=torch.float64)
    tokens = torch.zeros(text.num_documents, dtype=torch.float64)
    with model.role(role):
        for start in range(0, len(text.ids), batch_size):
            rows = slice(start, start + batch_size)
            logprobs = text_logprobs(model, text.ids[rows].to(model.device), text.mask[rows].to(model.device))
            numbers = text.document_numbers[rows, 1:]
            is_counted = numbers >= 0
            losses.index_add_(0, numbers[is_counted], -logprobs.cpu().double()[is_counted])
            tokens.index_add_(0, numbers[is_counted], torch.ones(int(is_counted.sum()), dtype=torch.float64))
    return Column("perplexity", losses.tolist(), tokens.tolist())


def encode_choices(
    tokenizer: "PreTrainedTokenizerBase", choices: Iterable[Choice], limits: Limits
) -> tuple[list[EncodedRanking], RefusedRows]:
    """Encodes questions as messages of the user and options as answers of the assistant; the right one has rank 1.

    A question with an option that exceeds the limits is refused, because fewer options would be easier.
    """
    questions, refused_rows = [], RefusedRows()
    for choice in choices:
        ranks = [1 + (option != choice.answer) for option in range(len(choice.options))]
        row = encode_ranking(
            tokenizer, Ranking(choice.prompt, tuple(choice.options), tuple(ranks)), limits, refused_rows
        )
        if row is not None and len(row.ranks) == len(ranks):
            questions.append(row)
        elif row is not None:
            refused_rows.add(
                choice.prompt.origin, BadRow("an option of a question is too long, so the question is left out")
            )
    return questions, refused_rows


@torch.no_grad()
def choice_column(model: SharedModel, role: str, questions: Sequence[EncodedRanking], batch_size: int) -> Column:
    """Whether the right option has the highest mean log-probability per token, EOS included; `batch_size` at a time.

    The mean is used because a sum would favour short options ("acc_norm" of EleutherAI's harness, which divides by
    characters).
    """
    batch = Sequences(*ranking_batch(questions, pad_id(model.tokenizer))).to(model.device)
    with model.role(role):
        logprobs = apply_in_micro_batches(
            lambda part: response_logprobs(model, part, needs_entropy=False)[0], batch, batch_size
        )
    means = (logprobs.double().sum(dim=1) / batch.response_mask.sum(dim=1)).cpu()
    means_by_question = means.split([len(question.ranks) for question in questions])
    is_right = [
        question.ranks[int(option_means.argmax())] == 1
        for question, option_means in zip(questions, means_by_question, strict=True)
    ]
    return Column("share", is_right)


def guessing_accuracy(questions: Sequence[EncodedRanking]) -> float:
    """The accuracy of guessing."""
    return sum(1 / len(question.ranks) for question in questions) / len(questions)


def measure_tax(
    model: SharedModel,
    role_by_system: Mapping[str, str],
    text: PackedText | None,
    questions: Sequence[EncodedRanking],
    batch_size: int,
) -> dict[str, dict[str, Column]]:
    """{system: {"perplexity", "choice_accuracy"}}, without those for which there is no text or no question."""
    columns: dict[str, dict[str, Column]] = {name: {} for name in role_by_system}
    systems = tqdm(role_by_system.items(), desc="alignment tax", unit="system", disable=text is None and not questions)
    for name, role in systems:
        if text is not None:
            columns[name]["perplexity"] = perplexity_column(model, role, text, batch_size)
        if questions:
            columns[name]["choice_accuracy"] = choice_column(model, role, questions, batch_size)
    return columns
