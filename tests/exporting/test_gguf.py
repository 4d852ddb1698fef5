"""GGUF files: llama.cpp says what transformers says, and what has no equal there is refused before any work."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lora_rlhf.cli import main as cli
from lora_rlhf.exporting.gguf_shape import gguf_shape
from lora_rlhf.exporting.gguf_vocab import LLAMA3, QWEN2, gguf_vocab
from lora_rlhf.system.errors import UserError

gguf = pytest.importorskip("gguf", reason="GGUF is an extra: pip install gguf")

from lora_rlhf.exporting import gguf as ours  # noqa: E402

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
WORDS = "The lighthouse keeper counts ships and 1234 sailors; it's small, but they're brave!\nIs the river wide?".split(
    " "
)
PROMPTS = [" ".join(WORDS[first : first + length]) for length in (2, 3, 5, 8) for first in range(5)]


def llama_cpp() -> Any:
    return pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (it builds from source)")


def opened(path: Path) -> Any:
    """The file in llama.cpp, its cache in float32 as transformers has it."""
    return llama_cpp().Llama(
        str(path), n_ctx=128, verbose=False, logits_all=True, type_k=0, type_v=0, n_threads=1, flash_attn=False
    )


def written(folder: Path, to: Path, kind: ours.GgufType = "f32") -> Path:
    ours.write_gguf(folder, to, ours.plan_gguf(folder, "tiny"), kind)
    return to


def changed(folder: Path, to: Path, **settings: object) -> Path:
    """A random model of the same family and tokenizer, with other settings."""
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, **settings)).save_pretrained(to)
    AutoTokenizer.from_pretrained(folder).save_pretrained(to)
    return to


def greedy_in_llama_cpp(model: Any, ids: list[int], count: int) -> list[int]:
    model.reset()
    found = []
    for token in model.generate(ids, temp=0.0, repeat_penalty=1.0):
        found.append(token)
        if len(found) == count:
            return found
    return found


@torch.no_grad()
def require_same(folder: Path, path: Path, tolerance: float, length: int = 8) -> None:
    """The same greedy tokens after 20 prompts, and logits that are apart by no more than a share of the largest."""
    model, plain = opened(path), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    greedy = GenerationConfig(max_new_tokens=length, do_sample=False, pad_token_id=0)  # it stops at no token
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        assert model.tokenize(prompt.encode(), add_bos=True, special=True) == ids
        answer = plain.generate(torch.tensor([ids]), generation_config=greedy)
        assert greedy_in_llama_cpp(model, ids, length) == answer[0, len(ids) :].tolist()
    expected = plain(torch.tensor([ids])).logits[0].numpy()
    model.reset()
    model.eval(ids)
    assert numpy.abs(model.scores[: len(ids)] - expected).max() <= tolerance * numpy.abs(expected).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_gives_the_same_greedy_tokens(tiny_model: Callable[[str], Path], tmp_path: Path, family: str) -> None:
    """In float32, 8 tokens after each of 20 prompts, in every family; biases, tied and untied heads are among them."""
    folder = tiny_model(family)
    if family == "mistral":  # its window of 16 tokens has no equal in llama.cpp: see the context below
        folder = changed(folder, tmp_path / "wide", sliding_window=None)
    require_same(folder, written(folder, tmp_path / "model.gguf"), tolerance=1e-5)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64},
        {
            **{"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64},
            **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_scaled_positions_mean_the_same(tiny_model: Callable[[str], Path], tmp_path: Path, rope: dict) -> None:
    folder = changed(tiny_model("llama"), tmp_path / "scaled", rope_parameters=rope, attention_bias=True, mlp_bias=True)
    require_same(folder, written(folder, tmp_path / "model.gguf"), tolerance=1e-4)


@pytest.mark.parametrize(("kind", "tolerance"), [("f16", 3e-3), ("bf16", 1e-2)])
@torch.no_grad()
def test_other_types_are_as_close_as_they_round(
    tiny_model: Callable[[str], Path], tmp_path: Path, kind: ours.GgufType, tolerance: float
) -> None:
    """Against transformers with the very numbers that the file holds."""
    folder = tiny_model("qwen2")
    path = written(folder, tmp_path / "model.gguf", kind)
    held = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 2)
    for name, parameter in plain.named_parameters():
        tensor = held[names.get_name(name, try_suffixes=(".weight", ".bias"))]
        assert tensor.tensor_type.name == (kind.upper() if parameter.dim() > 1 else "F32")
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).view_as(parameter)
        assert (values - parameter).abs().max() <= 2**-7 * parameter.abs().max()
        parameter.copy_(values)
    model = opened(path)
    ids = AutoTokenizer.from_pretrained(folder)(PROMPTS[-1])["input_ids"]
    model.eval(ids)
    expected = plain(torch.tensor([ids])).logits[0].numpy()
    assert numpy.abs(model.scores[: len(ids)] - expected).max() <= tolerance * numpy.abs(expected).max()


def test_q8_0_rounds_to_half_a_step(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Each block of 32 numbers has steps of a 127th of its largest; rows that are not made of blocks stay f16."""
    folder, to = changed(tiny_model("qwen2"), tmp_path / "odd", intermediate_size=80), tmp_path / "model.gguf"
    others = ours.write_gguf(folder, to, ours.plan_gguf(folder, "tiny"), "q8_0")
    assert others == {f"blk.{block}.ffn_down.weight": "F16" for block in (0, 1)}
    state = load_file(folder / "model.safetensors")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 2)
    known = {names.get_name(name, try_suffixes=(".weight", ".bias")): values for name, values in state.items()}
    for tensor in gguf.GGUFReader(to).tensors:
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        error = (values.view_as(known[tensor.name]) - known[tensor.name]).abs().view(-1, 16)
        if tensor.tensor_type.name == "Q8_0":
            largest = known[tensor.name].abs().view(-1, 32).amax(dim=1, keepdim=True)
            assert (error.view(-1, 32) <= largest / 127 * (0.5 + 127 * 2**-11)).all()  # the step itself is an f16
            assert error.max() > 0
    greedy_in_llama_cpp(opened(to), [5, 6, 7], 4)


