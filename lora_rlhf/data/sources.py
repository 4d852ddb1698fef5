"""Reads files and hub datasets into records: everything usable, and an account of everything refused."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lora_rlhf.data import readers
from lora_rlhf.data.io import ROW_SUFFIXES, TEXT_SUFFIX, file_rows, file_text, plain_suffix
from lora_rlhf.data.readers import Reader, Record
from lora_rlhf.data.refusals import BadRow, RefusedRows
from lora_rlhf.data.schema import Demonstration, Prompt, Ranking, Text
from lora_rlhf.errors import UserError

HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<split>[\w.]+))?")


def read_demonstrations(path: str | Path, strict: bool = False) -> tuple[list[Demonstration], RefusedRows]:
    """Demonstrations from prompt + completion, prompt + response, or messages that end with the answer.

    `path` is a `.jsonl` or `.json` file, also with `.gz`, or a hub dataset as "owner/name" or "owner/name:split" (split
    "train" unless given). A row that can not be used is refused and counted; with `strict` it is a UserError. So is a
    source without a single usable row.
    """
    return _read(path, readers.DEMONSTRATIONS, strict)


def read_rankings(path: str | Path, strict: bool = False) -> tuple[list[Ranking], RefusedRows]:
    """Rankings from prompt + responses + ranks (and labeler), or chosen + rejected with a shared or explicit prompt.

    Sources and refusals as in `read_demonstrations`; HH-RLHF's "Human: ... Assistant: ..." texts become messages.
    """
    return _read(path, readers.RANKINGS, strict)


def read_prompts(path: str | Path, strict: bool = False) -> tuple[list[Prompt], RefusedRows]:
    """Prompts from any row that has one: a prompt column, messages, or chosen + rejected. Sources as above."""
    return _read(path, readers.PROMPTS, strict)


def read_texts(path: str | Path, strict: bool = False) -> tuple[list[Text], RefusedRows]:
    """Texts from rows with a `text` column, or from a `.txt` file, which is one text. Sources as above."""
    path = str(path)
    if plain_suffix(Path(path)) != TEXT_SUFFIX:
        return _read(path, readers.TEXTS, strict)
    text = file_text(_existing(path))
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    return [Text(text)], RefusedRows()


def _read(path: str | Path, table: Sequence[Reader[Record]], strict: bool) -> tuple[list[Record], RefusedRows]:
    records: list[Record] = []
    refused = RefusedRows()
    for origin, row in _rows(str(path)):
        try:
            if isinstance(row, BadRow):
                raise row
            records.append(readers.read_row(table, row, origin))
        except BadRow as fault:
            if strict:
                raise UserError(f"{origin}: {fault}") from fault
            refused.add(origin, fault)
    if not records and not refused:
        raise UserError(f"{path}: no rows; the file is empty")
    if not records:
        raise UserError(f"{path}: none of its {refused.count} rows can be used:\n{refused.summary()}")
    return records, refused


def _rows(path: str) -> Iterator[tuple[str, Any]]:
    suffix = plain_suffix(Path(path))
    hub = HUB_NAME.fullmatch(path)
    if hub and not Path(path).exists() and suffix not in (*ROW_SUFFIXES, TEXT_SUFFIX) and not path.startswith("."):
        return _hub_rows(hub["name"], hub["split"] or "train")
    if suffix not in ROW_SUFFIXES:
        allowed = ", ".join(f"{known} or {known}.gz" for known in ROW_SUFFIXES)
        raise UserError(f"{path}: expected {allowed} (plain text: {TEXT_SUFFIX}, for texts only), or a hub name")
    return file_rows(_existing(path))


def _existing(path: str) -> Path:
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    return Path(path)


def _hub_rows(name: str, split: str) -> Iterator[tuple[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(f"{name}: no such file; to load it from the hub: pip install datasets") from None
    try:
        dataset = load_dataset(name, split=split)
    except Exception as error:  # the hub client raises a dozen unrelated types for "not there" and "no network"
        raise UserError(f"{name}: neither a file here nor a hub dataset with split {split!r}: {error}") from error
    return numbered_rows(dataset, f"{name}:{split}")


def numbered_rows(dataset: Iterable[dict[str, Any]], name: str) -> Iterator[tuple[str, Any]]:
    """Yields ("name row N", row), N from 1, for rows that stand in no file of ours."""
    for number, row in enumerate(dataset, start=1):
        yield f"{name} row {number}", row
