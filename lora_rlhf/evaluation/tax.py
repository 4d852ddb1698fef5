"""The alignment tax: what training may have cost a model on plain text and on questions with a right answer."""

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
from lora_rlhf.data.template import encode_text, leading_bos, pad_id
from lora_rlhf.evaluation.columns import Column
from lora_rlhf.model.forward import Sequences, in_micro_batches, response_logprobs, text_logprobs
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.probes.sets import Choice
from lora_rlhf.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_WINDOW = 2048  # tokens of a block, where the model's context is longer: its passes would take too long
MOST_TOKENS = 65536  # of held-out text that is read: enough for an interval of about a percent


@dataclass(frozen=True)
class PackedText:
    """Held-out text in blocks, as training reads it: ids, mask (N, T), and of each token its document's number.

    `document` (N, T) is -1 for tokens that are not counted: padding, BOS, and a block's first, before which nothing is.
    """

    ids: Tensor
    mask: Tensor
    document: Tensor
    documents: int


def window_of(model: SharedModel) -> int:
    """How many tokens a block has: the model's context, at most MOST_WINDOW."""
    return min(getattr(model.config, "max_position_embeddings", None) or MOST_WINDOW, MOST_WINDOW)


def pack_text(
    tokenizer: "PreTrainedTokenizerBase", texts: Iterable[Text], window: int, most_tokens: int = MOST_TOKENS
) -> PackedText:
    """The texts' first `most_tokens` tokens as one stream, EOS after each, cut into blocks (see `data.stream`).

    Unlike in training, what is left at the end is read too. UserError for a tokenizer without EOS, and for text of less
    than two tokens.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer {tokenizer.name_or_path!r} has no EOS token to put between texts")
    bos, eos = leading_bos(tokenizer), tokenizer.eos_token_id
    ids: list[int] = []
    owners: list[int] = []
    for number, text in enumerate(texts):
        text_ids = [*encode_text(tokenizer, text.text), eos]
        ids += [*bos, *text_ids]
        owners += [-1] * len(bos) + [number] * len(text_ids)
        if len(ids) >= most_tokens:
            break
    starts = range(0, min(len(ids), most_tokens), window)
    blocks = [ids[start : min(start + window, most_tokens)] for start in starts]
    owners_of_blocks = [[-1, *owners[start + 1 : min(start + window, most_tokens)]] for start in starts]
    documents = max(itertools.chain(*owners_of_blocks), default=-1) + 1
    if not documents:
        raise UserError(f"the held-out text has {len(ids)} tokens: too few to predict one from another")
    (padded, mask), (document, _) = pad_right(blocks, pad_id(tokenizer)), pad_right(owners_of_blocks, -1)
    return PackedText(padded, mask, document, documents)


@torch.no_grad()
def perplexity_column(model: SharedModel, role: str, text: PackedText, size: int) -> Column:
    """exp(-mean log-probability) of the text's counted tokens, document by document; `size` blocks at a time.

    All tokens weigh the same. Documents were drawn independently, their tokens were not: intervals and paired tests
    resample documents.
    """
    losses = torch.zeros(text.documents, dtype=torch.float64)
    tokens = torch.zeros(text.documents, dtype=torch.float64)
    with model.role(role):
        for start in range(0, len(text.ids), size):
            rows = slice(start, start + size)
            logprobs = text_logprobs(model, text.ids[rows].to(model.device), text.mask[rows].to(model.device))
            owner = text.document[rows, 1:]
            counted = owner >= 0
            losses.index_add_(0, owner[counted], -logprobs.cpu().double()[counted])
            tokens.index_add_(0, owner[counted], torch.ones(int(counted.sum()), dtype=torch.float64))
    return Column("perplexity", losses.tolist(), tokens.tolist())


def encode_choices(
    tokenizer: "PreTrainedTokenizerBase", choices: Iterable[Choice], limits: Limits
) -> tuple[list[EncodedRanking], RefusedRows]:
    """Questions as the chat asks them and options as the assistant gives them; the right one has rank 1.

    A question of which one option does not fit the limits is refused whole: without it the others are easier.
    """
    kept, refused = [], RefusedRows()
    for choice in choices:
        ranks = [1 + (option != choice.answer) for option in range(len(choice.options))]
        row = encode_ranking(tokenizer, Ranking(choice.prompt, tuple(choice.options), tuple(ranks)), limits, refused)
        if row is not None and len(row.ranks) == len(ranks):
            kept.append(row)
        elif row is not None:
            refused.add(
                choice.prompt.origin, BadRow("an option of a question is too long, so the question is left out")
            )
    return kept, refused


@torch.no_grad()
def choice_column(model: SharedModel, role: str, questions: Sequence[EncodedRanking], size: int) -> Column:
    """Whether the right option is the most probable one, by its mean log-probability per token, its end included.

    By the mean, as a sum would favour short options ("acc_norm" of EleutherAI's harness, there by character); `size`
    options at a time.
    """
    batch = Sequences(*ranking_batch(questions, pad_id(model.tokenizer))).to(model.device)
    with model.role(role):
        logprobs = in_micro_batches(lambda part: response_logprobs(model, part, entropy=False)[0], batch, size)
    means = (logprobs.double().sum(dim=1) / batch.response_mask.sum(dim=1)).cpu()
    means_of = means.split([len(question.ranks) for question in questions])
    right = [question.ranks[int(row.argmax())] == 1 for question, row in zip(questions, means_of, strict=True)]
    return Column("share", right)


def chance(questions: Sequence[EncodedRanking]) -> float:
    """The accuracy of guessing."""
    return sum(1 / len(question.ranks) for question in questions) / len(questions)


def measure_tax(
    model: SharedModel,
    roles: Mapping[str, str],
    text: PackedText | None,
    questions: Sequence[EncodedRanking],
    size: int,
) -> dict[str, dict[str, Column]]:
    """{system: {"perplexity", "choice_accuracy"}}, what there is text or questions for; roles: {system: its role}."""
    columns: dict[str, dict[str, Column]] = {name: {} for name in roles}
    systems = tqdm(roles.items(), desc="alignment tax", unit="system", disable=text is None and not questions)
    for name, role in systems:
        if text is not None:
            columns[name]["perplexity"] = perplexity_column(model, role, text, size)
        if questions:
            columns[name]["choice_accuracy"] = choice_column(model, role, questions, size)
    return columns
