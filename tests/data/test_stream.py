"""Text streams: every block once an epoch, resumed exactly, in memory that does not grow with the text."""

import json
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lora_rlhf.data.schema import Text
from lora_rlhf.data.stream import TextStream
from lora_rlhf.data.template import encode_text
from lora_rlhf.system.errors import UserError

SENTENCES = ["The cat sleeps on the warm mat.", "Penguins live in the cold south.", "One </s> two.", "It's 7 o'clock."]
TEXTS = [Text(f"{number}. {sentence}") for number in range(4) for sentence in SENTENCES]
NUMBERED = [Text(f"{number:04d}") for number in range(60)]  # every block of 5 tokens is one text and its EOS


def cut(tokenizer: PreTrainedTokenizerFast, texts: list[Text], size: int, bos: list[int]) -> list[list[int]]:
    """The texts' whole blocks in order."""
    ids = [token for text in texts for token in (*bos, *encode_text(tokenizer, text.text), tokenizer.eos_token_id)]
    return [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]


def draw(stream: TextStream, count: int) -> list[list[int]]:
    return [block.tolist() for block in islice(stream, count)]


@pytest.mark.parametrize("buffer_blocks", [1, 3, 1000])
@pytest.mark.parametrize("name", ["plain", "plain_bos"])
def test_every_epoch_has_every_block_once(
    make_tokenizer: Callable[[str], PreTrainedTokenizerFast], name: str, buffer_blocks: int
) -> None:
    tokenizer = make_tokenizer(name)
    expected = cut(tokenizer, TEXTS, 8, [tokenizer.bos_token_id] if name == "plain_bos" else [])
    assert len(expected) > 20
    stream = TextStream(lambda: TEXTS, tokenizer, 8, seed=0, buffer_blocks=buffer_blocks)
    first, second = draw(stream, len(expected)), draw(stream, len(expected))
    assert sorted(first) == sorted(second) == sorted(expected)
    if buffer_blocks == 1:
        assert first == second == expected
    else:
        assert first != expected and second != expected and first != second
    block = next(stream)
    assert (block.dtype, tuple(block.shape)) == (torch.int64, (8,))


def test_every_order_is_as_likely(tokenizer: PreTrainedTokenizerFast) -> None:
    blocks = cut(tokenizer, NUMBERED[:3], 5, [])
    assert len(blocks) == 3
    orders: Counter[tuple[int, ...]] = Counter()
    stream = TextStream(lambda: NUMBERED[:3], tokenizer, 5, seed=1, buffer_blocks=3)
    for _ in range(240):
        orders[tuple(blocks.index(block) for block in draw(stream, 3))] += 1
    assert len(orders) == 6
    assert all(20 <= count <= 60 for count in orders.values())  # 40 expected, 5.8 sd


def test_a_block_is_at_most_a_buffer_early(tokenizer: PreTrainedTokenizerFast) -> None:
    blocks = cut(tokenizer, NUMBERED, 5, [])
    assert len(blocks) == len(NUMBERED)
    stream = TextStream(lambda: NUMBERED, tokenizer, 5, seed=0, buffer_blocks=10)
    early = [blocks.index(block) - place for place, block in enumerate(draw(stream, len(blocks)))]
    assert max(early) <= 9
    assert max(early) >= 5 and min(early) <= -5  # and the buffer is made use of


def test_text_is_read_as_it_is_needed_and_anew_each_epoch(tokenizer: PreTrainedTokenizerFast) -> None:
    read: list[str] = []

    def open_texts() -> Iterator[Text]:
        for text in NUMBERED:
            read.append(text.text)
            yield text

    stream = TextStream(open_texts, tokenizer, 5, seed=0, buffer_blocks=10)
    assert len(read) == 10
    draw(stream, 3)
    assert len(read) == 13
    draw(stream, 57)
    assert read == [text.text for text in NUMBERED]
    next(stream)
    assert read[60:] == read[:11]


@pytest.mark.parametrize("buffer_blocks", [4, 1000])
@pytest.mark.parametrize("drawn", [0, 1, 5, 59, 60, 61, 150])
def test_resumes_exactly(tokenizer: PreTrainedTokenizerFast, drawn: int, buffer_blocks: int) -> None:
    stream = TextStream(lambda: NUMBERED, tokenizer, 5, seed=3, buffer_blocks=buffer_blocks)
    draw(stream, drawn)
    state = json.loads(json.dumps(stream.state_dict()))
    assert (state["epoch"] * 60 + state["drawn"], state["seed"]) == (drawn, 3)
    expected = draw(stream, 100)
    resumed = TextStream(lambda: NUMBERED, tokenizer, 5, seed=3, buffer_blocks=buffer_blocks)
    draw(resumed, 7)
    resumed.load_state_dict(state)
    assert draw(resumed, 100) == expected


