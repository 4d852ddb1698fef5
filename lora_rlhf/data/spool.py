"""A list on disk: a stage encodes its rows once and reads them many times without holding them in memory."""

import json
import operator
import os
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar

from lora_rlhf.data.encode import EncodedExample, EncodedPrompt, EncodedRanking, EncodedSteps
from lora_rlhf.data.schema import Message, Prompt

T = TypeVar("T")

PENDING_BYTES = 1 << 18  # bytes per write: one system call for about a hundred rows


class Spool(Sequence[T]):
    """A sequence with `append`, stored in an unnamed file that is deleted with the object.

    In memory each item costs 8 bytes. Each index reads its item anew, so a change to an item that was read is not
    stored. The file is in `folder`, else in the folder of temporary files (TMPDIR; name a disk where /tmp is memory).
    """

    def __init__(
        self,
        dump: Callable[[T], Any],
        load: Callable[[Any], T],
        folder: Path | None = None,
        length: Callable[[T], int] = lambda item: 0,
    ):
        """`dump` turns an item into JSON values, `load` turns them back; `length` is the length for `longest`."""
        self._dump, self._load, self._length = dump, load, length
        self._longest = (0, -1)  # (index, length) of the first of the longest items
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder
        self._file = tempfile.TemporaryFile(buffering=0, dir=self._folder)  # noqa: SIM115  (lives as long as we do)
        weakref.finalize(self, self._file.close)
        self._ends = array("Q", [0])  # item i is the bytes from _ends[i] to _ends[i + 1]
        self._pending = bytearray()  # the last bytes, not in the file yet

    def append(self, item: T) -> None:
        """Adds one item. OSError that names the folder if the disk is full."""
        if (length := self._length(item)) > self._longest[1]:
            self._longest = len(self), length
        line = json.dumps(self._dump(item), separators=(",", ":")).encode("ascii") + b"\n"
        self._pending += line
        self._ends.append(self._ends[-1] + len(line))
        if len(self._pending) >= PENDING_BYTES:
            self._write_pending()

    def extend(self, items: Iterable[T]) -> None:
        """Adds items one by one, so that they may come from a stream."""
        for item in items:
            self.append(item)

    @property
    def longest(self) -> T:
        """The first of the longest items. IndexError when there is none."""
        return self[self._longest[0]]

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: SupportsIndex) -> T:  # type: ignore[override]  # slices are a TypeError
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"index {position} of a spool of {len(self)}")
        self._write_pending()
        start, end = self._ends[position % len(self)], self._ends[position % len(self) + 1]
        # pread and pwrite move no position: processes that share the file after a fork do not disturb each other
        return self._load(json.loads(os.pread(self._file.fileno(), end - start, start)))

    def _write_pending(self) -> None:
        """Writes the pending bytes. OSError with advice if the disk is full."""
        while self._pending:
            try:
                num_written = os.pwrite(self._file.fileno(), self._pending, self._ends[-1] - len(self._pending))
            except OSError as error:
                advice = f"{error.strerror}: make room in {self._folder}, or set TMPDIR to a folder on a larger disk"
                raise OSError(error.errno, advice) from error
            del self._pending[:num_written]


def make_example_spool(folder: Path | None = None) -> Spool[EncodedExample]:
    """An empty spool of encoded demonstrations."""
    return Spool(
        _dump_example,
        lambda row: EncodedExample(*row),
        folder,
        lambda example: len(example.context_ids) + len(example.response_ids),
    )


def _dump_example(example: EncodedExample) -> list[list[int]]:
    """The ids as JSON values; the context's ids only if they are not the prompt's."""
    ids = [example.prompt_ids, example.response_ids]
    return ids if example.context_ids is example.prompt_ids else [*ids, example.context_ids]


def make_ranking_spool(folder: Path | None = None) -> Spool[EncodedRanking]:
    """An empty spool of encoded rankings."""
    return Spool(
        lambda ranking: [ranking.prompt_ids, ranking.response_ids, ranking.ranks],
        lambda row: EncodedRanking(*row),
        folder,
        lambda ranking: len(ranking.prompt_ids) + max(map(len, ranking.response_ids)),
    )


def make_step_spool(folder: Path | None = None) -> Spool[EncodedSteps]:
    """An empty spool of encoded answers whose steps are labelled."""
    return Spool(
        lambda row: [row.prompt_ids, row.response_ids, row.ends, row.labels],
        lambda row: EncodedSteps(*row),
        folder,
        lambda row: len(row.prompt_ids) + len(row.response_ids),
    )


def make_prompt_spool(folder: Path | None = None) -> Spool[EncodedPrompt]:
    """An empty spool of encoded prompts; it stores the record's messages, meta and origin with the ids."""
    return Spool(_dump_prompt, _load_prompt, folder, lambda encoded: len(encoded.prompt_ids))


def _dump_prompt(encoded: EncodedPrompt) -> list[Any]:
    """The ids, and the record's messages, meta, origin and tools, as JSON values."""
    prompt = encoded.prompt
    turns = [message.values for message in prompt.messages]
    return [encoded.prompt_ids, turns, prompt.meta, prompt.origin, prompt.tools]


def _load_prompt(row: list[Any]) -> EncodedPrompt:
    """The inverse of `_dump_prompt`."""
    ids, turns, meta, origin, tools = row
    return EncodedPrompt(ids, Prompt(tuple(Message(*turn) for turn in turns), meta, origin, tools))
