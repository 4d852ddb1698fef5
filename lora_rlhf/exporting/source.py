"""The source of an export: a role of a run, its adapter, and the files of its base, all checked."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lora_rlhf.configs.catalogue import BY_ROLE
from lora_rlhf.model.adapters import read_adapter
from lora_rlhf.model.base import BaseSpec, load_config, load_tokenizer
from lora_rlhf.model.devices import COMPUTE_DTYPES, resolve_device, resolve_dtype
from lora_rlhf.model.files import find_config_file, find_files, find_weight_files, hash_files
from lora_rlhf.model.merging import Mode, Part, PlannedTensor, plan_merge
from lora_rlhf.model.open import COMPUTED_IN, SPEC_FIELDS, require_base_folder, require_trust
from lora_rlhf.model.text_part import text_parts
from lora_rlhf.runs.folder import Parent, adapter_hash, find_stage
from lora_rlhf.system.errors import UserError

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

log = logging.getLogger("lora_rlhf")

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class PreparedExport(NamedTuple):
    """An export that is ready to be written: the bytes that it needs on disk, and a function that fills its folder.

    `write` returns the facts for the manifest, as far as they are known at that time.
    """

    num_bytes: int
    write: Callable[[Path], dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """A trained role and its base, both as they are on disk.

    `compute_dtype` is what the base is loaded in, and so what its rounded weights are read out in; `device` is where.
    """

    run: Path
    role: str
    stage: Parent
    base_folder: Path
    weights: tuple[Path, ...]
    config: "PreTrainedConfig"
    tokenizer: "PreTrainedTokenizerBase"
    adapter: tuple["LoraConfig", dict[str, Tensor]]
    adapter_hash: str
    compute_dtype: torch.dtype
    device: torch.device
    text_only: bool = False

    @property
    def base(self) -> dict[str, Any]:
        """What the stage's manifest records of its base."""
        record: dict[str, Any] = self.stage.manifest["base"]
        return record

    @property
    def base_name(self) -> str:
        """The base's name for other machines: its hub name, or only the last part of a folder's path."""
        name: str = self.base["name"]
        return Path(name).name if Path(name).expanduser().exists() else name

    @property
    def spec(self) -> BaseSpec:
        """The base as `load_base` takes it, computing in `compute_dtype`."""
        record = {name: self.base[name] for name in SPEC_FIELDS}
        return BaseSpec(**record | {"compute_dtype": self.compute_dtype_name})

    @property
    def compute_dtype_name(self) -> str:
        """The name of `compute_dtype`."""
        return str(self.compute_dtype).removeprefix("torch.")

    def parts(self) -> list[Part]:
        """Every tensor of the base, or of its text model, and the adapter's change to it. Reads headers only."""
        parts = plan_merge(
            self.config,
            self.weights,
            self.base["quantization"],
            self.compute_dtype,
            self.adapter,
            self.base["trust_remote_code"],
        )
        return text_parts(self.config, parts) if self.text_only else parts

    def planned_tensors(self, mode: Mode, dtype: torch.dtype) -> list[PlannedTensor]:
        """Every tensor of the merged model, under its name in the export's files."""
        return [part.plan_tensor(mode, dtype, self.device) for part in self.parts()]


def open_source(
    run: str, role: str, device: str = "auto", trust_remote_code: bool = False, text_only: bool = False
) -> Source:
    """Opens a role of a run.

    Raises UserError before any long work, except that the base's files are read once: if there is no such finished
    stage, if code of the base is not allowed, if a shard is missing, or if files have changed since training.
    """
    stage_name = BY_ROLE[role].name
    stage = find_stage(Path(run) / stage_name, stage_name)
    record = stage.manifest["base"]
    require_trust(record, trust_remote_code)
    require_base_folder(record)
    resolved_device = resolve_device(device)
    name, trusted = record["name"], record["trust_remote_code"]
    files = find_files(name)
    config = load_config(name, trusted, record["quantization"])
    weights = find_weight_files(files, name)
    adapter = read_adapter(stage.adapter)  # before the base, which takes longer
    log.info("checking that %s is the base that %s was trained on", name, stage.folder)
    source_hash = hash_files([find_config_file(files), *weights])
    if source_hash != record["source_hash"]:
        raise UserError(
            f"base model {name!r}: its files have changed since {stage.folder} was trained on them (sha256 "
            f"{source_hash[:16]} now, {record['source_hash'][:16]} then); the adapter fits only the base that it was "
            "trained on. Restore those files"
        )
    tokenizer = load_tokenizer(name, trusted)
    tokenizer.chat_template = record["chat_template"]
    return Source(
        Path(run),
        role,
        stage,
        find_config_file(files).parent,
        tuple(weights),
        config,
        tokenizer,
        adapter,
        adapter_hash(stage.folder),
        resolve_dtype(_recorded_dtype_name(record), resolved_device),
        resolved_device,
        text_only,
    )


def _recorded_dtype_name(record: dict[str, Any]) -> str:
    """The dtype that the run computed in; an older manifest holds only the setting, which may be "auto"."""
    computed = record.get(COMPUTED_IN, record["compute_dtype"])
    if computed not in COMPUTE_DTYPES:
        raise UserError(f"the run's manifest has {COMPUTED_IN} {computed!r}, expected one of {COMPUTE_DTYPES}")
    return str(computed)
