"""Padding with explicit masks, micro-batches of similar length, and text blocks that resume where they stopped."""

import json
from itertools import islice

import pytest
import torch

from lora_rlhf.data.batches import pad_left, pad_right, text_blocks
from lora_rlhf.data.schema import Text
from lora_rlhf.data.template import encode_text
from lora_rlhf.errors import UserError

TEXTS = [Text("The cat sleeps on the warm mat."), Text("Penguins live in the cold south."), Text("One </s> two.")] * 4


def test_pad_left_ends_and_pad_right_begins_at_the_edge() -> None:
    ids, mask = pad_left([[1, 2, 3], [4], []], 9)
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4], [9, 9, 9]]
    assert mask.tolist() == [[True] * 3, [False, False, True], [False] * 3]
    ids, mask = pad_right([[1, 2, 3], [4], []], 9)
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9], [9, 9, 9]]
    assert mask.tolist() == [[True] * 3, [True, False, False], [False] * 3]
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)
    assert pad_left([], 0)[0].shape == (0, 0)


def test_masks_do_not_depend_on_the_pad_id() -> None:
    ids, mask = pad_right([[7, 0, 7], [7]], 7)
    assert ids[mask].tolist() == [7, 0, 7, 7]
    assert mask.sum().item() == 4


@pytest.mark.parametrize("variant_name", ["plain", "plain_bos"])
def test_blocks_are_the_texts_with_eos_between(make_tokenizer, variant_name: str) -> None:
    tokenizer = make_tokenizer(variant_name)
    bos = [tokenizer.bos_token_id] if variant_name == "plain_bos" else []
    stream = [token for text in TEXTS for token in (*bos, *encode_text(tokenizer, text.text), tokenizer.eos_token_id)]
    blocks = text_blocks(TEXTS, tokenizer, 8, seed=0)
    count = len(stream) // 8
    epoch = [block.tolist() for block in islice(blocks, count)]
    expected = [stream[start : start + 8] for start in range(0, count * 8, 8)]
    assert sorted(epoch) == sorted(expected)
    assert epoch != expected  # shuffled
    again = [block.tolist() for block in islice(blocks, count)]
    assert sorted(again) == sorted(expected)
    assert again != epoch  # in another order each epoch
    assert next(blocks).dtype == torch.int64
    assert sum(stream.count(token) for token in [tokenizer.eos_token_id]) == len(TEXTS)


@pytest.mark.parametrize("consumed", [0, 1, 5, 200])
def test_blocks_resume_where_they_stopped(tokenizer, consumed: int) -> None:
    first = text_blocks(TEXTS, tokenizer, 8, seed=3)
    for _ in range(consumed):
        next(first)
    state = json.loads(json.dumps(first.state_dict()))
    expected = [next(first).tolist() for _ in range(60)]
    second = text_blocks(TEXTS, tokenizer, 8, seed=3)
    second.load_state_dict(state)
    assert [next(second).tolist() for _ in range(60)] == expected
    other_seed = text_blocks(TEXTS, tokenizer, 8, seed=4)
    assert [next(other_seed).tolist() for _ in range(20)] != [
        block.tolist() for block in islice(text_blocks(TEXTS, tokenizer, 8, seed=3), 20)
    ]


def test_resuming_on_other_text_is_an_error(tokenizer) -> None:
    state = text_blocks(TEXTS, tokenizer, 8, seed=3).state_dict()
    for texts, block_tokens, seed in ((TEXTS[1:], 8, 3), (TEXTS, 9, 3), (TEXTS, 8, 4)):
        with pytest.raises(UserError, match="resume with the same text"):
            text_blocks(texts, tokenizer, block_tokens, seed).load_state_dict(state)


def test_too_little_text_is_an_error(make_tokenizer, tokenizer) -> None:
    count = len(encode_text(tokenizer, TEXTS[0].text)) + 1
    with pytest.raises(UserError, match=f"the texts have {count} tokens, less than one block of {count + 1}"):
        text_blocks(TEXTS[:1], tokenizer, count + 1, seed=0)
    assert len(text_blocks(TEXTS[:1], tokenizer, count, seed=0).blocks) == 1
    with pytest.raises(UserError, match="at least 1, got 0"):
        text_blocks(TEXTS, tokenizer, 0, seed=0)
    with pytest.raises(UserError, match="no EOS"):
        text_blocks(TEXTS, make_tokenizer("no_eos"), 8, seed=0)
