"""Load the one frozen base model, 4-bit by default, and identify it by the bytes it was loaded from."""

import contextlib
import functools
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear8bitLt
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from lora_rlhf.model.architecture import find_auto_class, find_training_fault
from lora_rlhf.model.devices import COMPUTE_DTYPES, begin_on, no_room_text, resolve_device, resolve_dtype, unused_gpu
from lora_rlhf.model.files import (
    Files,
    find_config_file,
    find_file,
    find_files,
    find_weight_files,
    hash_files,
    silence_retries,
)
from lora_rlhf.model.heads import check_logits
from lora_rlhf.model.quantized import find_stored_fault, find_stored_settings
from lora_rlhf.model.stranger_config import find_code_fault, find_size_fault
from lora_rlhf.model.stranger_tokenizer import find_tokenizer_fault
from lora_rlhf.system.errors import UserError, first_line
from lora_rlhf.system.untrusted import read_object

log = logging.getLogger("lora_rlhf")

QUANTIZATIONS = ("nf4", "int8", "none")
ADVICE = (
    "Check the spelling and the network; a gated model needs `hf auth login`; a local model needs the path of its "
    "folder; one with its own code needs trust_remote_code."
)


@dataclass(frozen=True)
class BaseSpec:
    """Which base model, and how it is held in memory.

    name: a hub name, a local folder, or "tinyworld" for the checkpoint inside this package.
    quantization: "nf4" (4-bit NormalFloat with double quantization, QLoRA, arXiv 2305.14314), "int8" or "none".
    compute_dtype: "auto" is float32 on a CPU, bfloat16 on a GPU that has it, float16 on an older one.
    """

    name: str
    quantization: str = "nf4"
    compute_dtype: str = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for field, allowed in (("quantization", QUANTIZATIONS), ("compute_dtype", COMPUTE_DTYPES)):
            value = getattr(self, field)
            if value not in allowed:
                raise UserError(f"{field} is {value!r}; choose one of {', '.join(allowed)}")


@dataclass(frozen=True)
class Base:
    """The frozen base in memory. `source_hash`: of its files, before any quantization."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    spec: BaseSpec
    source_hash: str
    device: torch.device


def load_base(spec: BaseSpec, device: str = "auto", recorded_hash: str | None = None) -> Base:
    """Loads, freezes and checks the base. `device`: "auto", "cpu", "cuda" or "cuda:N".

    recorded_hash: the `source_hash` of the base of a run; with other files nothing is loaded.

    UserError for other files than those of the run, a name without a model, a folder without config, tokenizer or
    safetensors weights, weights that do not fill the model, a tokenizer without an end-of-sequence token, and a model
    that cannot be used here.
    """
    resolved_device = resolve_device(device)
    if resolved_device.type == "cuda":
        begin_on(resolved_device, is_4_bit=spec.quantization == "nf4")
    elif device == "auto" and (fault := unused_gpu()):
        log.warning("%s; `lora-rlhf doctor` says why. Going on on the CPU", fault)
    files = find_files(spec.name)
    with silence_retries():
        config = _load_config(files, spec)
        source_hash = _hash_source(files, spec.name)
        if recorded_hash not in (None, source_hash):
            raise UserError(
                f"base model {spec.name!r}: its files have changed since the run began (sha256 {source_hash[:16]} now, "
                f"{str(recorded_hash)[:16]} then); adapters fit only the base that they were trained on. Restore those "
                "files, or start a new run"
            )
        _require_fit(files, spec.name, find_weight_files(files, spec.name))
        tokenizer = _load_tokenizer(files, spec.name, spec.trust_remote_code)
        try:
            model = _load_model(files, spec, config, resolved_device)
        except torch.OutOfMemoryError as error:
            raise UserError(f"base model {spec.name!r} does not fit: {no_room_text(resolved_device)}") from error
    _require_usable(model, tokenizer, spec)
    card = (
        f"{resolved_device} ({torch.cuda.get_device_name(resolved_device)})"
        if resolved_device.type == "cuda"
        else "the CPU"
    )
    log.info("the base is on %s and computes in %s", card, str(model.dtype).removeprefix("torch."))
    return Base(model, tokenizer, spec, source_hash, resolved_device)


def hash_source(name: str) -> str:
    """The `source_hash` of a base. `name` is as in `BaseSpec`; errors are those of `load_base`."""
    files = find_files(name)
    with silence_retries():
        return _hash_source(files, name)


def _hash_source(files: Files, name: str) -> str:
    """`hash_source` of files that were found."""
    return hash_files([find_config_file(files), *find_weight_files(files, name)])


def load_config(name: str, trust_remote_code: bool = False, quantization: str = "nf4") -> PreTrainedConfig:
    """The configuration of a base model, without any weights. Arguments as in `BaseSpec`; errors are `load_base`'s."""
    files = find_files(name)
    with silence_retries():
        return _load_config(files, BaseSpec(name, quantization, trust_remote_code=trust_remote_code))


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model, without the model. `name` is as in `BaseSpec`; errors are those of `load_base`."""
    files = find_files(name)
    with silence_retries():
        return _load_tokenizer(files, name, trust_remote_code)


def generation_stops(name: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The control tokens at which generation ends by the base's generation_config.json, in its order; mostly its EOS.

    A file that transformers derived from config.json says nothing, and neither does one that cannot be read.
    """
    path = find_file(find_files(name), "generation_config.json")
    try:
        settings = {} if path is None else read_object(Path(path), "")
    except UserError:
        settings = {}
    ids = [] if settings.get("_from_model_config") else settings.get("eos_token_id")
    tokens = tokenizer.added_tokens_decoder
    return [tokens[id].content for id in (ids if isinstance(ids, list) else [ids]) if type(id) is int and id in tokens]


