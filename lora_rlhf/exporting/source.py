"""What is exported: a role of a run, its adapter, and the files of the base that it was trained on, all checked."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lora_rlhf.configs.catalogue import BY_ROLE
from lora_rlhf.model.adapters import read_adapter
from lora_rlhf.model.base import COMPUTE_DTYPES, BaseSpec, load_config, load_tokenizer, resolve_device, resolve_dtype
from lora_rlhf.model.files import config_file, find_files, hash_files, weight_files
from lora_rlhf.model.merging import Mode, Part, Planned, plan_merge
from lora_rlhf.model.open import COMPUTED_IN, RECORDED, require_trust
from lora_rlhf.runs.folder import Parent, adapter_hash, find_stage
from lora_rlhf.system.errors import UserError

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

log = logging.getLogger("lora_rlhf")

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class Prepared(NamedTuple):
    """A form of export that is ready to be written: the bytes that it needs on disk, and what fills its folder.

    `write` returns the manifest as far as it is known then.
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

    @property
    def base(self) -> dict[str, Any]:
        """What the stage's manifest records of its base."""
        record: dict[str, Any] = self.stage.manifest["base"]
        return record

    @property
    def base_name(self) -> str:
        """The base's name for others: a hub name as it is, of a folder here its last part alone."""
        name: str = self.base["name"]
        return Path(name).name if Path(name).expanduser().exists() else name

    @property
    def spec(self) -> BaseSpec:
        """The base as `load_base` takes it, computing in the dtype that was settled here."""
        record = {name: self.base[name] for name in RECORDED}
        return BaseSpec(**record | {"compute_dtype": self.computed_in})

    @property
    def computed_in(self) -> str:
        """The name of `compute_dtype`."""
        return str(self.compute_dtype).removeprefix("torch.")

    def parts(self) -> list[Part]:
        """Every tensor of the base and what the adapter adds to it. Only headers are read."""
        return plan_merge(
            self.config,
            self.weights,
            self.base["quantization"],
            self.compute_dtype,
            self.adapter,
            self.base["trust_remote_code"],
        )

    def planned(self, mode: Mode, dtype: torch.dtype) -> list[Planned]:
        """Every tensor of the merged model, under the names that the base's files have."""
        return [part.planned(mode, dtype, self.device) for part in self.parts()]


def open_source(run: str, role: str, device: str = "auto", trust_remote_code: bool = False) -> Source:
    """A role of a run. UserError, before any long work but reading the base's files once: no such finished stage,
    code of the base's own that nobody allowed, a shard that is missing, files that have changed since training.
    """
    stage_name = BY_ROLE[role].name
    stage = find_stage(Path(run) / stage_name, stage_name)
    record = stage.manifest["base"]
    require_trust(record, trust_remote_code)
    resolved_device = resolve_device(device)
    name, trusted = record["name"], record["trust_remote_code"]
    files = find_files(name)
    config = load_config(name, trusted)
    weights = weight_files(files, name)
    log.info("checking that %s is the base that %s was trained on", name, stage.folder)
    source_hash = hash_files([config_file(files), *weights])
    if source_hash != record["source_hash"]:
        raise UserError(
            f"base model {name!r}: its files have changed since {stage.folder} was trained on them (sha256 "
            f"{source_hash[:16]} now, {record['source_hash'][:16]} then); the adapter fits only the base that it was "
            "trained on. Restore those files"
        )
    tokenizer = load_tokenizer(name, trusted)
    tokenizer.chat_template = record["chat_template"]
    adapter = read_adapter(stage.adapter)
    return Source(
        Path(run),
        role,
        stage,
        config_file(files).parent,
        tuple(weights),
        config,
        tokenizer,
        adapter,
        adapter_hash(stage.folder),
        resolve_dtype(_computed_in(record), resolved_device),
        resolved_device,
    )


def _computed_in(record: dict[str, Any]) -> str:
    """The dtype that the run computed in; older manifests hold only what was asked for, which may be auto."""
    computed = record.get(COMPUTED_IN, record["compute_dtype"])
    if computed not in COMPUTE_DTYPES:
        raise UserError(f"the run's manifest has {COMPUTED_IN} {computed!r}, expected one of {COMPUTE_DTYPES}")
    return str(computed)
