"""The files of a base model in a folder, the hub or its cache: found or refused within seconds; and their hash."""

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import is_offline_mode
from transformers.utils import cached_file

from lora_rlhf.system.disk import sha256_of
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.network import hub_fault
from lora_rlhf.system.untrusted import quote

TINYWORLD = "tinyworld"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
ADAPTER_CONFIG = "adapter_config.json"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class Files(NamedTuple):
    """Where a model's files are. `name`: a folder or a hub name. `only_local`: only the cache is to be read."""

    name: str
    only_local: bool

    @property
    def for_models(self) -> dict[str, Any]:
        """Arguments for a model class. It looks for an adapter too, and unasked would try the hub for that."""
        return {"local_files_only": self.only_local, "adapter_kwargs": {"local_files_only": self.only_local}}


def find_files(name: str) -> Files:
    """A folder that holds a model, or a hub name; UserError within seconds when neither can be had."""
    folder = Path(str(resources.files("lora_rlhf") / "tinyworld" / "base") if name == TINYWORLD else name).expanduser()
    if folder.exists():
        if fault := _find_folder_fault(folder):
            raise UserError(f"base model {name!r}: {fault}")
        return Files(str(folder), False)
    if HUB_NAME.fullmatch(name) is None:
        return Files(name, False)  # no hub name: the library refuses it at once
    # the library would try each file for half a minute before it looks into its cache
    fault = None if is_offline_mode() else hub_fault()
    if fault is not None and not _is_cached(name):
        raise UserError(
            f"base model {name!r}: no such folder here, not in the cache of models, and the hub cannot be reached "
            f"({fault}). Without a network: on another machine run `hf download {name} --local-dir models/"
            f"{name.rsplit('/', maxsplit=1)[-1]}`, copy that folder here and give its path."
        )
    return Files(name, fault is not None)


def _find_folder_fault(folder: Path) -> str | None:
    """Why a folder is not a whole model in safetensors, with advice; None if it may be one."""
    has_config, has_adapter = (folder / "config.json").is_file(), (folder / ADAPTER_CONFIG).is_file()
    if has_config and has_adapter:
        return (
            f"a model and {ADAPTER_CONFIG} of an adapter are both there; the library would add the adapter to the "
            f"model unseen. Remove {ADAPTER_CONFIG}, or merge the adapter first"
        )
    if has_adapter:
        return f"an adapter, which is no model by itself{_adapter_base_advice(folder)}"
    if not has_config and any(folder.glob("*.gguf")):
        return "only GGUF files are there, which are for llama.cpp; give the original model with its safetensors files"
    if not has_config:
        return "no config.json there; give a folder written by save_pretrained"
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(LFS_POINTER):
            return (
                f"{path.name} is a pointer of Git LFS, not the file itself; run `git lfs pull` in the folder, or fetch "
                "the model with `hf download`"
            )
    return None


def _adapter_base_advice(folder: Path) -> str:
    """Advice for the folder of an adapter: the base's name, quoted because its author is unknown."""
    try:
        base = json.loads((folder / ADAPTER_CONFIG).read_text())["base_model_name_or_path"]
    except (OSError, ValueError, TypeError, KeyError):
        base = None
    return f"; it was trained on {quote(base)}: give that model" if isinstance(base, str) else ""


def _is_cached(name: str) -> bool:
    """Whether the hub's cache on this machine has the model's config."""
    try:
        return cached_file(name, "config.json", local_files_only=True) is not None
    except OSError:
        return False


def find_config_file(files: Files) -> Path:
    """The path of config.json."""
    return Path(cached_file(files.name, "config.json", local_files_only=files.only_local))


def find_file(files: Files, filename: str) -> str | None:
    """The path of a file that a model may lack; None without it."""
    try:
        return cached_file(
            files.name,
            filename,
            local_files_only=files.only_local,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False,
        )
    except OSError:
        return None


def find_weight_files(files: Files, name: str) -> list[Path]:
    """The safetensors files that transformers loads: one file, or the shards that the index lists."""
    if single := find_file(files, "model.safetensors"):
        return [Path(single)]
    if index := find_file(files, "model.safetensors.index.json"):
        shards = sorted(set(json.loads(Path(index).read_text())["weight_map"].values()))
        paths = [(shard, find_file(files, shard)) for shard in shards]
        for shard, path in paths:
            if path is None:
                raise UserError(f"base model {name!r}: shard {shard} is listed in {index} and is not there")
        return [Path(path) for _, path in paths if path is not None]
    if not Path(files.name).exists() and (files.only_local or is_offline_mode()):
        raise UserError(f"base model {name!r}: its weights are not in the cache, and the hub cannot be reached")
    raise UserError(
        f"base model {name!r}: no safetensors weights. Pickled weights (.bin, .pt) can run code and are refused; "
        "convert them with save_pretrained"
    )


def hash_files(paths: list[Path]) -> str:
    """sha256 over the hashes of the files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(bytes.fromhex(sha256_of(path, follow_links=True)))
    return digest.hexdigest()


@contextlib.contextmanager
def silence_retries() -> Iterator[None]:
    """Inside, failed tries of a download write nothing to the terminal: the caller reports the outcome once."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
