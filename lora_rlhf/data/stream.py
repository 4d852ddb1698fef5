"""Pretraining text as an endless stream of shuffled blocks, in memory that does not grow with the text."""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lora_rlhf.data.schema import Text
from lora_rlhf.data.template import bos_before_text, encode_text
from lora_rlhf.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextStream(Iterator[Tensor]):
    """An endless iterator over blocks of `block_tokens` ids; every epoch has each block once, in its own order.

    The texts become one stream, with EOS after each (and BOS before, if the tokenizer writes it), cut into blocks; the
    rest at the end of an epoch, less than a block, is not used. A buffer of `buffer_blocks` is filled; each draw takes
    a random block from it and puts the next block of the text there: the buffer and the longest text are in memory. The
    order is fully random if the text fits the buffer. In a longer text a block comes at most a buffer's length too
    early, so a text that is sorted (for example by topic) stays roughly sorted.
    """

    def __init__(
        self,
        open_texts: Callable[[], Iterable[Text]],
        tokenizer: "PreTrainedTokenizerBase",
        block_tokens: int,
        seed: int,
        buffer_blocks: int = 4096,
    ):
        """`open_texts()` is called once an epoch and gives the same texts each time. Fills the buffer.

        Raises UserError if the texts have less than one block, the tokenizer has no EOS, or a size is below 1.
        """
        if tokenizer.eos_token_id is None:
            raise UserError(f"tokenizer {tokenizer.name_or_path!r} has no EOS token to put between texts")
        for name, size in (("block_tokens", block_tokens), ("buffer_blocks", buffer_blocks)):
            if size < 1:
                raise UserError(f"{name} must be at least 1, got {size}")
        self.block_tokens = block_tokens
        self.seed = seed
        self._open_texts = open_texts
        self._tokenizer = tokenizer
        self._buffer = np.empty((buffer_blocks, block_tokens), dtype=np.int32)  # half the memory of int64
        self._begin_epoch(0)
        self._fingerprint = self._buffer_fingerprint()

    def __next__(self) -> Tensor:
        """The next block, (block_tokens,) int64."""
        if self._filled == 0:
            self._begin_epoch(self.epoch + 1)
        return torch.from_numpy(self._draw_block().astype(np.int64))

    def state_dict(self) -> dict[str, Any]:
        """The position in the stream, as plain JSON values: the epoch, and how many of its blocks were drawn."""
        return {"epoch": self.epoch, "drawn": self.drawn, "seed": self.seed, "fingerprint": self._fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues exactly after the block at which `state` was taken, by drawing that epoch's blocks again.

        This costs the tokenizing of the epoch's text up to that block; earlier epochs cost nothing. Raises UserError if
        text, tokenizer, block size, buffer or seed changed. The fingerprint covers the text that first filled the
        buffer: a change after it is noticed only if the epoch became too short.
        """
        current = self.state_dict()
        for name in ("fingerprint", "seed"):
            if state[name] != current[name]:
                raise _changed_text_error(f"{name} was {state[name]} at the checkpoint and is {current[name]} now")
        self._begin_epoch(state["epoch"])
        while self.drawn < state["drawn"]:
            if self._filled == 0:
                raise _changed_text_error(
                    f"epoch had {state['drawn']} blocks or more at the checkpoint and has {self.drawn} now"
                )
            self._draw_block()

    def _begin_epoch(self, epoch: int) -> None:
        """Opens the texts again, seeds the order of the epoch, and fills the buffer."""
        self.epoch, self.drawn = epoch, 0
        seed_digest = hashlib.sha256(f"{self.seed}/{epoch}".encode()).digest()
        self._random = random.Random(int.from_bytes(seed_digest, "big"))
        self._blocks = self._cut_blocks()
        self._filled = 0
        for block in self._blocks:
            self._buffer[self._filled] = block
            self._filled += 1
            if self._filled == len(self._buffer):
                break

    def _draw_block(self) -> np.ndarray:
        """A copy of a random block of the buffer; the epoch's next block, if there is one, takes its slot."""
        slot = self._random.randrange(self._filled)
        block = self._buffer[slot].copy()
        next_block = next(self._blocks, None)
        if next_block is None:
            self._filled -= 1
            next_block = self._buffer[self._filled]
        self._buffer[slot] = next_block
        self.drawn += 1
        return block

    def _cut_blocks(self) -> Iterator[list[int]]:
        """Yields one epoch's blocks in the text's order. UserError if there is none."""
        bos, eos, block_tokens = bos_before_text(self._tokenizer), self._tokenizer.eos_token_id, self.block_tokens
        ids_left: list[int] = []
        num_yielded = 0
        for text in self._open_texts():
            ids_left += [*bos, *encode_text(self._tokenizer, text.text), eos]
            num_blocks = len(ids_left) // block_tokens
            for start in range(0, num_blocks * block_tokens, block_tokens):
                yield ids_left[start : start + block_tokens]
            del ids_left[: num_blocks * block_tokens]
            num_yielded += num_blocks
        if num_yielded == 0:
            raise UserError(f"the texts have {len(ids_left)} tokens, less than one block of {block_tokens}")

    def _buffer_fingerprint(self) -> str:
        """A hash of the buffer's shape and ids, 16 hexadecimal digits."""
        blocks = self._buffer[: self._filled]
        return hashlib.sha256(str(blocks.shape).encode() + blocks.tobytes()).hexdigest()[:16]


def _changed_text_error(change: str) -> UserError:
    return UserError(
        f"the pretraining text's {change}; resume with the same text, tokenizer, block size, buffer and seed"
    )