def _load_tokenizer(files: Files, name: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer. UserError if it does not load, has no end-of-sequence token, or is a trap."""
    path = find_file(files, "tokenizer.json")
    if path is not None and not trust_remote_code and (fault := find_tokenizer_fault(Path(path))):
        raise UserError(f"base model {name!r}: {fault}. --trust_remote_code true takes it, if you trust its author")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            files.name, trust_remote_code=trust_remote_code, local_files_only=files.only_local
        )
    except Exception as error:  # the library for tokenizer.json raises no other type
        raise UserError(f"base model {name!r}: its tokenizer does not load. {ADVICE} ({first_line(error)})") from error
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"base model {name!r}: its tokenizer has no end-of-sequence token, so no response could ever end; "
            "set eos_token in its tokenizer_config.json"
        )
    # Silences the tokenizer's warning of long texts: this project truncates, refuses or counts them itself.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def hash_live_tensors(model: PreTrainedModel) -> str:
    """sha256 over every live tensor of the base, quantization state included; adapters and heads are left out.

    The same before and after adapters are added, so equal digests mean that the base was not written.
    """
    sha256 = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items(), key=lambda item: item[0]):
        if ".lora_" in name or name.startswith("score.") or not isinstance(tensor, torch.Tensor):
            continue
        sha256.update(f"{name.replace('.base_layer.', '.')} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha256.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def _load_config(files: Files, spec: BaseSpec) -> PreTrainedConfig:
    """The configuration. UserError if it does not load, or if the base is stored in a quantization that is not read."""
    settings: dict[str, Any] = {}
    with contextlib.suppress(OSError):  # the library says it better
        settings = read_object(find_config_file(files), "give another model", follow_links=True)
    if fault := find_code_fault(settings):
        raise UserError(f"base model {spec.name!r}: {fault}")
    try:
        config = AutoConfig.from_pretrained(
            files.name, trust_remote_code=spec.trust_remote_code, local_files_only=files.only_local
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"base model {spec.name!r}: neither an existing folder nor a model that could be fetched from the hub. "
            f"{ADVICE} ({first_line(error)})"
        ) from error
    if (stored_settings := find_stored_settings(config)) and (
        fault := find_stored_fault(spec.name, stored_settings, spec.quantization)
    ):
        raise UserError(f"base model {spec.name!r} {fault}")
    _require_fit(files, spec.name, sorted(Path(files.name).glob("*.safetensors")))  # of the hub, nothing is there yet
    _disable_training_noise(config)
    return config


def _require_fit(files: Files, name: str, weights: Sequence[Path]) -> None:
    """UserError if these weights cannot be those of the config, before a model of its sizes is built."""
    if weights:
        settings = read_object(find_config_file(files), "give another model", follow_links=True)
        if fault := find_size_fault(settings, weights):
            raise UserError(f"base model {name!r}: {fault}")


def _disable_training_noise(config: PreTrainedConfig) -> None:
    """Turns off what a model does to its numbers only in training, in the text model of a wrapper too.

    The base is frozen: dropout and noise in it could not regularise anything, and would move the policy's ratio off 1.
    Gemma 3n also clamps two of its weights, which in 4 bits would destroy them.
    """
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        for key, value in part.to_dict().items():
            if isinstance(value, float) and ("dropout" in key or key.endswith(("pdrop", "jitter_noise"))):
                setattr(part, key, 0.0)
        if hasattr(part, "altup_coef_clip"):
            vars(part)["altup_coef_clip"] = None  # the class allows numbers alone


def _load_model(files: Files, spec: BaseSpec, config: PreTrainedConfig, device: torch.device) -> PreTrainedModel:
    """The frozen model in eval mode. UserError if it does not load or its files lack tensors."""
    dtype = resolve_dtype(spec.compute_dtype, device)
    quantization: dict[str, Any] = {}
    if settings := find_stored_settings(config):
        config.quantization_config = settings | {"bnb_4bit_compute_dtype": str(dtype).removeprefix("torch.")}
    elif spec.quantization == "nf4":
        quantization = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": dtype,
        }
    elif spec.quantization == "int8":
        quantization = {"load_in_8bit": True}
        # It says once per layer and pass that inputs are cast to float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    try:
        with hide_progress_bars():
            model, report = find_auto_class(config).from_pretrained(
                files.name,
                **files.for_models,
                config=config,
                dtype=dtype,
                device_map={"": device},
                quantization_config=BitsAndBytesConfig(**quantization) if quantization else None,
                use_safetensors=True,
                trust_remote_code=spec.trust_remote_code,
                output_loading_info=True,
            )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"base model {spec.name!r} does not load ({first_line(error)})") from error
    if model._hf_peft_config_loaded:
        raise UserError(
            f"base model {spec.name!r}: an adapter lies beside it, which transformers added to it; merge the two, or "
            "give a model without one"
        )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(
            f"base model {spec.name!r}: its files lack {len(missing)} tensors that the model needs, the first being "
            f"{missing[0]}; they would have been random"
        )
    for module in model.modules():
        # On CPUs with AVX512-BF16 bitsandbytes would repack the weights in place on the first eval forward: the base
        # would change, and eval and train forwards would differ.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        if isinstance(module, Linear8bitLt) and device.type == "cpu":
            module.forward = functools.partial(_forward_8_bit, module)
    return model.requires_grad_(False).eval()


def _forward_8_bit(layer: Linear8bitLt, inputs: Tensor) -> Tensor:
    """W x, with W dequantized from 8 bits, also in eval mode.

    On a CPU bitsandbytes computes so in train mode, and faster; in eval mode it also rounds x to 8 bits, so that a
    policy's log-probabilities in the update would be up to 0.3 nats off those of the rollout.
    """
    training, layer.training = layer.training, True
    try:
        product: Tensor = Linear8bitLt.forward(layer, inputs)
    finally:
        layer.training = training
    return product


def _require_usable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: BaseSpec) -> None:
    """UserError for an architecture, a tokenizer or logits that cannot be used here."""
    if fault := find_training_fault(model):
        raise UserError(f"base model {spec.name!r}: {type(model).__name__} {fault}")
    rows = model.get_input_embeddings().num_embeddings
    if not _has_unused_surplus(tokenizer, rows):
        raise UserError(f"base model {spec.name!r}: {len(tokenizer)} tokens in the tokenizer, {rows} in the model")
    check_logits(model)


def _has_unused_surplus(tokenizer: PreTrainedTokenizerBase, rows: int) -> bool:
    """Whether all tokens without a row in the model are control tokens that neither texts nor the template hold.

    Gemma 3 1B and 270M have one such token, for images.
    """
    needed = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    added, template = tokenizer.added_tokens_decoder, str(tokenizer.chat_template)
    return all(
        id in added and added[id].special and id not in needed and token not in template
        for token, id in tokenizer.get_vocab().items()
        if id >= rows
    )


@contextlib.contextmanager
def hide_progress_bars() -> Iterator[None]:
    """Inside, transformers displays no progress bars."""
    enabled = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            hf_logging.enable_progress_bar()
