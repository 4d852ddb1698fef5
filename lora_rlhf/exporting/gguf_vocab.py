"""The vocabulary for a GGUF file, from tokenizer.json; refused if llama.cpp would split text in another way."""

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from lora_rlhf.exporting.gguf_shape import WAY_OUT
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import quote

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASES = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LLAMA3, QWEN2 = _WORDS + "{1,3}" + _REST, _WORDS + _REST
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_CASES[0]}*{_CASES[1]}+|[^\r\n\p{{L}}\p{{N}}]?{_CASES[0]}+{_CASES[1]}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2, DIGITS = "words of GPT-2", "single digits, words of GPT-2"
# {(pattern that splits text before merges, whether a word that is a token is not split further): llama.cpp's name}.
SPLIT_NAMES = {
    (LLAMA3, True): "llama-bpe",
    (LLAMA3, False): "smaug-bpe",
    (QWEN2, False): "qwen2",
    (TEKKEN, True): "tekken",
    (GPT2, False): "gpt-2",
    (DIGITS, False): "smollm",
}
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class TokenType(IntEnum):
    """The types of tokens, with GGUF's numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class GgufVocab:
    """A vocabulary of GGUF.

    model: "gpt2" (byte-level BPE with `merges` and llama.cpp's name `split` of its pattern), or "llama" (SentencePiece
    with `scores`).
    """

    model: str
    tokens: tuple[str, ...]
    kinds: tuple[TokenType, ...]
    merges: tuple[str, ...] = ()
    split: str = "default"
    scores: tuple[float, ...] = ()
    adds_space: bool = False

    def id_of(self, token: str | None) -> int | None:
        """The id of a token's text; None if the text is None or no token."""
        return None if token is None or token not in self.tokens else self.tokens.index(token)


def gguf_vocab(tokenizer: dict[str, Any], num_rows: int) -> GgufVocab:
    """The vocabulary of a tokenizer.json with `num_rows` tokens, which is the number of the model's rows.

    Raises UserError for a tokenizer that llama.cpp cannot imitate.
    """
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE":
        raise _unknown_tokenizer_error(f"a {quote(model.get('type'))} tokenizer")
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    tokens, kinds = _token_texts_and_types(tokenizer, num_rows)
    split = _split_pattern(tokenizer)
    if split is None:
        _require_sentencepiece(tokenizer)
        scores = _merge_scores(tokens, kinds, merges)
        kinds = [
            TokenType.BYTE if kind is TokenType.NORMAL and BYTE_TOKEN.fullmatch(token) else kind
            for token, kind in zip(tokens, kinds, strict=True)
        ]
        if (unknown := model.get("unk_token")) in tokens:
            kinds[tokens.index(unknown)] = TokenType.UNKNOWN
        return GgufVocab("llama", tuple(tokens), tuple(kinds), scores=scores, adds_space=_is_space_added(tokenizer))
    name = SPLIT_NAMES.get((split, bool(model.get("ignore_merges"))))
    if name is None:
        raise _unknown_tokenizer_error(f"a tokenizer that splits text by {quote(split)}")
    return GgufVocab("gpt2", tuple(tokens), tuple(kinds), tuple(" ".join(pair) for pair in merges), name)


def _unknown_tokenizer_error(description: str) -> UserError:
    return UserError(
        f"tokenizer.json: {description} has no equal in llama.cpp that is known here; known are byte-level BPE split "
        f"like {', '.join(sorted(set(SPLIT_NAMES.values())))}, and SentencePiece's BPE with byte fallback; {WAY_OUT}"
    )


