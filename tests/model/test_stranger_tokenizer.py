"""A stranger's tokenizer.json: bombs are refused before they are loaded, those of models are not."""

import base64
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.exporting.gguf_vocab import LLAMA3, QWEN2, TEKKEN
from lora_rlhf.model import stranger_tokenizer
from lora_rlhf.model.base import load_tokenizer
from lora_rlhf.model.stranger_tokenizer import find_pattern_fault
from lora_rlhf.system.errors import UserError

REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


def charsmap(piece: bytes) -> str:
    table = b"\1" * 4096  # no zero byte for long
    return base64.b64encode(len(table).to_bytes(4, "little") + table + b"x\0" + piece + b"\0").decode()


@pytest.fixture
def write(tiny_model: Callable[[str], Path], tmp_path: Path) -> Callable[..., str]:
    def write_copy(**changes: Any) -> str:
        folder = shutil.copytree(tiny_model("llama"), tmp_path / "model")
        settings = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").write_text(json.dumps(settings | changes))
        return str(folder)

    return write_copy


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 40}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [REPLACE] * 9}] * 4}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "."}, "content": "a" * 10**6}},
        {"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap(b"a" * 10**6)}},
        {"decoder": {"type": "Sequence", "decoders": [REPLACE] * 40}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "a" * 100, "prepend_scheme": "always", "split": True}},
    ],
    ids=["replaces", "in sequences", "a regex", "a prefix", "a table", "a decoder", "a space"],
)
def test_texts_that_grow_without_end_are_refused(write: Callable[..., str], changes: dict[str, Any]) -> None:
    folder, started = write(**changes), time.monotonic()
    with pytest.raises(UserError, match="makes a text more than 64 times as long"):
        load_tokenizer(folder)
    assert time.monotonic() - started < 5


def test_sizes_and_counts_are_refused_before_anything_is_built(
    write: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write()
    path = Path(folder) / "tokenizer.json"
    path.write_text("[" + "0," * (stranger_tokenizer.MOST_COMMAS + 1) + "0]")
    with pytest.raises(UserError, match="more than 4,000,000 entries"):
        load_tokenizer(folder)
    os.truncate(path, 2**41)
    with pytest.raises(UserError, match=r"2,199,023,255,552 bytes, more than"):
        load_tokenizer(folder)
    for text in ("[" * 10**6, "nothing", "[]"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"is no JSON"):
            load_tokenizer(folder)


EVIL = {
    r"(a+)+$": "repeats what",
    r"(?:a|a)*b": "repeats what",
    r"(?:a?){30}a{30}": "repeats what",
    r"(?i:x(?:\s*,)*)+": "repeats what",
    r"(?:[^\]]*|b){2,}": "repeats what",
    r"a{1,30}{1,30}{1,30}": "repeats what",
    r"\s*\s*\s*\s*\s*x": "more than 4 parts",
    r"(a)\1": "refers to what",
    r"(?<x>a\g<x>?b)": "refers to what",
    r"(?~abc)": "a kind that no tokenizer needs",
    r"(?(1)a|b)": "a kind that no tokenizer needs",
    "a" * 5000: "5,000 characters",
}
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
USUAL = (
    *(
        LLAMA3,
        QWEN2,
        TEKKEN,
        DEEPSEEK,
        O200K,
        r"\p{N}{1,3}",
        r"[\u4e00-\u9fa5\u3040-\u30ff]+",
        r"(?=(\d{3})+(?!\d))",
        " {2,}",
        "",
    ),
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r" ?[^(\s|[.,!?\u2026\u3002])]+",
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}&&[^\p{Han}]]*[\p{Ll}&&[^\p{Han}]]+",
)


@pytest.mark.parametrize("pattern", EVIL)
def test_patterns_that_try_all_ways_are_refused(pattern: str) -> None:
    assert EVIL[pattern] in str(find_pattern_fault(pattern))


@pytest.mark.parametrize("pattern", USUAL)
def test_patterns_of_models_are_taken(pattern: str) -> None:
    assert find_pattern_fault(pattern) is None


def test_a_pattern_is_refused_where_it_stands_unless_its_author_is_trusted(write: Callable[..., str]) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    space = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "never", "split": False}
    folder = write(pre_tokenizer={"type": "Sequence", "pretokenizers": [split, space]})
    with pytest.raises(UserError, match=r"its pre_tokenizer has a regular expression that repeats what .*trust_remote"):
        load_tokenizer(folder)
    assert load_tokenizer(folder, trust_remote_code=True)


def test_a_broken_tokenizer_is_a_line(write: Callable[..., str]) -> None:
    with pytest.raises(UserError, match="its tokenizer does not load"):
        load_tokenizer(write(pre_tokenizer={"type": "ByteLevel"}))


def test_rules_of_models_are_taken() -> None:
    """Those of Gemma, Llama 2, T5 and BERT."""
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    prefix = {"type": "Prepend", "prepend": "\u2581"}
    table = {"type": "Precompiled", "precompiled_charsmap": charsmap("\u0635\u0644\u0649".encode() * 9)}
    bert = {"type": "BertNormalizer", "clean_text": True, "lowercase": True}
    for rule in (space, spaces, prefix, table, bert):
        assert stranger_tokenizer._growth_of(rule) == 1.0