def test_rows_in_pairs_are_rotated_alike() -> None:
    """Closed form: halves rotated against each other, or the same rows as neighbours, give the same products."""
    heads, size, position = 2, 8, 5.0
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, heads * size, generator=generator, dtype=torch.float64)
    angles = position / 10000 ** (torch.arange(0, size, 2, dtype=torch.float64) / size)

    def halves(rows: torch.Tensor) -> torch.Tensor:
        first, second = rows.view(heads, 2, size // 2).unbind(1)
        turned = torch.complex(first, second) * torch.exp(1j * angles)
        return torch.cat([turned.real, turned.imag], dim=1)

    def neighbours(rows: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(rows.view(heads, size // 2, 2).contiguous())
        return torch.view_as_real(pairs * torch.exp(1j * angles)).reshape(heads, size)

    def turned(rows: torch.Tensor) -> torch.Tensor:
        return ours._interleave_halves(rows[:, None], size)[:, 0]

    expected = (halves(query) * key.view(heads, size)).sum(dim=1)
    found = (neighbours(turned(query)) * turned(key).view(heads, size)).sum(dim=1)
    assert torch.allclose(found, expected, atol=1e-12)
    assert not torch.allclose((neighbours(query) * key.view(heads, size)).sum(dim=1), expected, atol=1e-2)


def test_llama3_frequencies_are_transformers_own() -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "original_max_position_embeddings": 8192}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig(hidden_size=4096, num_attention_heads=32, rope_parameters=rope)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    factors = gguf_shape(config.to_dict()).rope.factors
    plain = 1 / 5e5 ** (numpy.arange(0, 128, 2) / 128)
    assert numpy.allclose(plain / numpy.array(factors), expected.numpy(), rtol=1e-5)
    old = {**config.to_dict(), "rope_scaling": rope, "rope_theta": 5e5}
    del old["rope_parameters"]
    assert gguf_shape(old) == gguf_shape(config.to_dict())


def test_a_config_that_does_not_name_its_rope_base_has_the_usual_one() -> None:
    """Llama 2's has none."""
    config = LlamaConfig(hidden_size=64, num_attention_heads=4).to_dict()
    del config["rope_parameters"]
    assert gguf_shape(config).rope.base == 10000.0


def test_metadata(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("mistral"), folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 0]}')
    fields = gguf.GGUFReader(written(folder, tmp_path / "model.gguf", "bf16")).fields
    found = {name: field.contents() for name, field in fields.items() if not name.startswith("GGUF.")}
    assert found["general.architecture"] == "llama" and found["general.file_type"] == gguf.LlamaFileType.MOSTLY_BF16
    assert found["llama.context_length"] == 16  # of 256: further back llama.cpp would see more than transformers
    assert [found[f"llama.{name}"] for name in ("block_count", "embedding_length", "vocab_size")] == [2, 64, 320]
    assert found["llama.attention.head_count"] == 4 and found["llama.attention.head_count_kv"] == 2
    assert found["llama.attention.key_length"] == found["llama.rope.dimension_count"] == 16
    assert math.isclose(found["llama.attention.layer_norm_rms_epsilon"], 1e-6, rel_tol=1e-5)
    tokens = found["tokenizer.ggml.tokens"]
    assert len(tokens) == len(set(tokens)) == 320 and tokens[:2] == ["<|end|>", "<|pad|>"]
    assert found["tokenizer.ggml.token_type"][:6] == [3, 3, 3, 3, 3, 1] and found["tokenizer.ggml.token_type"][-1] == 5
    assert found["tokenizer.ggml.eos_token_id"] == 0 and found["tokenizer.ggml.eot_token_id"] == 3
    assert found["tokenizer.ggml.add_bos_token"] is False and "tokenizer.ggml.bos_token_id" not in found


SENTENCES = ["the boat is small and the sea is wide " * 3, "It's 1234 or 99! \n\n  don't   wait, captain's log:"]
TEXTS = [
    *SENTENCES,
    "a\tb\r\nc",
    "Ünïcödé 漢字 🎉 end",
    " leading",
    "I'LL we've 2024-11-21 x=1;\n\n\n",
    "    spaces   ",
]


def byte_level(split: pre_tokenizers.PreTokenizer, ignore_merges: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|end|>", "<|user|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=310, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def sentencepiece(scheme: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if scheme == "Prepend":  # how Llama 2's own tokenizer.json has it
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    special = ["<unk>", "<|end|>", "<|user|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # words alone, else it would learn whole sentences; SentencePiece has every pair of two pieces among its merges
    words = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    words.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=310, special_tokens=special, show_progress=False)
    )
    learned = json.loads(words.to_str())["model"]
    pieces = {left + right: None for left, right in learned["merges"]}
    vocab = learned["vocab"]
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    tokenizer.model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer.add_special_tokens(special[:3])
    return tokenizer


@pytest.fixture
def ordered() -> Tokenizer:
    """SentencePiece's BPE in which what is merged first decides: "bc" before "ab", and "ab" before "cd"."""
    special = ["<unk>", "<|end|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [("b", "c"), ("a", "b"), ("c", "d")]
    pieces = [*special, "\u2581", *"abcd", *(left + right for left, right in merges)]
    vocab = {piece: place for place, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.add_special_tokens(special[:2])
    return tokenizer


def test_the_order_of_merges_is_kept(tiny_model: Callable[[str], Path], tmp_path: Path, ordered: Tokenizer) -> None:
    """Were it turned round, or left to right, "abcd" would be "ab" and "cd"."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), folder)
    PreTrainedTokenizerFast(tokenizer_object=ordered, eos_token="<|end|>").save_pretrained(folder)
    model = opened(written(folder, tmp_path / "model.gguf"))
    for text, pieces in (("abcd", "\u2581 a bc d"), ("cdab", "\u2581 cd ab"), ("bcd abc", "\u2581 bc d \u2581 a bc")):
        ids = [ordered.token_to_id(piece) for piece in pieces.split(" ")]
        assert model.tokenize(text.encode(), add_bos=False, special=True) == ids == ordered.encode(text).ids


def split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
TOKENIZERS = {
    "gpt-2": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "qwen2": lambda: byte_level(split_by(QWEN2)),
    "llama-bpe": lambda: byte_level(split_by(LLAMA3), ignore_merges=True),
    "smaug-bpe": lambda: byte_level(split_by(LLAMA3)),
    "smollm": lambda: byte_level(DIGITS),
    "sentencepiece": lambda: sentencepiece("Prepend"),
    "sentencepiece of Metaspace": lambda: sentencepiece("always"),
    "sentencepiece without space": lambda: sentencepiece("never"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_text_is_split_alike(tiny_model: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """llama.cpp makes the same tokens of texts with digits, contractions, white space, emoji and control tokens."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), folder)
    PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS[name](), eos_token="<|end|>").save_pretrained(folder)
    if "sentencepiece" not in name:
        made = json.loads((folder / "tokenizer.json").read_text())
        assert gguf_vocab(made, 320).split == name
    model, tokenizer = opened(written(folder, tmp_path / "model.gguf")), AutoTokenizer.from_pretrained(folder)
    texts = [*TEXTS, "<|user|>the boat<|end|>", "one<|user|> two"]
    if "Metaspace" in name:  # adds no space to text that begins with one, and llama.cpp always does
        texts = [text for text in texts if not text.startswith(" ") and "> " not in text]
    for text in texts:
        assert model.tokenize(text.encode(), add_bos=False, special=True) == tokenizer(text)["input_ids"], text


def test_tokenizers_without_an_equal_are_refused() -> None:
    def refused(tokenizer: Tokenizer, match: str) -> None:
        with pytest.raises(UserError, match=match):
            gguf_vocab(json.loads(tokenizer.to_str()), 320)

    refused(Tokenizer(models.WordPiece(unk_token="?")), "'WordPiece' tokenizer has no equal")
    refused(byte_level(split_by(r"\p{L}+")), "splits text by")
    refused(byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)), "other steps")
    normal = sentencepiece("always")
    normal.normalizer = normalizers.NFKC()
    refused(normal, "'NFKC'")
    apart = json.loads(sentencepiece("always").to_str())
    first = apart["model"]["merges"][0]
    apart["model"]["merges"].append(first)
    with pytest.raises(UserError, match="are apart"):
        gguf_vocab(apart, 320)
    twice = json.loads(byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)).to_str())
    with pytest.raises(UserError, match="beyond the 10 rows"):
        gguf_vocab(twice, 10)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"model_type": "gemma"}, "'gemma' model; it can of llama, mistral, qwen2, qwen3"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "'dynamic'"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "a part of each head"),
        ({"rms_norm_eps": "small"}, "not a number"),
    ],
)
def test_models_without_an_equal_are_refused(tiny_model: Callable[[str], Path], settings: dict, match: str) -> None:
    config = json.loads((tiny_model("llama") / "config.json").read_text())
    with pytest.raises(UserError, match=match):
        gguf_shape(config | settings)
    del config["rms_norm_eps"]
    with pytest.raises(UserError, match="'rms_norm_eps' is missing"):
        gguf_shape(config)