def _token_texts_and_types(tokenizer: dict[str, Any], num_rows: int) -> tuple[list[str], list[TokenType]]:
    """The text and type of every id; ids that the tokenizer does not use get a name and the type UNUSED."""
    text_by_id = {id: token for token, id in tokenizer["model"]["vocab"].items()}
    type_by_id = dict.fromkeys(text_by_id, TokenType.NORMAL)
    for added in tokenizer.get("added_tokens") or []:
        text_by_id[added["id"]] = added["content"]
        type_by_id[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    if text_by_id and max(text_by_id) >= num_rows:
        raise UserError(
            f"tokenizer.json: token {max(text_by_id)} is beyond the {num_rows} rows of the model; {WAY_OUT}"
        )
    tokens = [text_by_id.get(id, f"[PAD{id}]") for id in range(num_rows)]
    if len(set(tokens)) < num_rows:
        duplicate = next(token for id, token in enumerate(tokens) if token in tokens[:id])
        raise UserError(f"tokenizer.json: {quote(duplicate)} stands for two ids, which llama.cpp refuses; {WAY_OUT}")
    return tokens, [type_by_id.get(id, TokenType.UNUSED) for id in range(num_rows)]


def _processing_steps(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, in order; `inner` is the key of a sequence's steps."""
    if part is None:
        return []
    return list(part[inner]) if part["type"] == "Sequence" else [part]


def _split_pattern(tokenizer: dict[str, Any]) -> str | None:
    """How a byte-level tokenizer splits text: its pattern, or a name. None if the tokenizer is not byte-level."""
    steps = _processing_steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    kinds = [step["type"] for step in steps]
    if "ByteLevel" not in kinds:
        return None
    last = steps[-1]
    if last["type"] != "ByteLevel" or last.get("add_prefix_space"):
        return "other steps"
    if kinds == ["ByteLevel"] and last.get("use_regex", True):
        return GPT2
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and last.get("use_regex", True):
        return DIGITS
    pattern = steps[0].get("pattern") or {}
    if kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True) and "Regex" in pattern:
        return str(pattern["Regex"]).replace("\r", "\\r").replace("\n", "\\n")
    return "other steps"


def _require_sentencepiece(tokenizer: dict[str, Any]) -> None:
    """Raises UserError unless spaces become U+2581, unknown characters become bytes, and nothing else is done."""
    normalizer_steps = [step["type"] for step in _processing_steps(tokenizer.get("normalizer"), "normalizers")]
    pre_tokenizer_steps = [step["type"] for step in _processing_steps(tokenizer.get("pre_tokenizer"), "pretokenizers")]
    is_supported = (
        set(normalizer_steps) <= {"Prepend", "Replace"}
        and pre_tokenizer_steps in ([], ["Metaspace"])
        and bool(normalizer_steps or pre_tokenizer_steps)
    )
    if not is_supported or not tokenizer["model"].get("byte_fallback"):
        raise _unknown_tokenizer_error(
            f"a BPE tokenizer with the steps {quote([*normalizer_steps, *pre_tokenizer_steps])}"
        )


def _is_space_added(tokenizer: dict[str, Any]) -> bool:
    """Whether a space is put before a text, also after a control token, as llama.cpp does it.

    Metaspace's "first" does not count: it puts a space only at the beginning of the whole text, and a conversation
    begins with a control token.
    """
    if any(step["type"] == "Prepend" for step in _processing_steps(tokenizer.get("normalizer"), "normalizers")):
        return True
    metaspace = _processing_steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    return bool(metaspace) and metaspace[0].get("prepend_scheme", "always") == "always"


def _merge_scores(tokens: list[str], kinds: list[TokenType], merges: list[tuple[str, ...]]) -> tuple[float, ...]:
    """A score for each token, higher for tokens that are merged earlier.

    SentencePiece ranks merged tokens, and tokenizer.json ranks pairs. Both agree if all pairs that make a token follow
    one another. Raises UserError if they do not.
    """
    rank_by_token: dict[str, int] = {}
    previous_token = None
    for rank, (left, right) in enumerate(merges):
        token = left + right
        if token != previous_token and token in rank_by_token:
            raise _unknown_tokenizer_error(f"a SentencePiece tokenizer whose merges to {quote(token)} are apart")
        rank_by_token.setdefault(token, rank)
        previous_token = token
    for token, kind in zip(tokens, kinds, strict=True):
        if (
            kind is TokenType.NORMAL
            and len(token) > 1
            and token not in rank_by_token
            and not BYTE_TOKEN.fullmatch(token)
        ):
            raise _unknown_tokenizer_error(f"a SentencePiece tokenizer that never merges to its token {quote(token)}")
    return tuple(-1.0 - rank_by_token[token] if token in rank_by_token else 0.0 for token in tokens)
