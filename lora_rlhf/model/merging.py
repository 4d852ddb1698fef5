"""An adapter added to its base, tensor by tensor from the base's own files: the model is never in memory.

"rounded" adds it to the weights that it was trained on: the base's, rounded to 4 bits and read out again. "original"
adds it to the weights in the files: the adapter was never trained with the differences between the two.
"""

import functools
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, build_glob_alternation, rename_source_key
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.pytorch_utils import Conv1D

from lora_rlhf.model.adapter_folder import layer_of_tensor
from lora_rlhf.model.adapters import require_fit
from lora_rlhf.model.architecture import build_on_meta, is_wrapper, text_backbone, unquantized_layers
from lora_rlhf.model.rounding import round_pieces, rows_per_piece
from lora_rlhf.model.stored_nf4 import StoredNF4, with_matrices
from lora_rlhf.model.tensor_files import Entry, Stored, read_index
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import quote

log = logging.getLogger("lora_rlhf")

Mode = Literal["rounded", "original"]
PIECE_NUMBERS = 2**20  # numbers that are merged at a time


class Update(NamedTuple):
    """The change of a layer's weight (out, in) by an adapter: scale * up @ down; down (rank, in), up (out, rank)."""

    down: Tensor
    up: Tensor
    scale: float


class PlannedTensor(NamedTuple):
    """A tensor that will be written, and its values piece by piece, from the first row to the last."""

    entry: Entry
    pieces: Callable[[], Iterator[Tensor]]


