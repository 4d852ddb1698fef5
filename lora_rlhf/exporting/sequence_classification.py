"""The reward model as a plain sequence classifier: tensors, config, padding token and template for the same score.

Our score is head(h) - offset, read at the token that ends the response. The plain class has a head without a bias, and
reads the last token that is not padding.
"""

import functools
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lora_rlhf.data.markup import render_chat
from lora_rlhf.data.schema import Message, Prompt
from lora_rlhf.data.template import ensure_template, render_prompt, render_response, stop_ids
from lora_rlhf.model.classifier import Classifier
from lora_rlhf.model.heads import SCORE
from lora_rlhf.model.merging import Mode, Part, PlannedTensor
from lora_rlhf.model.tensor_files import Entry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("lora_rlhf")

SAMPLE_ANSWER = "Fine: 1, 2 and 3."
OFFSET_FIELD = "score_offset"  # our field of config.json: to be subtracted from the class's output
SAMPLE_CONVERSATIONS = (
    (Message("user", "How are you?"),),
    (Message("user", "Say it twice."), Message("assistant", "It. It."), Message("user", "And\nonce more, please!")),
)


def classifier_tensors(
    parts: Sequence[Part],
    classifier: Classifier,
    head: Tensor,
    offset: float,
    *,
    mode: Mode,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[list[PlannedTensor], float]:
    """The tensors of the classifier, and the offset that they do not contain. head (1, H).

    Where the last norm has a bias b, head(h + d) with d = -offset * head / |head|^2 is head(h) - offset: b + d is
    stored, and the remaining offset is 0. Without such a bias no term of the class is constant, and the whole offset
    remains.
    """
    rounded_head = head.to(dtype).float()
    score = PlannedTensor(Entry(f"{SCORE}.weight", dtype, (1, head.shape[1])), lambda: iter([rounded_head.to(dtype)]))
    tensors, remaining_offset = [], offset
    for part in parts:
        if part.name not in classifier.parameters:
            continue
        planned = part.plan_tensor(mode, dtype, device)
        if part.name == classifier.norm_bias:
            bias_change = -offset * rounded_head[0] / rounded_head[0].square().sum()
            planned, remaining_offset = (
                PlannedTensor(planned.entry, functools.partial(_add_to_pieces, planned, bias_change)),
                0.0,
            )
        tensors.append(planned)
    return [*tensors, score], remaining_offset


def _add_to_pieces(planned: PlannedTensor, change: Tensor) -> Iterator[Tensor]:
    values = torch.cat([piece.cpu() for piece in planned.pieces()])
    yield (values.float() + change).to(values.dtype)


def classifier_settings(classifier: Classifier, offset: float, pad: int | None) -> dict[str, Any]:
    """The settings of config.json for a classifier with one output. `offset`: to be subtracted from the output."""
    return {
        "architectures": [classifier.architecture],
        "id2label": {"0": SCORE},
        "label2id": {SCORE: 0},
        "problem_type": "regression",  # transformers' pipeline then gives the score itself, not its sigmoid
        "pad_token_id": pad,
        OFFSET_FIELD: offset,
    }


def prepare_tokenizer(tokenizer: "PreTrainedTokenizerBase", num_rows: int) -> tuple[int | None, bool]:
    """Gives the tokenizer (in place) a padding token and a template that fit the plain class.

    Padding goes to the right, and its token ends no response. So the last token that is not padding is the one that
    ends the response, even if the base pads with EOS. The template ends where the response ends.

    Returns the padding token's id, and whether the template writes sample conversations with exactly the tokens of
    training. The id is None if the model has no free row for a new token; then only one conversation at a time can be
    scored.
    """
    end_ids, trained_ids = stop_ids(tokenizer), _training_sample_ids(tokenizer)
    tokenizer.chat_template = scoring_template(tokenizer, end_ids[0])
    tokenizer.padding_side = "right"
    pad_token = _find_padding_token(tokenizer, end_ids, num_rows)
    tokenizer.pad_token = pad_token
    is_exact = _template_sample_ids(tokenizer) == trained_ids
    if not is_exact:
        log.warning(
            "the chat template does not write a conversation with the tokens of training: give the exported reward "
            "model token ids, not text"
        )
    return None if pad_token is None else int(tokenizer.convert_tokens_to_ids(pad_token)), is_exact


def _find_padding_token(tokenizer: "PreTrainedTokenizerBase", end_ids: list[int], num_rows: int) -> str | None:
    """The tokenizer's padding token if it ends no response; else another special token, or a new one."""
    # every special token is in added_tokens_decoder
    special_tokens = [
        token.content for id, token in sorted(tokenizer.added_tokens_decoder.items()) if id not in end_ids
    ]
    pad_like_tokens = [token for token in special_tokens if "pad" in token.lower()]
    for token in (tokenizer.pad_token, *pad_like_tokens, tokenizer.unk_token, tokenizer.bos_token):
        if token in special_tokens:
            return str(token)
    if len(tokenizer) < num_rows:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        return "<|pad|>"
    return None


def scoring_template(tokenizer: "PreTrainedTokenizerBase", end_id: int) -> str:
    """The chat template, changed so that a conversation ends with the token that ends the last answer.

    Our head reads that token. Many templates write a line break after it, which the plain class would read; some do not
    write it.
    """
    template = ensure_template(tokenizer)
    answer = "Probe7Answer"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    text_after_answer = render_chat(tokenizer, messages).rpartition(answer)[2]
    end_token = tokenizer.convert_ids_to_tokens(end_id)
    if text_after_answer.endswith(end_token):
        return template
    cut_expression = (
        f"conversation.rpartition({end_token!r})[0] + {end_token!r}"
        if end_token in text_after_answer
        else f"conversation + {end_token!r}"
    )
    inner_template = template.removesuffix("\n")  # Jinja drops a line break at the end of a template, but not inside it
    return (
        f"{{% set conversation %}}{inner_template}{{% endset %}}"
        f"{{{{ {cut_expression} if messages[-1]['role'] == 'assistant' and not add_generation_prompt "
        "else conversation }}"
    )


def _training_sample_ids(tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """The ids of the sample conversations as training encodes them."""
    return [
        [*render_prompt(tokenizer, Prompt(messages)), *render_response(tokenizer, Prompt(messages), SAMPLE_ANSWER)]
        for messages in SAMPLE_CONVERSATIONS
    ]


def _template_sample_ids(tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """The ids of the sample conversations as the tokenizer's template alone encodes them."""
    answer = Message("assistant", SAMPLE_ANSWER)
    conversations = [
        [{"role": message.role, "content": message.content} for message in (*messages, answer)]
        for messages in SAMPLE_CONVERSATIONS
    ]
    return [list(tokenizer.apply_chat_template(conversation, return_dict=False)) for conversation in conversations]
