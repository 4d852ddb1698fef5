"""Padding with explicit masks, and the batches that trainers see."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from lora_rlhf.data.batches import IGNORED_LABEL, packed_sft_batch, pad_left, pad_right, ranking_batch, sft_batch
from lora_rlhf.data.encode import EncodedExample, EncodedRanking


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


def test_a_batch_of_demonstrations_has_labels_on_responses_alone() -> None:
    batch = sft_batch([EncodedExample([5, 6], [7, 9]), EncodedExample([5], [8]), EncodedExample([9], [9, 9])], 9)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 9], [5, 8, 9, 9], [9, 9, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 7, 9], [-100, 8, -100, -100], [-100, 9, 9, -100]]


def test_a_packed_batch_is_one_row_whose_positions_begin_again() -> None:
    batch = packed_sft_batch([EncodedExample([5, 6], [7, 9]), EncodedExample([5], [8]), EncodedExample([], [4, 3])])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7, 9, 5, 8, 4, 3]],
        "labels": [[-100, -100, 7, 9, -100, 8, -100, 3]],  # 4 would be predicted from 8, which is another document's
        "position_ids": [[0, 1, 2, 3, 0, 1, 0, 1]],
    }


IDS = st.lists(st.integers(0, 20), min_size=1, max_size=12)
EXAMPLES = st.lists(st.builds(EncodedExample, IDS, IDS), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(examples=EXAMPLES, pad=st.integers(0, 20))
def test_batches_are_those_of_trl(examples: list[EncodedExample], pad: int) -> None:
    rows = [
        {"input_ids": e.prompt_ids + e.response_ids, "labels": [IGNORED_LABEL] * len(e.prompt_ids) + e.response_ids}
        for e in examples
    ]
    expected = DataCollatorForLanguageModeling(pad)(rows)
    found = sft_batch(examples, pad)
    assert found.keys() == expected.keys()
    packed = packed_sft_batch(examples)
    flat = DataCollatorForLanguageModeling(pad, padding_free=True)(rows)
    for mine, theirs in ((found, expected), (packed, {name: flat[name] for name in packed})):
        for name, tensor in mine.items():
            assert torch.equal(tensor, theirs[name]), name
            assert tensor.dtype == theirs[name].dtype == torch.int64


def test_a_batch_of_rankings_repeats_the_prompt_for_each_response() -> None:
    rankings = [EncodedRanking([1, 2], [[3], [4, 5, 6]], [2, 1]), EncodedRanking([7], [[8], [], [9]], [1, 2, 3])]
    prompt_ids, prompt_mask, response_ids, response_mask = ranking_batch(rankings, 0)
    assert prompt_ids.tolist() == [[1, 2], [1, 2], [0, 7], [0, 7], [0, 7]]
    assert prompt_mask.long().tolist() == [[1, 1], [1, 1], [0, 1], [0, 1], [0, 1]]
    assert response_ids.tolist() == [[3, 0, 0], [4, 5, 6], [8, 0, 0], [0, 0, 0], [9, 0, 0]]
    assert response_mask.sum(dim=1).tolist() == [1, 3, 1, 0, 1]
