"""Writes a GGUF file, for llama.cpp and Ollama, from an exported folder: renames its tensors and streams them."""

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

from lora_rlhf.exporting.gguf_shape import GgufShape, gguf_shape
from lora_rlhf.exporting.gguf_vocab import GgufVocab, gguf_vocab
from lora_rlhf.model.tensor_files import Stored, read_index
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import read_object

with contextlib.suppress(ImportError):  # an optional package: `require_gguf` raises if it is missing
    import gguf

GgufType = Literal["f32", "f16", "bf16", "q8_0"]
PIECE_NUMBERS = 2**22  # numbers that are converted at a time
ALIGNMENT = 32
WAY_OUT = "give a folder that `lora-rlhf export` or save_pretrained wrote"


@dataclass(frozen=True)
class GgufPlan:
    """All that is written before the tensors. `specials`: {bos, eos, eot, pad, unk: id}, those that exist."""

    shape: GgufShape
    vocab: GgufVocab
    specials: dict[str, int]
    adds_bos: bool
    adds_eos: bool
    chat_template: str | None
    name: str


def require_gguf() -> None:
    """Raises UserError if the package that writes the format is not installed."""
    if "gguf" not in globals():
        raise UserError("--form gguf needs the package gguf: pip install gguf")


def plan_gguf(folder: Path, name: str) -> GgufPlan:
    """Plans a GGUF file from the small files of a model folder, which needs no weights yet.

    Raises UserError for a model or tokenizer that GGUF cannot describe.
    """
    require_gguf()
    shape = gguf_shape(read_object(folder / "config.json", WAY_OUT))
    vocab = gguf_vocab(_read_tokenizer_file(folder / "tokenizer.json"), shape.vocab_size)
    tokenizer_settings = _read_tokenizer_file(folder / "tokenizer_config.json")
    specials = {
        kind: vocab.id_of(_token_text(tokenizer_settings.get(f"{kind}_token"))) for kind in ("bos", "eos", "pad", "unk")
    }
    special_ids = {kind: id for kind, id in specials.items() if id is not None}
    if (turn_end := _turn_end_id(folder, special_ids)) is not None:
        special_ids["eot"] = turn_end
    sample_ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a").ids
    template_file = folder / "chat_template.jinja"
    return GgufPlan(
        shape,
        vocab,
        special_ids,
        adds_bos=sample_ids[:1] == [special_ids.get("bos")],
        adds_eos=sample_ids[-1:] == [special_ids.get("eos")],
        chat_template=template_file.read_text() if template_file.is_file() else tokenizer_settings.get("chat_template"),
        name=name,
    )


def _read_tokenizer_file(path: Path) -> dict[str, Any]:
    """Reads a JSON file of a tokenizer, in which a length can be a number of 31 digits."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be used: {error}; {WAY_OUT}") from error
    return values


def _token_text(token: Any) -> str | None:
    """The text of a special token; older files hold it inside an object."""
    return token.get("content") if isinstance(token, dict) else token


def _turn_end_id(folder: Path, specials: dict[str, int]) -> int | None:
    """The id that ends the assistant's turn, which is the first stop id of generation; None if that is EOS."""
    if not (folder / "generation_config.json").is_file():
        return None
    stop_ids = read_object(folder / "generation_config.json", WAY_OUT).get("eos_token_id")
    end_id = stop_ids[0] if isinstance(stop_ids, list) and stop_ids else stop_ids
    return end_id if isinstance(end_id, int) and end_id != specials.get("eos") else None


def write_gguf(
    folder: Path,
    path: Path,
    plan: GgufPlan,
    kind: GgufType,
    report_bytes: Callable[[int], object] = lambda _bytes: None,
) -> dict[str, str]:
    """Writes a GGUF file of an exported folder; returns {tensor: type} of the matrices with another type than `kind`.

    Matrices are of type `kind`, vectors float32. q8_0 has blocks of 32 numbers along a row; a matrix whose rows cannot
    be divided into such blocks is f16. Memory is that of a few rows. `report_bytes` is called with the number of bytes
    read.

    Raises UserError for missing or unknown tensors, and for numbers that f16 cannot hold.
    """
    index = read_index(sorted(folder.glob("*.safetensors")))
    stored_by_name = _tensors_by_gguf_name(index, plan.shape)
    type_by_name = {name: _tensor_type(stored, kind) for name, stored in stored_by_name.items()}
    rope_tensors = _rope_tensors(plan.shape)
    _write_header(path, plan, kind, stored_by_name, type_by_name, rope_tensors)
    with path.open("ab") as file:
        _write_padding(file)
        for values in rope_tensors.values():
            file.write(values.tobytes())
            _write_padding(file)
        for name, stored in stored_by_name.items():
            for piece in _row_pieces(stored, plan.shape):
                file.write(_convert_piece(piece, type_by_name[name], name).tobytes())
                report_bytes(piece.numel() * stored.dtype.itemsize)
            _write_padding(file)
    matrices = {name: type_by_name[name] for name, stored in stored_by_name.items() if len(stored.shape) > 1}
    return {name: matrix_kind.name for name, matrix_kind in matrices.items() if matrix_kind is not _gguf_types()[kind]}