def test_tensors_that_do_not_fit_are_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    folder, to = tmp_path / "model", tmp_path / "model.gguf"
    shutil.copytree(tiny_model("qwen2"), folder)
    tensors = load_file(folder / "model.safetensors")

    def refused(state: dict, match: str, kind: ours.GgufType = "f32") -> None:
        save_file(state, folder / "model.safetensors")
        with pytest.raises(UserError, match=match):
            written(folder, to, kind)

    refused(tensors | {"model.layers.0.self_attn.extra.weight": torch.zeros(2, 2)}, "no tensor for")
    refused({k: v for k, v in tensors.items() if "up_proj" not in k}, r"2 tensors are missing .* blk\.0\.ffn_up")
    large = {k: v * 1e6 if "up_proj" in k else v for k, v in tensors.items()}
    refused(large, r"blk\.0\.ffn_up\.weight: holds numbers over 65504", "f16")


@pytest.mark.slow
def test_a_run_becomes_one_file(
    tiny_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command; what llama.cpp then says is what the merged folder of the same run says."""
    run = tiny_run("qwen3")
    words = ["export", str(run), "--parity_tokens", "4", "--dtype", "float32", "--device", "cpu"]
    assert cli.main([*words, "--to", str(tmp_path / "merged")]) == 0
    assert cli.main([*words, "--to", str(tmp_path / "one"), "--form", "gguf", "--gguf_type", "f32"]) == 0
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["Modelfile", "README.md", "export.json", "model-f32.gguf"]
    facts = json.loads((tmp_path / "one" / "export.json").read_text())
    assert facts["kind"] == "gguf" and set(facts["files"]) == set(names) - {"export.json"}
    assert (tmp_path / "one" / "Modelfile").read_text().startswith("FROM ./model-f32.gguf\n")
    assert cli.main(["export", str(tmp_path / "one"), "--verify"]) == 0
    capsys.readouterr()
    require_same(tmp_path / "merged", tmp_path / "one" / "model-f32.gguf", tolerance=1e-5)


def test_an_unknown_architecture_is_refused_before_any_work(
    tiny_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, to = tiny_run("gpt2"), tmp_path / "out"
    assert cli.main(["export", str(run), "--to", str(to), "--form", "gguf"]) == 2
    assert "'gpt2' model; it can of llama, mistral, qwen2, qwen3" in capsys.readouterr().err
    assert cli.main(["export", str(run), "--to", str(to), "--form", "gguf", "--role", "reward"]) == 2
    assert "models that write text" in capsys.readouterr().err
    monkeypatch.delattr(ours, "gguf")
    assert cli.main(["export", str(run), "--to", str(to), "--form", "gguf"]) == 2
    assert "pip install gguf" in capsys.readouterr().err and not to.exists()
