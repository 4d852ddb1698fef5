"""Ids to padded tensors with masks, and texts to an endless stream of blocks."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lora_rlhf.data.schema import Text
from lora_rlhf.data.template import encode_text, leading_bos
from lora_rlhf.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def pad_left(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """(ids (B, P) int64, mask (B, P) bool): sequences end at the right edge; P is the longest one's length."""
    return _pad(sequences, pad_id, at_left=True)


def pad_right(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """(ids (B, R) int64, mask (B, R) bool): sequences begin at the left edge; R is the longest one's length."""
    return _pad(sequences, pad_id, at_left=False)


def _pad(sequences: Sequence[Sequence[int]], pad_id: int, at_left: bool) -> tuple[Tensor, Tensor]:
    width = max((len(sequence) for sequence in sequences), default=0)
    ids = torch.full((len(sequences), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(sequences), width), dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        start = width - len(sequence) if at_left else 0
        ids[row, start : start + len(sequence)] = torch.tensor(sequence, dtype=torch.int64)
        mask[row, start : start + len(sequence)] = True
    return ids, mask


class TextBlocks:
    """An endless iterator over fixed-size blocks, in a new seeded order each epoch. Its place is two integers."""

    def __init__(self, blocks: Tensor, seed: int):
        self.blocks = blocks  # (N, block_tokens) int32: half the memory of int64
        self.seed = seed
        self.epoch = 0
        self.index = 0
        self._order = self._shuffled()

    def __iter__(self) -> "TextBlocks":
        return self

    def __next__(self) -> Tensor:
        """The next block, (block_tokens,) int64."""
        if self.index == len(self.blocks):
            self.epoch, self.index = self.epoch + 1, 0
            self._order = self._shuffled()
        block = self.blocks[self._order[self.index]]
        self.index += 1
        return block.long()

    def _shuffled(self) -> list[int]:
        mixed = hashlib.sha256(f"{self.seed}/{self.epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(mixed[:7], "big"))
        return torch.randperm(len(self.blocks), generator=generator).tolist()

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream, as plain JSON values."""
        return {"epoch": self.epoch, "index": self.index, "seed": self.seed, "fingerprint": self._fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken. Raises UserError if text, tokenizer, block size or seed changed."""
        here = self.state_dict()
        for name in ("fingerprint", "seed"):
            if state[name] != here[name]:
                raise UserError(
                    f"the pretraining text's {name} was {state[name]} at the checkpoint and is {here[name]} now; "
                    "resume with the same text, tokenizer, block size and seed"
                )
        self.epoch, self.index = state["epoch"], state["index"]
        self._order = self._shuffled()

    def _fingerprint(self) -> str:
        shape = str(tuple(self.blocks.shape)).encode()
        return hashlib.sha256(shape + self.blocks.numpy().tobytes()).hexdigest()[:16]


def text_blocks(
    texts: Sequence[Text], tokenizer: "PreTrainedTokenizerBase", block_tokens: int, seed: int
) -> TextBlocks:
    """All texts as one stream, EOS after each (and BOS before, where the tokenizer writes it), cut into full blocks.

    What is left at the end of the stream, less than one block, is not used. Raises UserError if there is no full block.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer {tokenizer.name_or_path!r} has no EOS token to put between texts")
    if block_tokens < 1:
        raise UserError(f"block_tokens must be at least 1, got {block_tokens}")
    bos = leading_bos(tokenizer)
    stream: list[int] = []
    for text in texts:
        stream += [*bos, *encode_text(tokenizer, text.text), tokenizer.eos_token_id]
    count = len(stream) // block_tokens
    if count == 0:
        raise UserError(f"the texts have {len(stream)} tokens, less than one block of {block_tokens}")
    tokens = torch.tensor(stream[: count * block_tokens], dtype=torch.int32)
    return TextBlocks(tokens.view(count, block_tokens), seed)
