"""What a GGUF file says of a tokenizer: told from tokenizer.json, or refused where llama.cpp would split otherwise."""

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
# llama.cpp's names for how text is split before merges, each with whether a whole word that is a token stays whole.
SPLITS = {
    (LLAMA3, True): "llama-bpe",
    (LLAMA3, False): "smaug-bpe",
    (QWEN2, False): "qwen2",
    (TEKKEN, True): "tekken",
    (GPT2, False): "gpt-2",
    (DIGITS, False): "smollm",
}
SPACE = "\u2581"  # how SentencePiece writes a space
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class TokenType(IntEnum):
    """The types of tokens, with GGUF's numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocab:
    """model: "gpt2" (byte-level BPE with `merges`, split as `split` says) or "llama" (SentencePiece with `scores`)."""

    model: str
    tokens: tuple[str, ...]
    kinds: tuple[TokenType, ...]
    merges: tuple[str, ...] = ()
    split: str = "default"
    scores: tuple[float, ...] = ()
    adds_space: bool = False

    def id_of(self, token: str | None) -> int | None:
        """The id of a token's text; None for no text, and one that is not there."""
        return None if token is None or token not in self.tokens else self.tokens.index(token)


def vocab_of(tokenizer: dict[str, Any], size: int) -> Vocab:
    """The vocabulary of a tokenizer.json, filled up to `size`, the model's rows.

    UserError for a tokenizer that llama.cpp has no equal of.
    """
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE":
        raise _refusal(f"a {quote(model.get('type'))} tokenizer")
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    tokens, kinds = _tokens(tokenizer, size)
    split = _split(tokenizer)
    if split is None:
        _require_sentencepiece(tokenizer)
        scores = _scores(tokens, kinds, merges)
        kinds = [
            TokenType.BYTE if kind is TokenType.NORMAL and BYTE.fullmatch(token) else kind
            for token, kind in zip(tokens, kinds, strict=True)
        ]
        if (unknown := model.get("unk_token")) in tokens:
            kinds[tokens.index(unknown)] = TokenType.UNKNOWN
        return Vocab("llama", tuple(tokens), tuple(kinds), scores=scores, adds_space=_adds_space(tokenizer))
    name = SPLITS.get((split, bool(model.get("ignore_merges"))))
    if name is None:
        raise _refusal(f"a tokenizer that splits text by {quote(split)}")
    return Vocab("gpt2", tuple(tokens), tuple(kinds), tuple(" ".join(pair) for pair in merges), name)


def _refusal(what: str) -> UserError:
    return UserError(
        f"tokenizer.json: {what} has no equal in llama.cpp that is known here; known are byte-level BPE split like "
        f"{', '.join(sorted(set(SPLITS.values())))}, and SentencePiece's BPE with byte fallback; {WAY_OUT}"
    )


def _tokens(tokenizer: dict[str, Any], size: int) -> tuple[list[str], list[TokenType]]:
    """Every id's text and type; ids that the tokenizer does not use are named and marked so."""
    token_of = {id: token for token, id in tokenizer["model"]["vocab"].items()}
    kinds = dict.fromkeys(token_of, TokenType.NORMAL)
    for added in tokenizer.get("added_tokens") or []:
        token_of[added["id"]] = added["content"]
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    if token_of and max(token_of) >= size:
        raise UserError(f"tokenizer.json: token {max(token_of)} is beyond the {size} rows of the model; {WAY_OUT}")
    tokens = [token_of.get(id, f"[PAD{id}]") for id in range(size)]
    if len(set(tokens)) < size:
        twice = next(token for id, token in enumerate(tokens) if token in tokens[:id])
        raise UserError(f"tokenizer.json: {quote(twice)} stands for two ids, which llama.cpp refuses; {WAY_OUT}")
    return tokens, [kinds.get(id, TokenType.UNUSED) for id in range(size)]


def _steps(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, in order."""
    if part is None:
        return []
    return list(part[inner]) if part["type"] == "Sequence" else [part]


def _split(tokenizer: dict[str, Any]) -> str | None:
    """What a byte-level tokenizer splits text by; None for a tokenizer that is not byte-level."""
    steps = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
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
    """UserError unless spaces become U+2581 and unknown characters bytes, with nothing else done to text."""
    normal = [step["type"] for step in _steps(tokenizer.get("normalizer"), "normalizers")]
    before = [step["type"] for step in _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")]
    is_known = set(normal) <= {"Prepend", "Replace"} and before in ([], ["Metaspace"]) and bool(normal or before)
    if not is_known or not tokenizer["model"].get("byte_fallback"):
        raise _refusal(f"a BPE tokenizer with the steps {quote([*normal, *before])}")


def _adds_space(tokenizer: dict[str, Any]) -> bool:
    """Whether a space goes before text, also where it follows a control token: that is what llama.cpp then does.

    Metaspace's "first" is no: it puts a space before a text's very beginning alone, and conversations begin with a
    control token.
    """
    if any(step["type"] == "Prepend" for step in _steps(tokenizer.get("normalizer"), "normalizers")):
        return True
    metaspace = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    return bool(metaspace) and metaspace[0].get("prepend_scheme", "always") == "always"


def _scores(tokens: list[str], kinds: list[TokenType], merges: list[tuple[str, ...]]) -> tuple[float, ...]:
    """A score for each token, higher for what is merged earlier.

    SentencePiece ranks the merged token and tokenizer.json the pair: they agree where all pairs of a token stand
    together. UserError where they do not.
    """
    ranks: dict[str, int] = {}
    last = None
    for rank, (left, right) in enumerate(merges):
        token = left + right
        if token != last and token in ranks:
            raise _refusal(f"a SentencePiece tokenizer whose merges to {quote(token)} are apart")
        ranks.setdefault(token, rank)
        last = token
    for token, kind in zip(tokens, kinds, strict=True):
        if kind is TokenType.NORMAL and len(token) > 1 and token not in ranks and not BYTE.fullmatch(token):
            raise _refusal(f"a SentencePiece tokenizer that never merges to its token {quote(token)}")
    return tuple(-1.0 - ranks[token] if token in ranks else 0.0 for token in tokens)
