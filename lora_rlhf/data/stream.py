"""Pretraining text as an endless stream of shuffled blocks, in memory that does not grow with the text."""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lora_rlhf.data.schema import Text
from lora_rlhf.data.template import encode_text, leading_bos
from lora_rlhf.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextStream(Iterator[Tensor]):
    """An endless iterator over blocks of `block_tokens` ids; every epoch has each block once, in an order of its own.

    The texts are one stream, EOS after each (and BOS before, where the tokenizer writes it), cut into blocks; what is
    left at the end of an epoch, less than a block, is not used. A buffer of `buffer_blocks` is filled, then each draw
    takes one of it at random and the next block of the text fills its place: memory is that buffer and the longest
    text. The order is fully random for text that fits the buffer; in longer text no block comes more than a buffer's
    length too early, so text that is sorted (by topic, say) stays roughly sorted.
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
        self._begin(0)
        self._fingerprint = self._hashed()

    def __next__(self) -> Tensor:
        """The next block, (block_tokens,) int64."""
        if self._filled == 0:
            self._begin(self.epoch + 1)
        return torch.from_numpy(self._draw().astype(np.int64))

    def state_dict(self) -> dict[str, Any]:
        """The position in the stream, as plain JSON values: the epoch, and how many of its blocks were drawn."""
        return {"epoch": self.epoch, "drawn": self.drawn, "seed": self.seed, "fingerprint": self._fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on exactly where `state` was taken, by drawing that epoch's blocks again.

        This costs the tokenizing of the epoch's text up to there; earlier epochs cost nothing. Raises UserError if
        text, tokenizer, block size, buffer or seed changed. The fingerprint knows the text that first filled the
        buffer: a change behind it is noticed only if the epoch became too short.
        """
        current = self.state_dict()
        for name in ("fingerprint", "seed"):
            if state[name] != current[name]:
                raise _changed(f"{name} was {state[name]} at the checkpoint and is {current[name]} now")
        self._begin(state["epoch"])
        while self.drawn < state["drawn"]:
            if self._filled == 0:
                raise _changed(f"epoch had {state['drawn']} blocks or more at the checkpoint and has {self.drawn} now")
            self._draw()

    def _begin(self, epoch: int) -> None:
        self.epoch, self.drawn = epoch, 0
        mixed = hashlib.sha256(f"{self.seed}/{epoch}".encode()).digest()
        self._random = random.Random(int.from_bytes(mixed, "big"))
        self._blocks = self._cut()
        self._filled = 0
        for block in self._blocks:
            self._buffer[self._filled] = block
            self._filled += 1
            if self._filled == len(self._buffer):
                break

    def _draw(self) -> np.ndarray:
        """A copy of a random block of the buffer; the epoch's next block, if there is one, takes its slot."""
        slot = self._random.randrange(self._filled)
        block = self._buffer[slot].copy()
        following = next(self._blocks, None)
        if following is None:
            self._filled -= 1
            following = self._buffer[self._filled]
        self._buffer[slot] = following
        self.drawn += 1
        return block

    def _cut(self) -> Iterator[list[int]]:
        """One epoch's blocks in the text's order."""
        bos, eos, size = leading_bos(self._tokenizer), self._tokenizer.eos_token_id, self.block_tokens
        pending: list[int] = []
        count = 0
        for text in self._open_texts():
            pending += [*bos, *encode_text(self._tokenizer, text.text), eos]
            num_blocks = len(pending) // size
            for start in range(0, num_blocks * size, size):
                yield pending[start : start + size]
            del pending[: num_blocks * size]
            count += num_blocks
        if count == 0:
            raise UserError(f"the texts have {len(pending)} tokens, less than one block of {size}")

    def _hashed(self) -> str:
        blocks = self._buffer[: self._filled]
        return hashlib.sha256(str(blocks.shape).encode() + blocks.tobytes()).hexdigest()[:16]


def _changed(what: str) -> UserError:
    return UserError(
        f"the pretraining text's {what}; resume with the same text, tokenizer, block size, buffer and seed"
    )
