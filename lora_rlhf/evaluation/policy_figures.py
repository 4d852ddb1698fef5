"""How a system behaves: how far it is from the reference, how sure of itself, how long, how varied its answers are."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from lora_rlhf.algo.kl import k1, k3
from lora_rlhf.algo.masking import zero_masked
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.evaluation.columns import Column
from lora_rlhf.evaluation.generation import sequences_of
from lora_rlhf.model.drawing import Response
from lora_rlhf.model.forward import Sequences, in_micro_batches, response_logprobs
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stats.text_metrics import (
    distinct_contributions,
    has_common_opening,
    has_repeated_answer,
    has_repeated_template,
    is_refusal,
    repeated_gram_share,
    self_bleu,
    split_words,
)


def distance_columns(logprobs: Tensor, ref_logprobs: Tensor, entropy: Tensor, mask: Tensor) -> dict[str, Column]:
    """KL from the reference and entropy, of a system over its own responses: (B, R) each, in nats.

    k3 is averaged over all tokens and k1 summed over each response (see `algo.kl`); the responses were sampled at
    temperature 1, which is the distribution that the log-probabilities describe.
    """
    tokens = mask.sum(dim=1).tolist()
    logprobs, ref_logprobs, entropy = (
        zero_masked(values.double(), mask) for values in (logprobs, ref_logprobs, entropy)
    )
    return {
        "kl_per_token": Column("ratio", k3(logprobs, ref_logprobs).sum(dim=1).tolist(), tokens),
        "kl_per_response": Column("mean", k1(logprobs, ref_logprobs).sum(dim=1).tolist()),
        "entropy": Column("ratio", entropy.sum(dim=1).tolist(), tokens),
    }


@torch.no_grad()
def measure_distances(
    model: SharedModel,
    roles: Mapping[str, str],
    reference: str,
    prompts: Sequence[EncodedPrompt],
    answers: Mapping[str, Sequence[Response]],
    size: int,
) -> dict[str, dict[str, Column]]:
    """{system: its `distance_columns`}; roles: {system: its role}, answers: {system: one to each prompt, sampled at 1}.

    The reference reads all systems' answers in one pass, at most `size` at a time; a system that is the reference reads
    its own only once.
    """
    batches = {name: sequences_of(model, prompts, answers[name]) for name in roles}
    not_reference = [name for name, role in roles.items() if role != reference]
    by_system: dict[str, Tensor] = {}
    with tqdm(total=len(roles) + bool(not_reference), desc="log-probabilities", unit="pass", leave=False) as bar:
        for name, role in roles.items():
            by_system[name] = _read(model, role, batches[name], size)
            bar.update()
        by_reference: dict[str, Tensor] = {}
        if not_reference:
            joined = [answer for name in not_reference for answer in answers[name]]
            batch = sequences_of(model, [*prompts] * len(not_reference), joined)
            parts = _read(model, reference, batch, size)[..., 0].split(len(prompts))
            by_reference = dict(zip(not_reference, parts, strict=True))
            bar.update()
    columns = {}
    for name, values in by_system.items():
        mask, (logprobs, entropy) = batches[name].response_mask, values.unbind(-1)
        ref_logprobs = by_reference[name][:, : mask.shape[1]] if name in by_reference else logprobs
        columns[name] = distance_columns(logprobs, ref_logprobs, entropy, mask)
    return columns


def _read(model: SharedModel, role: str, batch: Sequences, size: int) -> Tensor:
    """Log-probabilities and entropies of one role: (B, R, 2)."""
    with model.role(role):
        return in_micro_batches(lambda part: torch.stack(response_logprobs(model, part), dim=-1), batch, size)


def answer_columns(
    prompts: Sequence[str], answers: Sequence[Response], declines: Callable[[str], bool] = is_refusal
) -> dict[str, Column]:
    """Length, how answers end, and what their text tells, of one answer to each prompt.

    Those that say how alike the answers are (distinct-n, self-BLEU, the collapses) belong to these answers together:
    for a category, call this with the category's alone.
    """
    texts = [answer.text for answer in answers]
    return {
        "length": Column("mean", [float(len(answer.ids)) for answer in answers]),
        "words": Column("mean", [float(len(split_words(text))) for text in texts]),
        "eos_rate": Column("share", [answer.finished for answer in answers]),
        "distinct_1": Column("mean", distinct_contributions(texts, 1)),
        "distinct_2": Column("mean", distinct_contributions(texts, 2)),
        "self_bleu": Column("mean", self_bleu(texts)),
        "repetition": Column("mean", [repeated_gram_share(text) for text in texts]),
        "opening_collapse": Column("share", has_common_opening(texts)),
        "template_collapse": Column("share", has_repeated_answer(texts)),
        "same_template": Column("share", has_repeated_template(prompts, texts)),
        "refusal_rate": Column("share", [declines(text) for text in texts]),
    }