@dataclass(frozen=True)
class Part:
    """A tensor of the base's files, its parameter in the model, and what the adapter adds to it.

    name: of the parameter in the model, which may differ from that in the file.
    model_dtype: the dtype of the parameter in memory; of a quantized one, the dtype that it is read out in. None: not a
    float, or not of the text model, and copied as it is.
    transposed: the file has (in, out), and the quantized layer (out, in), as in GPT-2.
    joined: transformers makes the parameter of several tensors, such as those of single experts. No adapter changes it.
    saved_as: the name in the export; that in the base's file unless given.
    """

    stored: Stored | StoredNF4
    name: str
    model_dtype: torch.dtype | None
    quantization: str
    transposed: bool
    update: Update | None
    joined: bool = False
    saved_as: str | None = None

    def pieces(self, mode: Mode, dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
        """The merged values in `dtype`, in the layout of the file, a few rows at a time; rounded once, at the end."""
        if self.model_dtype is None:
            yield self.stored.rows(0, self._num_rows)
            return
        start = 0
        for piece in self._base_weights(mode, device):
            end = start + (piece.shape[0] if piece.dim() else 1)
            if self.update is not None:
                down, up = self.update.down.to(device), self.update.up[start:end].to(device)
                piece = piece.float().addmm_(up, down, alpha=self.update.scale)
            start = end
            yield (piece.T if self.transposed else piece).to(dtype)

    def _base_weights(self, mode: Mode, device: torch.device) -> Iterator[Tensor]:
        """The base's weights, in the layout of the layer."""
        is_rounded = mode == "rounded"
        pieces = (piece.to(device, self.model_dtype if is_rounded else None) for piece in self._stored_pieces())
        return round_pieces(pieces, self.quantization) if is_rounded else pieces

    def _stored_pieces(self) -> Iterator[Tensor]:
        """The values in the file, a few rows at a time, in the layout of the layer."""
        if self.transposed:
            yield self.stored.rows(0, self._num_rows).T.contiguous()
            return
        shape = self.stored.shape
        step = rows_per_piece(shape[1], PIECE_NUMBERS) if len(shape) == 2 else max(1, self._num_rows)
        for start in range(0, self._num_rows, step):
            yield self.stored.rows(start, min(start + step, self._num_rows))

    @property
    def _num_rows(self) -> int:
        return self.stored.shape[0] if self.stored.shape else 1

    def plan_tensor(self, mode: Mode, dtype: torch.dtype, device: torch.device) -> PlannedTensor:
        """The tensor that will be written."""
        dtype_in_file = dtype if self.model_dtype is not None else self.stored.dtype
        entry = Entry(self.saved_as or self.stored.name, dtype_in_file, self.stored.shape)
        return PlannedTensor(entry, functools.partial(self.pieces, mode, dtype, device))


def plan_merge(
    config: PreTrainedConfig,
    files: Sequence[Path],
    quantization: str,
    compute_dtype: torch.dtype,
    adapter: tuple[LoraConfig, Mapping[str, Tensor]],
    trust_remote_code: bool = False,
) -> list[Part]:
    """The part that each tensor of the base's safetensors `files` has in a merge, in the order of the files.

    quantization: "nf4", "int8" or "none"; a base that is stored in nf4 is read out of that. compute_dtype: the dtype
    that the model was loaded in. adapter: as `read_adapter` returns it. Only headers are read. UserError for files
    without a tensor that the model needs, for linear layers that transformers would join or split while loading, and
    for an adapter that does not fit or writes to a tied weight.
    """
    causal = build_on_meta(config, compute_dtype, trust_remote_code)
    lora, state = adapter
    try:
        require_fit(causal, lora, dict(state))
    except ValueError as error:
        raise UserError(f"the adapter does not fit this base: {error}") from error
    _require_untied(causal, state)
    index = with_matrices(read_index(files))
    if any(isinstance(tensor, StoredNF4) for tensor in index.values()):
        quantization = "none"  # is done already, and what is read of the files is what was trained on
    _quantize_on_meta(causal, quantization)
    names, joined = _map_names(causal, list(index))
    shapes = {name: tuple(tensor.shape) for name, tensor in causal.state_dict().items()}
    _require_all_tensors(causal, {name: index[key] for key, name in names.items()}, shapes, joined)
    dtype_of = _make_dtype_lookup(causal, compute_dtype)
    is_trained = _make_text_model_filter(causal)
    parts = []
    for key, name in names.items():
        tensor = index[key]
        if name not in shapes:
            log.info("%s is left out: this model does not use it", tensor.name)
            continue
        if name in joined or not is_trained(name):
            dtype = dtype_of(name) if tensor.dtype.is_floating_point and is_trained(name) else None
            parts.append(Part(tensor, name, dtype, "none", False, None, joined=name in joined))
            continue
        path, _, last = name.rpartition(".")
        module = causal.get_submodule(path)
        is_weight = last == "weight"
        original_class = getattr(module, "source_cls", type(module))
        parts.append(
            Part(
                tensor,
                name,
                dtype_of(name) if tensor.dtype.is_floating_point else None,
                quantization if is_weight and hasattr(module, "source_cls") else "none",
                is_weight and original_class is Conv1D,
                _find_update(path, lora, state) if is_weight else None,
            )
        )
    return parts


def _quantize_on_meta(causal: PreTrainedModel, quantization: str) -> None:
    """Replaces layers by quantized ones as transformers does before it loads their weights, with its own functions."""
    if quantization == "none":
        return
    settings = BitsAndBytesConfig(load_in_4bit=quantization == "nf4", load_in_8bit=quantization != "nf4")
    replace_with_bnb_linear(causal, unquantized_layers(causal), settings)


def _map_names(causal: PreTrainedModel, keys: Sequence[str]) -> tuple[dict[str, str], set[str]]:
    """Maps each name in the files to the parameter that it becomes, by transformers' own rules.

    Also the parameters that it joins of several tensors; UserError for a linear layer among them.
    """
    state = causal.state_dict()
    rules = get_model_conversion_mapping(causal)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    names: dict[str, str] = {}
    joined: set[str] = set()
    for key in keys:
        name, converter = rename_source_key(key, renamings, converters, causal.base_model_prefix, state)
        if name not in state and key in state:
            name, converter = key, None
        is_joined = converter is not None
        if is_joined:
            joined.add(name)
        module = causal.get_submodule(name.rpartition(".")[0]) if name in state else None
        if (is_joined and isinstance(module, nn.Linear | Conv1D)) or (not is_joined and name in names.values()):
            raise UserError(
                f"{type(causal).__name__} is stored in another arrangement than it computes in ({quote(key)} becomes "
                f"part of {quote(name)}); such models cannot be merged tensor by tensor. Use the adapter as it is"
            )
        names[key] = name
    return names, joined


def _make_text_model_filter(causal: PreTrainedModel) -> Callable[[str], bool]:
    """A function that tells whether a parameter is of the text model or LM head, not of a tower beside them."""
    if not is_wrapper(causal.config):
        return lambda _name: True
    modules = {id(module): path for path, module in causal.named_modules()}
    roots = tuple(f"{modules[id(module)]}." for module in (text_backbone(causal), causal.get_output_embeddings()))
    return lambda name: name.startswith(roots)


def _make_dtype_lookup(causal: PreTrainedModel, dtype: torch.dtype) -> Callable[[str], torch.dtype]:
    """A function from a parameter's name to its dtype in memory: some families keep a few in float32."""
    plan = causal._get_dtype_plan(dtype)
    if not plan:
        return lambda _name: dtype
    pattern, groups, _ = build_glob_alternation(list(plan))

    def dtype_of(name: str) -> torch.dtype:
        match = pattern.search(name)
        return dtype if match is None or match.lastgroup is None else plan[groups[match.lastgroup]]

    return dtype_of


def _require_all_tensors(
    causal: PreTrainedModel,
    stored: Mapping[str, Stored | StoredNF4],
    shapes: Mapping[str, tuple[int, ...]],
    joined: Collection[str],
) -> None:
    """UserError unless every parameter is in the files, or tied to one that is, and has the shape of the model's.

    Of a joined one, at least one tensor must be there.
    """
    tied = causal.all_tied_weights_keys
    pairs = [*tied.items(), *((source, target) for target, source in tied.items())]
    available = {name for name, partner in pairs if partner in stored}
    if missing := sorted({name for name, _ in causal.named_parameters()} - stored.keys() - available):
        raise UserError(f"the base's files lack {len(missing)} tensors that the model needs, the first {missing[0]}")
    for name, tensor in stored.items():
        if name in shapes and name not in joined and not _has_model_shape(causal, name, tensor, shapes[name]):
            raise UserError(f"{tensor.path}: {tensor.name} is {tensor.shape}, but the model has {shapes[name]}")


def _has_model_shape(causal: PreTrainedModel, name: str, tensor: Stored | StoredNF4, shape: tuple[int, ...]) -> bool:
    """Whether a tensor has the shape of its parameter, transposed for a quantized Conv1D."""
    module = causal.get_submodule(name.rpartition(".")[0])
    is_transposed = getattr(module, "source_cls", None) is Conv1D and name.endswith(".weight")
    return tensor.shape == (shape[::-1] if is_transposed else shape)


def _require_untied(causal: PreTrainedModel, state: Mapping[str, Tensor]) -> None:
    """UserError for an adapter on a layer that shares its weight with another: the sum would change both."""
    tied = causal.all_tied_weights_keys
    for path in {layer for layer in map(layer_of_tensor, state) if layer is not None}:
        if f"{path}.weight" in {*tied, *tied.values()}:
            raise UserError(
                f"the adapter writes to {path}, whose weight is tied to another layer's: the two cannot be merged. Use "
                "the adapter as it is"
            )


def _find_update(path: str, lora: LoraConfig, state: Mapping[str, Tensor]) -> Update | None:
    """The change of the weight of the layer at `path`; None if the adapter does not change that layer."""
    name = f"base_model.model.{path}.lora_{{}}.weight"
    if name.format("A") not in state:
        return None
    down, up = (state[name.format(part)].float() for part in "AB")
    rank = down.shape[0]
    return Update(down, up, lora.lora_alpha / (rank**0.5 if lora.use_rslora else rank))
