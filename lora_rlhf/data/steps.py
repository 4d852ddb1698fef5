"""The rule that splits an answer into steps: the text that ends a step. Training, PPO and best of n read it alike."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.template import stop_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HALF_CHARACTER = "\ufffd"


def join_steps(steps: Sequence[str], step_end: str, has_ended: bool) -> str:
    """The answer: each step with the text that ends it, but for the last one, which the answer's end ends as well.

    Where that text is white space, such white space within a step becomes a blank; BadRow for other such text there.
    """
    texts = []
    for number, step in enumerate(steps, start=1):
        text = step.strip().removesuffix(step_end).strip()
        if step_end in text and not step_end.isspace():
            raise BadRow("a step holds the text that ends a step; choose another --step_end", f"step {number}")
        texts.append(" ".join(part.strip() for part in text.split(step_end) if part.strip()))
    joined = (step_end if step_end[-1].isspace() else f"{step_end} ").join(texts)
    return joined + ("" if has_ended and step_end.isspace() else step_end)


def find_step_ends(tokenizer: "PreTrainedTokenizerBase", response_ids: Sequence[int], step_end: str) -> list[int]:
    """The index of the token at which each step of a response ends, in order and all different.

    That is the token that completes `step_end`; the last step ends with the response's last token, which is the one
    that ends the answer if it has ended. Nothing but white space between two ends is no step; a blank response has one.
    """
    ids, stops = list(response_ids), set(stop_ids(tokenizer))
    num_visible = next((index for index, token in enumerate(ids) if token in stops), len(ids))

    def text_of(count: int) -> str:
        return tokenizer.decode(ids[:count], skip_special_tokens=True, clean_up_tokenization_spaces=False)

    text, bounds = text_of(num_visible), [0]
    while (place := text.find(step_end, bounds[-1])) >= 0:
        bounds.append(place + len(step_end))
    bounds.append(len(text))
    ends = [end for start, end in pairwise(bounds) if text[start:end].removesuffix(step_end).strip()]
    indices = []
    for end in ends[:-1]:
        low, high = 1, num_visible  # between them, the fewest tokens whose text holds the end
        while low < high:
            middle = (low + high) // 2
            is_held = len(text_of(middle).rstrip(HALF_CHARACTER)) >= end
            low, high = (low, middle) if is_held else (middle + 1, high)
        indices.append(low - 1)
    return list(dict.fromkeys([*indices, len(ids) - 1]))
