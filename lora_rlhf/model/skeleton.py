"""A model without weights, built from its config alone: its tensors have shapes and dtypes but no bytes."""

import copy
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import (
    CONFIG_MAPPING,
    BitsAndBytesConfig,
    Cache,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
    masking_utils,
)
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils import import_utils

from lora_rlhf.model.adapted_linear import PLAIN_MODE, AdaptedLinears
from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.architecture import build_on_meta, find_training_fault, text_backbone, unquantized_layers
from lora_rlhf.model.devices import PlannedMode
from lora_rlhf.model.gates import replace_gates
from lora_rlhf.model.heads import lm_logits
from lora_rlhf.model.norms import replace_norms
from lora_rlhf.model.rotations import replace_rotations
from lora_rlhf.model.targets import ALL_LINEAR, find_targets
from lora_rlhf.system.errors import UserError

ROLE = "role"  # the one adapter of a skeleton: further ones cost their parameters, and nothing in a pass
BLOCK, NESTED_BLOCK = 64, 256  # weights that share a scale in NF4, and scales that share one in turn


@dataclass(frozen=True)
class Linear:
    """A linear layer: (out, in) of its weight, and whether it is quantized and carries an adapter."""

    out_features: int
    in_features: int
    quantized: bool
    adapted: bool


@dataclass(frozen=True)
class Counts:
    """What a model consists of, counted on the model itself.

    `kept` (never quantized) and `buffers` are bytes. without_adapter: the share of the text model's matrices.
    """

    family: str
    parameters: int
    linears: tuple[Linear, ...]
    kept: int
    buffers: int
    hidden_size: int
    vocab_size: int
    layers: int
    context: int | None
    without_adapter: float


