"""A system's distance from the reference and its entropy, and the length and variety of its answers."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from lora_rlhf.algo.kl import k1, k3
from lora_rlhf.algo.masking import zero_masked
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.evaluation.columns import Column
from lora_rlhf.evaluation.generation import padded_sequences
from lora_rlhf.model.drawing import Response
from lora_rlhf.model.forward import Sequences, apply_in_micro_batches, response_logprobs
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
    """KL from the reference and entropy of a system over its own responses; arguments are (B, R), in nats.

    k3 is averaged over all tokens, and k1 is summed over each response (see `algo.kl`). The responses were sampled at
    temperature 1, whose distribution the log-probabilities describe.
    """
    num_tokens = mask.sum(dim=1).tolist()
    logprobs, ref_logprobs, entropy = (
        zero_masked(values.double(), mask) for values in (logprobs, ref_logprobs, entropy)
    )
    return {
        "kl_per_token": Column("ratio", k3(logprobs, ref_logprobs).sum(dim=1).tolist(), num_tokens),
        "kl_per_response": Column("mean", k1(logprobs, ref_logprobs).sum(dim=1).tolist()),
        "entropy": Column("ratio", entropy.sum(dim=1).tolist(), num_tokens),
    }


@torch.no_grad()
def measure_distances(
    model: SharedModel,
    role_by_system: Mapping[str, str],
    reference: str,
    prompts: Sequence[EncodedPrompt],
    answers: Mapping[str, Sequence[Response]],
    batch_size: int,
) -> dict[str, dict[str, Column]]:
    """{system: its `distance_columns`}. `role_by_system`: {system: its role}.

    answers: {system: one response to each prompt, sampled at temperature 1}. The reference reads the answers of all
    systems in one pass, `batch_size` at a time; a system that is the reference reads its own answers only once.
    """
    batches = {name: padded_sequences(model, prompts, answers[name]) for name in role_by_system}
    other_systems = [name for name, role in role_by_system.items() if role != reference]
    values_by_system: dict[str, Tensor] = {}
    with tqdm(
        total=len(role_by_system) + bool(other_systems), desc="log-probabilities", unit="pass", leave=False
    ) as bar:
        for name, role in role_by_system.items():
            values_by_system[name] = _read_values(model, role, batches[name], batch_size)
            bar.update()
        ref_logprobs_by_system: dict[str, Tensor] = {}
        if other_systems:
            joined_answers = [answer for name in other_systems for answer in answers[name]]
            batch = padded_sequences(model, [*prompts] * len(other_systems), joined_answers)
            parts = _read_values(model, reference, batch, batch_size)[..., 0].split(len(prompts))
            ref_logprobs_by_system = dict(zip(other_systems, parts, strict=True))
            bar.update()
    columns = {}
    for name, values in values_by_system.items():
        mask, (logprobs, entropy) = batches[name].response_mask, values.unbind(-1)
        ref_logprobs = ref_logprobs_by_system[name][:, : mask.shape[1]] if name in ref_logprobs_by_system else logprobs
        columns[name] = distance_columns(logprobs, ref_logprobs, entropy, mask)
    return columns


def _read_values(model: SharedModel, role: str, batch: Sequences, batch_size: int) -> Tensor:
    """Log-probabilities and entropies of one role: (B, R, 2)."""
    with model.role(role):
        return apply_in_micro_batches(
            lambda part: torch.stack(response_logprobs(model, part), dim=-1), batch, batch_size
        )


def answer_columns(
    prompts: Sequence[str], answers: Sequence[Response], detects_refusal: Callable[[str], bool] = is_refusal
) -> dict[str, Column]:
    """Length, end, and figures of the text, of one answer to each prompt.

    Figures on how alike the answers are (distinct-n, self-BLEU, the collapses) belong to all these answers together:
    for a category, call this with the answers of the category only.
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
        "refusal_rate": Column("share", [detects_refusal(text) for text in texts]),
    }
