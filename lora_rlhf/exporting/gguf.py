"""Writes GGUF, the file that llama.cpp and Ollama read: an exported folder's tensors under other names, streamed."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from tokenizers import Tokenizer
from torch import Tensor

from lora_rlhf.exporting.gguf_shape import Shape, shape_of
from lora_rlhf.exporting.gguf_vocab import Vocab, vocab_of
from lora_rlhf.model.tensor_files import Stored, read_index
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import read_object

with contextlib.suppress(ImportError):  # an extra; `require_gguf` says so where it is missing
    import gguf

GgufType = Literal["f32", "f16", "bf16", "q8_0"]
PIECE = 2**22  # numbers that are converted at a time
ALIGNMENT = 32
WAY_OUT = "give a folder that `lora-rlhf export` or save_pretrained wrote"


@dataclass(frozen=True)
class GgufPlan:
    """All that is written before the tensors. `specials`: {bos, eos, eot, pad, unk: id}, those that there are."""

    shape: Shape
    vocab: Vocab
    specials: dict[str, int]
    adds_bos: bool
    adds_eos: bool
    chat_template: str | None
    name: str


def require_gguf() -> None:
    """UserError where the library that writes the format is not installed."""
    if "gguf" not in globals():
        raise UserError("--form gguf needs the package gguf: pip install 'lora-rlhf[gguf]'")


def plan_gguf(folder: Path, name: str) -> GgufPlan:
    """What the small files of a model folder say; its weights need not be there. UserError where GGUF has no equal."""
    require_gguf()
    shape = shape_of(read_object(folder / "config.json", WAY_OUT))
    vocab = vocab_of(_read(folder / "tokenizer.json"), shape.vocab_size)
    settings = _read(folder / "tokenizer_config.json")
    specials = {kind: vocab.id_of(_text(settings.get(f"{kind}_token"))) for kind in ("bos", "eos", "pad", "unk")}
    special_ids = {kind: id for kind, id in specials.items() if id is not None}
    if (turn_end := _turn_end(folder, special_ids)) is not None:
        special_ids["eot"] = turn_end
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a").ids
    template = folder / "chat_template.jinja"
    return GgufPlan(
        shape,
        vocab,
        special_ids,
        adds_bos=ids[:1] == [special_ids.get("bos")],
        adds_eos=ids[-1:] == [special_ids.get("eos")],
        chat_template=template.read_text() if template.is_file() else settings.get("chat_template"),
        name=name,
    )


def _read(path: Path) -> dict[str, Any]:
    """A tokenizer's file, which save_pretrained wrote; its longest length may be a number of 31 digits."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be used: {error}; {WAY_OUT}") from error
    return values


def _text(token: Any) -> str | None:
    """A special token's text; older files have it inside an object."""
    return token.get("content") if isinstance(token, dict) else token


def _turn_end(folder: Path, specials: dict[str, int]) -> int | None:
    """The first id at which generation stops that is not EOS: the end of the assistant's turn."""
    if not (folder / "generation_config.json").is_file():
        return None
    stops = read_object(folder / "generation_config.json", WAY_OUT).get("eos_token_id")
    others = [id for id in (stops if isinstance(stops, list) else [stops]) if id != specials.get("eos")]
    return others[0] if others else None


def write_gguf(
    folder: Path, path: Path, plan: GgufPlan, kind: GgufType, done: Callable[[int], object] = lambda _bytes: None
) -> dict[str, str]:
    """Writes one GGUF file of an exported folder; returns {tensor: type} of those that are not of `kind`.

    Matrices are of `kind`, vectors float32; q8_0 has blocks of 32 along a row, and a matrix whose rows are not made of
    such blocks stays f16. Memory is that of a few rows. `done` is told of bytes read.

    UserError: tensors that are missing or unknown, and numbers that f16 cannot hold.
    """
    index = read_index(sorted(folder.glob("*.safetensors")))
    names = _names(index, plan.shape)
    kinds = {name: _kind_of(stored, kind) for name, stored in names.items()}
    extra = _rope_factors(plan.shape)
    _write_head(path, plan, kind, names, kinds, extra)
    with path.open("ab") as file:
        _pad(file)
        for values in extra.values():
            file.write(values.tobytes())
            _pad(file)
        for name, stored in names.items():
            for piece in _pieces(stored, plan.shape):
                file.write(_converted(piece, kinds[name], name).tobytes())
                done(piece.numel() * stored.dtype.itemsize)
            _pad(file)
    matrices = {name: kinds[name] for name, stored in names.items() if len(stored.shape) > 1}
    return {name: matrix_kind.name for name, matrix_kind in matrices.items() if matrix_kind is not _kinds()[kind]}


def _kinds() -> dict[str, Any]:
    return {kind.name.lower(): kind for kind in gguf.GGMLQuantizationType}