@dataclass(frozen=True)
class Skeleton:
    """A model and one adapter on fake tensors. Run everything on it inside `mode`.

    linears, peft: of its adapted layers.
    """

    mode: PlannedMode
    causal: PreTrainedModel
    adapter: tuple[nn.Parameter, ...]
    score: nn.Linear
    linears: AdaptedLinears
    peft: PeftModel

    def hidden(
        self, ids: Tensor, mask: Tensor | None = None, positions: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """The backbone's hidden states: ids (B, T) -> (B, T, H)."""
        self.round_adapter()
        # without a mask transformers reads the positions, which have no numbers here: whether documents are packed
        with (
            patch.object(masking_utils, "find_packed_sequence_indices", lambda _positions: None),
            patch.object(import_utils, "is_fake_tensor", lambda tensor: tensor.is_meta),
        ):
            output = text_backbone(self.causal)(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        states: Tensor = output.last_hidden_state
        return states

    def round_adapter(self) -> None:
        """Writes the adapter's 16-bit copies, as `SharedModel` does before each pass in the plain mode on a GPU."""
        if self.mode.on_gpu and self.causal.dtype.itemsize == 2 and self.linears.mode is PLAIN_MODE:
            self.linears.round_adapter(ROLE, self.causal.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., H) -> (..., V)."""
        return lm_logits(self.causal, hidden)

    def new_cache(self) -> DynamicCache:
        """An empty cache of keys and values."""
        return DynamicCache(config=self.causal.config.get_text_config())

    def train(self, checkpointing: bool) -> None:
        """Turns on gradients for the adapter and the head. checkpointing: the backward pass computes layers again."""
        if checkpointing:
            # a backward pass is outside of the mode, in which its layers are to be computed again
            contexts = {"context_fn": lambda: (nullcontext(), self.mode)}
            self.causal.activation_checkpointing_enable({"use_reentrant": False, **contexts})
            self.causal.disable_input_require_grads()
        else:
            self.causal.activation_checkpointing_disable()
        self.causal.train()
        self._require_gradients(True)

    def eval(self) -> None:
        """Turns off gradients."""
        self.causal.eval()
        self._require_gradients(False)

    def _require_gradients(self, required: bool) -> None:
        for parameter in (*self.adapter, self.score.weight):
            parameter.requires_grad_(required)
            parameter.grad = torch.zeros_like(parameter) if required else None


def make_config(family: str, numbers: Mapping[str, object]) -> PreTrainedConfig:
    """A configuration of one of transformers' model types, from plain numbers."""
    return CONFIG_MAPPING[family](**numbers)


def count_model(
    config: PreTrainedConfig, quantization: str, dtype: torch.dtype, targets: tuple[str, ...] = (ALL_LINEAR,)
) -> Counts:
    """Builds the whole model on PyTorch's meta device and counts it.

    UserError for a model that cannot be built, or cannot be trained here.
    """
    causal = _build_or_refuse(config, dtype)
    if fault := find_training_fault(causal):
        raise UserError(f"{type(causal).__name__} {fault}")
    unquantized = unquantized_layers(causal) if quantization == "nf4" else None
    all_targets = find_targets(causal)
    adapted = all_targets.find(targets)
    linears, quantized_weights = [], set()
    for path, module in causal.named_modules():
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        rows, columns = module.weight.shape if isinstance(module, nn.Linear) else module.weight.shape[::-1]
        quantized = unquantized is not None and should_convert_module(path, unquantized)
        linears.append(Linear(rows, columns, quantized, path in adapted))
        if quantized:
            quantized_weights.add(id(module.weight))
    text = config.get_text_config()
    parameters = list(causal.parameters())
    return Counts(
        type(causal).__name__,
        sum(parameter.numel() for parameter in parameters),
        tuple(linears),
        sum(p.numel() * p.element_size() for p in parameters if id(p) not in quantized_weights),
        sum(buffer.numel() * buffer.element_size() for buffer in causal.buffers()),
        causal.get_input_embeddings().embedding_dim,
        text.vocab_size,
        text.num_hidden_layers,
        getattr(text, "max_position_embeddings", None),
        all_targets.share_without(targets),
    )


def build_skeleton(
    config: PreTrainedConfig,
    quantization: str,
    dtype: torch.dtype,
    lora: LoraSettings,
    layers: int,
    on_gpu: bool = True,
) -> Skeleton:
    """A model of the first `layers` layers on tensors without memory, for `plan`.

    It has the dtypes, the 4-bit layers and the adapter that it has in a stage.
    """
    causal = _build_or_refuse(_set_num_layers(config, layers), dtype)
    targets = find_targets(causal)
    with torch.device("meta"):
        if quantization == "nf4":
            _replace_by_4_bit(causal, dtype)
        with warnings.catch_warnings():
            # PEFT asks transformers for a property that is being renamed.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            peft_model = PeftModel(causal, lora.to_peft(targets), adapter_name=ROLE)
        score = nn.Linear(causal.get_input_embeddings().embedding_dim, 1, bias=False, dtype=torch.float32)
    mode = PlannedMode(on_gpu)
    with mode:
        fake = _make_fake_factory(dtype)
        for module in (*causal.modules(), score):
            _replace_tensors(module, fake)
    causal.requires_grad_(False)
    replace_norms(causal, lambda inputs, weight, _eps: _FusedNorm.apply(inputs, weight))
    replace_gates(causal)
    replace_rotations(causal)
    linears = AdaptedLinears()
    linears.install(peft_model)
    adapter = tuple(p for name, p in peft_model.named_parameters() if f".lora_A.{ROLE}." in name or ".lora_B." in name)
    skeleton = Skeleton(mode, causal, adapter, score, linears, peft_model)
    with mode:
        skeleton.round_adapter()  # makes the copies, which stay
    return skeleton


def _set_num_layers(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """A copy with this number of layers, which may be more than it has: lists with a value per layer repeat."""
    short = copy.deepcopy(config)
    text = short.get_text_config()
    for name, values in list(vars(text).items()):
        if isinstance(values, list) and len(values) == text.num_hidden_layers:
            kinds = list(dict.fromkeys(map(str, values)))
            if len(kinds) > 2 and all(isinstance(value, str) for value in values):
                values = sorted(kinds, key=lambda kind: "attention" not in kind)  # few layers are to hold all kinds
            setattr(text, name, [values[index % len(values)] for index in range(layers)])
    text.num_hidden_layers = layers
    if hasattr(text, "hybrid_layer_ids"):  # of Zamba 2, from its list
        text.hybrid_layer_ids = [index for index, kind in enumerate(text.layers_block_type) if kind == "hybrid"]
    return short


def _build_or_refuse(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """`build_on_meta`, with UserError for a config that makes no causal language model."""
    try:
        return build_on_meta(config, dtype)
    except (ValueError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"a {config.model_type!r} config does not make a causal language model ({reason}); give a config.json of "
            "a model that writes text"
        ) from error


def _replace_by_4_bit(causal: PreTrainedModel, dtype: torch.dtype) -> None:
    """Replaces linear layers by 4-bit ones, as transformers does before it loads their weights."""
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    replace_with_bnb_linear(causal, unquantized_layers(causal), settings)
    causal.is_loaded_in_4bit = True  # what PEFT chooses its layers by
    causal.config.get_text_config()._is_quantized = True  # what Jamba chooses its way by


def _make_fake_factory(dtype: torch.dtype) -> Callable[[nn.Module, str, Tensor], Tensor]:
    """Returns a function that makes a stand-in without weight values, same shape; a 4-bit layer's weight becomes NF4.

    Tied tensors have one stand-in.
    """
    fakes: dict[int, Tensor] = {}

    def fake(module: nn.Module, name: str, tensor: Tensor) -> Tensor:
        if id(tensor) not in fakes:
            if isinstance(module, Linear4bit) and name == "weight":
                fakes[id(tensor)] = _nf4_weight(module.out_features, module.in_features, dtype)
            else:
                empty = torch.empty(tensor.shape, dtype=dtype if isinstance(module, Linear4bit) else tensor.dtype)
                fakes[id(tensor)] = nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty
        return fakes[id(tensor)]

    return fake


def _replace_tensors(module: nn.Module, fake: Callable[[nn.Module, str, Tensor], Tensor]) -> None:
    """Replaces a module's own parameters and buffers by stand-ins."""
    for tensors in (module._parameters, module._buffers):
        for name, tensor in tensors.items():
            if tensor is not None:
                tensors[name] = fake(module, name, tensor)  # type: ignore[assignment]
    if hasattr(module, "support_avx512bf16_for_cpu"):
        module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _nf4_weight(rows: int, columns: int, dtype: torch.dtype) -> nn.Parameter:
    """A weight as bitsandbytes stores it: two values in a byte, a byte of scale a block, scales of the scales."""
    blocks = -(-rows * columns // BLOCK)
    scales = QuantState(
        absmax=torch.empty(-(-blocks // NESTED_BLOCK)),
        code=torch.empty(256),
        blocksize=NESTED_BLOCK,
        dtype=torch.float32,
    )
    state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8),
        shape=torch.Size((rows, columns)),
        code=torch.empty(16),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=dtype,
        offset=torch.empty(()),
        state2=scales,
    )
    weight = nn.Parameter(torch.empty(((rows * columns + 1) // 2, 1), dtype=torch.uint8), requires_grad=False)
    for name, value in {"quant_state": state, "compress_statistics": True, "quant_type": "nf4"}.items():
        setattr(weight, name, value)
    weight.bnb_quantized = True  # type: ignore[attr-defined]
    return weight


class _FusedNorm(torch.autograd.Function):
    """For a plan: launches, bytes and saved tensors of PyTorch's fused kernel, which needs a GPU. Not its numbers."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight, inputs.new_empty(inputs.shape[:-1], dtype=torch.float32))
        return inputs * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        inputs, weight, _ = ctx.saved_tensors
        return torch.addcmul(gradient, inputs, weight), None
