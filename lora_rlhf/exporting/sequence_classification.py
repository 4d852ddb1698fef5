"""The reward model as a plain sequence classifier: tensors, config, padding token and template that give its score.

Our score is head(h) - offset, read at the token that ends the response. The plain class has a head without a bias, and
reads the last token that is not padding.
"""

import functools
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lora_rlhf.data.schema import Message, Prompt
from lora_rlhf.data.template import ensure_template, render_prompt, render_response, stop_ids
from lora_rlhf.model.classifier import Classifier
from lora_rlhf.model.heads import SCORE
from lora_rlhf.model.merging import Mode, Part, Planned
from lora_rlhf.model.tensor_files import Entry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("lora_rlhf")

ANSWER = "Fine: 1, 2 and 3."
OFFSET = "score_offset"  # the config's own field: what is still to be subtracted from the class's output
SAMPLES = (
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
) -> tuple[list[Planned], float]:
    """The merged model's tensors as the classifier's, and the offset that they do not contain. head (1, H).

    Where the last norm has a bias b, head(h + d) with d = -offset * head / |head|^2 is head(h) - offset: b + d is
    stored, and 0 remains. Elsewhere nothing that the class computes is constant, and all of it remains.
    """
    rounded = head.to(dtype).float()
    score = Planned(Entry(f"{SCORE}.weight", dtype, (1, head.shape[1])), lambda: iter([rounded.to(dtype)]))
    kept, remains = [], offset
    for part in parts:
        if part.name not in classifier.parameters:
            continue
        planned = part.planned(mode, dtype, device)
        if part.name == classifier.norm_bias:
            added = -offset * rounded[0] / rounded[0].square().sum()
            planned, remains = Planned(planned.entry, functools.partial(_plus, planned, added)), 0.0
        kept.append(planned)
    return [*kept, score], remains


def _plus(planned: Planned, added: Tensor) -> Iterator[Tensor]:
    values = torch.cat([piece.cpu() for piece in planned.pieces()])
    yield (values.float() + added).to(values.dtype)


def classifier_settings(classifier: Classifier, offset: float, pad: int | None) -> dict[str, Any]:
    """What config.json says of a classifier with one output. `offset`: what remains to be subtracted from it."""
    return {
        "architectures": [classifier.architecture],
        "id2label": {"0": SCORE},
        "label2id": {SCORE: 0},
        "problem_type": "regression",  # transformers' pipeline then gives the score itself, not its sigmoid
        "pad_token_id": pad,
        OFFSET: offset,
    }


def prepare_tokenizer(tokenizer: "PreTrainedTokenizerBase", num_rows: int) -> tuple[int | None, bool]:
    """Gives the tokenizer (in place) a padding token and a template that the plain class can be used with.

    Padding goes to the right, and its token ends no response, so that the last token that is not padding is the one
    that ends it, also where the base pads with EOS. The template ends where the response does.

    Returns the padding token's id, or None where there is no room for one (then one conversation at a time can be
    scored), and whether the template writes sample conversations with the very tokens that training had.
    """
    ends, trained = stop_ids(tokenizer), _trained_ids(tokenizer)
    tokenizer.chat_template = scoring_template(tokenizer, ends[0])
    tokenizer.padding_side = "right"
    pad = _padding(tokenizer, ends, num_rows)
    tokenizer.pad_token = pad
    is_exact = _plain_ids(tokenizer) == trained
    if not is_exact:
        log.warning(
            "the chat template does not write a conversation with the tokens of training: give the exported reward "
            "model token ids, not text"
        )
    return None if pad is None else int(tokenizer.convert_tokens_to_ids(pad)), is_exact


def _padding(tokenizer: "PreTrainedTokenizerBase", ends: list[int], num_rows: int) -> str | None:
    """The tokenizer's own padding token if it ends no response; else one that is no text, or a new one."""
    # every special token is among those that were added
    added = [token.content for id, token in sorted(tokenizer.added_tokens_decoder.items()) if id not in ends]
    named = [token for token in added if "pad" in token.lower()]
    for token in (tokenizer.pad_token, *named, tokenizer.unk_token, tokenizer.bos_token):
        if token in added:
            return str(token)
    if len(tokenizer) < num_rows:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        return "<|pad|>"
    return None


def scoring_template(tokenizer: "PreTrainedTokenizerBase", end: int) -> str:
    """The chat template, ending a conversation with the token that ends the last answer: what our head reads.

    Many write a line break behind it, where the plain class would read; some do not write it at all.
    """
    template = ensure_template(tokenizer)
    answer = "Probe7Answer"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    tail = tokenizer.apply_chat_template(messages, tokenize=False).rpartition(answer)[2]
    token = tokenizer.convert_ids_to_tokens(end)
    if tail.endswith(token):
        return template
    cut = f"conversation.rpartition({token!r})[0] + {token!r}" if token in tail else f"conversation + {token!r}"
    whole = template.removesuffix("\n")  # which Jinja leaves out at the end of a template, but not inside it
    return (
        f"{{% set conversation %}}{whole}{{% endset %}}"
        f"{{{{ {cut} if messages[-1]['role'] == 'assistant' and not add_generation_prompt else conversation }}}}"
    )


def _trained_ids(tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    return [
        [*render_prompt(tokenizer, Prompt(messages)), *render_response(tokenizer, Prompt(messages), ANSWER)]
        for messages in SAMPLES
    ]


def _plain_ids(tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    answer = Message("assistant", ANSWER)
    conversations = [
        [{"role": message.role, "content": message.content} for message in (*messages, answer)] for messages in SAMPLES
    ]
    return [list(tokenizer.apply_chat_template(whole, return_dict=False)) for whole in conversations]