def _names(index: dict[str, Stored], shape: Shape) -> dict[str, Stored]:
    """{GGUF's name: tensor}, in the order of GGUF's names. UserError unless they are exactly the architecture's."""
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == shape.family.name)
    known = gguf.get_tensor_name_map(arch, shape.blocks)
    tensors: dict[str, Stored] = {}
    for name, stored in index.items():
        if name == "lm_head.weight" and shape.is_tied:
            continue
        if name.endswith(".rotary_emb.inv_freq"):
            continue  # of old files: computed from the config
        new = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if new is None or new in tensors:
            raise UserError(f"{stored.path.name}: GGUF has no tensor for {name!r} in a {shape.family.name} model")
        tensors[new] = stored
    blocks = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
    needed = ["token_embd", "output_norm", *([] if shape.is_tied else ["output"])]
    needed += [f"blk.{block}.{part}" for block in range(shape.blocks) for part in blocks]
    if missing := [name for name in needed if f"{name}.weight" not in tensors]:
        raise UserError(f"{len(missing)} tensors are missing that GGUF asks for, the first {missing[0]}; {WAY_OUT}")
    return tensors


def _kind_of(stored: Stored, kind: GgufType) -> Any:
    kinds = _kinds()
    if len(stored.shape) < 2:
        return kinds["f32"]  # llama.cpp computes norms and biases in it
    if kind == "q8_0" and stored.shape[-1] % gguf.GGML_QUANT_SIZES[kinds[kind]][0]:
        return kinds["f16"]
    return kinds[kind]


def _write_head(
    path: Path,
    plan: GgufPlan,
    kind: GgufType,
    names: dict[str, Stored],
    kinds: dict[str, Any],
    extra: dict[str, numpy.ndarray[Any, Any]],
) -> None:
    """Metadata, and each tensor's name, shape, type and place."""
    writer = gguf.GGUFWriter(path, plan.shape.family.name)
    files = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(plan.name)
    writer.add_file_type(gguf.LlamaFileType[files[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, plan.shape)
    _add_vocab(writer, plan)
    for name, values in extra.items():
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
    for name, stored in names.items():
        block, size = gguf.GGML_QUANT_SIZES[kinds[name]]
        num_bytes = math.prod(stored.shape) // block * size
        writer.add_tensor_info(name, stored.shape, numpy.dtype(numpy.float32), num_bytes, raw_dtype=kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _add_shape(writer: Any, shape: Shape) -> None:
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.blocks)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_vocab_size(shape.vocab_size)
    rope = shape.rope
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(rope.base)
    if rope.scaling != "none":
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope.scaling))
        writer.add_rope_scaling_factor(rope.factor)
    if rope.scaling == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope.original_context)
        writer.add_rope_scaling_yarn_beta_fast(rope.beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(rope.beta_slow)


def _add_vocab(writer: Any, plan: GgufPlan) -> None:
    vocab = plan.vocab
    writer.add_tokenizer_model(vocab.model)
    writer.add_tokenizer_pre(vocab.split)
    writer.add_token_list(list(vocab.tokens))
    writer.add_token_types(list(vocab.kinds))
    if vocab.model == "gpt2":
        writer.add_token_merges(list(vocab.merges))
    else:
        writer.add_token_scores(list(vocab.scores))
        writer.add_add_space_prefix(vocab.adds_space)
    for kind, id in plan.specials.items():
        getattr(writer, f"add_{kind}_token_id")(id)
    writer.add_add_bos_token(plan.adds_bos)
    writer.add_add_eos_token(plan.adds_eos)
    if plan.chat_template is not None:
        writer.add_chat_template(plan.chat_template)


def _rope_factors(shape: Shape) -> dict[str, numpy.ndarray[Any, Any]]:
    factors = shape.rope.factors
    return {"rope_freqs.weight": numpy.array(factors, numpy.float32)} if factors else {}


def _pieces(stored: Stored, shape: Shape) -> Iterator[Tensor]:
    """A tensor's rows from the first to the last, in llama.cpp's order; a vector in one piece."""
    rows = stored.shape[0]
    step = max(1, PIECE // math.prod(stored.shape[1:]))
    is_turned = shape.family.is_paired and any(f".{part}_proj." in stored.name for part in "qk")
    if is_turned:  # rows change places inside a head only
        step = max(1, step // shape.head_dim) * shape.head_dim
    for first in range(0, rows, step):
        piece = stored.rows(first, min(first + step, rows))
        yield _in_pairs(piece, shape.head_dim) if is_turned else piece


def _in_pairs(rows: Tensor, head_dim: int) -> Tensor:
    """Rows of whole heads: from the two halves that transformers rotates against each other to neighbours."""
    heads = rows.shape[0] // head_dim
    return rows.reshape(heads, 2, head_dim // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _converted(piece: Tensor, kind: Any, name: str) -> numpy.ndarray[Any, Any]:
    values = piece.to(torch.float32).numpy()
    with numpy.errstate(over="ignore"):
        converted: numpy.ndarray[Any, Any] = gguf.quantize(values, kind)
    if kind is _kinds()["f16"] and not numpy.isfinite(converted).all():
        raise UserError(f"{name}: holds numbers over 65504, which f16 cannot hold; choose bf16 or f32")
    return converted


def _pad(file: Any) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))