def test_the_seed_decides_the_order(tokenizer: PreTrainedTokenizerFast) -> None:
    one, same, other = (TextStream(lambda: NUMBERED, tokenizer, 5, seed, 20) for seed in (3, 3, 4))
    order = draw(one, 60)
    assert draw(same, 60) == order
    assert draw(other, 60) != order


def test_resuming_on_anything_else_is_an_error(make_tokenizer: Callable[[str], PreTrainedTokenizerFast]) -> None:
    plain, bos = make_tokenizer("plain"), make_tokenizer("plain_bos")
    state = TextStream(lambda: TEXTS, plain, 8, 3, 6).state_dict()
    TextStream(lambda: TEXTS, plain, 8, 3, 6).load_state_dict(state)
    for texts, tokenizer, block_tokens, seed, buffer_blocks in (
        (TEXTS[1:], plain, 8, 3, 6),
        (TEXTS, bos, 8, 3, 6),
        (TEXTS, plain, 4, 3, 6),
        (TEXTS, plain, 8, 3, 5),
        (TEXTS, plain, 8, 4, 6),
    ):
        stream = TextStream(partial(list, texts), tokenizer, block_tokens, seed, buffer_blocks)
        name = "fingerprint" if seed == 3 else "seed"
        with pytest.raises(UserError, match=f"{name} was {state[name]}.*resume with the same text"):
            stream.load_state_dict(state)


@pytest.mark.parametrize("count", [10, 30])  # of which the buffer holds 12
def test_text_that_became_shorter_is_an_error(tokenizer: PreTrainedTokenizerFast, count: int) -> None:
    stream = TextStream(lambda: NUMBERED, tokenizer, 5, 3, 12)
    draw(stream, 40)
    shorter = TextStream(lambda: NUMBERED[:count], tokenizer, 5, 3, 12)
    with pytest.raises(UserError, match=f"40 blocks or more .* has {count} now" if count > 12 else "fingerprint"):
        shorter.load_state_dict(stream.state_dict())


def test_too_little_text_is_an_error(
    make_tokenizer: Callable[[str], PreTrainedTokenizerFast], tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(UserError, match="the texts have 5 tokens, less than one block of 6"):
        TextStream(lambda: NUMBERED[:1], tokenizer, 6, seed=0)
    assert draw(TextStream(lambda: NUMBERED[:1], tokenizer, 5, seed=0), 2) == cut(tokenizer, NUMBERED[:1], 5, []) * 2
    with pytest.raises(UserError, match="the texts have 0 tokens"):
        TextStream(lambda: [], tokenizer, 6, seed=0)
    with pytest.raises(UserError, match="block_tokens must be at least 1, got 0"):
        TextStream(lambda: TEXTS, tokenizer, 0, seed=0)
    with pytest.raises(UserError, match="buffer_blocks must be at least 1, got 0"):
        TextStream(lambda: TEXTS, tokenizer, 8, seed=0, buffer_blocks=0)
    with pytest.raises(UserError, match="no EOS"):
        TextStream(lambda: TEXTS, make_tokenizer("no_eos"), 8, seed=0)


def test_text_that_can_be_read_only_once_is_an_error_not_an_endless_loop(tokenizer: PreTrainedTokenizerFast) -> None:
    once = iter(NUMBERED)
    stream = TextStream(lambda: once, tokenizer, 5, seed=0)
    draw(stream, 60)
    with pytest.raises(UserError, match="the texts have 0 tokens"):
        next(stream)


def test_memory_does_not_grow_with_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    text = Text(" ".join(SENTENCES) * 44)  # 4 KiB
    tokens = len(encode_text(tokenizer, text.text)) + 1

    def peak(count: int) -> int:
        """Bytes in use at most while one epoch over `count` texts is drawn."""
        tracemalloc.start()
        stream = TextStream(lambda: (text for _ in range(count)), tokenizer, 128, seed=0, buffer_blocks=32)
        for _ in range(count * tokens // 128):
            next(stream)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(5)  # what is allocated once and for all
    assert 10 * tokens > 2 * 32 * 128  # with 10 texts the buffer is full
    assert 200 * tokens * 4 > 1_000_000  # bytes, were all tokens of 200 texts held
    assert peak(200) < peak(10) + 20_000