def _gguf_types() -> dict[str, Any]:
    return {kind.name.lower(): kind for kind in gguf.GGMLQuantizationType}


def _tensors_by_gguf_name(index: dict[str, Stored], shape: GgufShape) -> dict[str, Stored]:
    """{GGUF name: tensor}. Raises UserError unless these are exactly the tensors of the architecture."""
    architecture = next(
        architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items() if name == shape.family.name
    )
    name_map = gguf.get_tensor_name_map(architecture, shape.blocks)
    tensors: dict[str, Stored] = {}
    for name, stored in index.items():
        if name == "lm_head.weight" and shape.is_tied:
            continue
        if name.endswith(".rotary_emb.inv_freq"):
            continue  # only in old files: llama.cpp computes it from the config
        gguf_name = name_map.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None or gguf_name in tensors:
            raise UserError(f"{stored.path.name}: GGUF has no tensor for {name!r} in a {shape.family.name} model")
        tensors[gguf_name] = stored
    block_parts = (
        "attn_norm",
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_norm",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
    )
    required_names = ["token_embd", "output_norm", *([] if shape.is_tied else ["output"])]
    required_names += [f"blk.{block}.{part}" for block in range(shape.blocks) for part in block_parts]
    if missing_names := [name for name in required_names if f"{name}.weight" not in tensors]:
        raise UserError(
            f"{len(missing_names)} tensors are missing that GGUF asks for, the first {missing_names[0]}; {WAY_OUT}"
        )
    return tensors


def _tensor_type(stored: Stored, kind: GgufType) -> Any:
    """The GGUF type in which a tensor is stored, if matrices are to be of type `kind`."""
    types = _gguf_types()
    if len(stored.shape) < 2:
        return types["f32"]  # llama.cpp computes norms and biases in it
    if kind == "q8_0" and stored.shape[-1] % gguf.GGML_QUANT_SIZES[types[kind]][0]:
        return types["f16"]
    return types[kind]


def _write_header(
    path: Path,
    plan: GgufPlan,
    kind: GgufType,
    stored_by_name: dict[str, Stored],
    type_by_name: dict[str, Any],
    rope_tensors: dict[str, numpy.ndarray[Any, Any]],
) -> None:
    """Writes the metadata, and each tensor's name, shape, type and position in the file."""
    writer = gguf.GGUFWriter(path, plan.shape.family.name)
    file_types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(plan.name)
    writer.add_file_type(gguf.LlamaFileType[file_types[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _write_shape(writer, plan.shape)
    _write_vocab(writer, plan)
    for name, values in rope_tensors.items():
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
    for name, stored in stored_by_name.items():
        block_size, block_bytes = gguf.GGML_QUANT_SIZES[type_by_name[name]]
        num_bytes = math.prod(stored.shape) // block_size * block_bytes
        writer.add_tensor_info(name, stored.shape, numpy.dtype(numpy.float32), num_bytes, raw_dtype=type_by_name[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _write_shape(writer: Any, shape: GgufShape) -> None:
    """Adds the figures of the model's layers to the metadata."""
    writer.add_context_length(shape.max_context_tokens)
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


def _write_vocab(writer: Any, plan: GgufPlan) -> None:
    """Adds the tokenizer to the metadata."""
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


def _rope_tensors(shape: GgufShape) -> dict[str, numpy.ndarray[Any, Any]]:
    factors = shape.rope.factors
    return {"rope_freqs.weight": numpy.array(factors, numpy.float32)} if factors else {}


def _row_pieces(stored: Stored, shape: GgufShape) -> Iterator[Tensor]:
    """Yields a tensor's rows in pieces, in llama.cpp's order; a vector in one piece."""
    rows = stored.shape[0]
    rows_per_piece = max(1, PIECE_NUMBERS // math.prod(stored.shape[1:]))
    is_reordered = shape.family.is_paired and any(f".{part}_proj." in stored.name for part in "qk")
    if is_reordered:  # rows are reordered inside a head only
        rows_per_piece = max(1, rows_per_piece // shape.head_dim) * shape.head_dim
    for first in range(0, rows, rows_per_piece):
        piece = stored.rows(first, min(first + rows_per_piece, rows))
        yield _interleave_halves(piece, shape.head_dim) if is_reordered else piece


def _interleave_halves(rows: Tensor, head_dim: int) -> Tensor:
    """Reorders the rows of whole heads: row i of the first half is followed by row i of the second half.

    transformers rotates the two halves of a head against each other, llama.cpp neighbouring rows.
    """
    heads = rows.shape[0] // head_dim
    return rows.reshape(heads, 2, head_dim // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _convert_piece(piece: Tensor, gguf_type: Any, name: str) -> numpy.ndarray[Any, Any]:
    """The numbers in the GGUF type; `name` is the tensor's, for the error."""
    values = piece.to(torch.float32).numpy()
    with numpy.errstate(over="ignore"):
        converted: numpy.ndarray[Any, Any] = gguf.quantize(values, gguf_type)
    if gguf_type is _gguf_types()["f16"] and not numpy.isfinite(converted).all():
        raise UserError(f"{name}: holds numbers over 65504, which f16 cannot hold; choose bf16 or f32")
    return converted


def _write_padding(file: Any) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))
