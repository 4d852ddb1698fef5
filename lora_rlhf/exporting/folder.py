"""What stands beside the weights: config, tokenizer, chat template, generation settings and the base's licence."""

import math
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lora_rlhf.data.template import pad_id, stop_ids
from lora_rlhf.exporting.source import Source
from lora_rlhf.model.dense import free_bytes
from lora_rlhf.model.merging import Planned
from lora_rlhf.system.disk import write_json
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import read_object

NOT_OURS = ("quantization_config", "_name_or_path", "transformers_version")
LICENCE = re.compile(r"(licen[cs]e|notice|use[_-]?policy|copying)", re.IGNORECASE)
MOST_CARD_BYTES = 2**20
MOST_LICENCE_BYTES = 2**20


def write_companions(folder: Path, source: Source, dtype: str) -> None:
    """Everything but weights, card and manifest."""
    write_config(folder, source, dtype, {})
    source.tokenizer.save_pretrained(folder)
    write_json(folder / "generation_config.json", generation_settings(source))
    copy_beside(folder, source)


def write_config(folder: Path, source: Source, dtype: str, settings: dict[str, Any]) -> None:
    """The base's config.json without quantization, with other settings in place of its own."""
    config = read_object(source.base_folder / "config.json", "fetch the base model again")
    kept = {name: value for name, value in config.items() if name not in NOT_OURS}
    # transformers 4 and vLLM read the older name, transformers 5 both
    write_json(folder / "config.json", kept | {"torch_dtype": dtype, "dtype": dtype} | settings)


def copy_beside(folder: Path, source: Source) -> None:
    """The base's licence, and its own code where that was allowed."""
    for path in sorted(source.base_folder.iterdir()):
        is_licence = LICENCE.match(path.name) is not None and path.stat().st_size <= MOST_LICENCE_BYTES
        is_code = path.suffix == ".py" and source.base["trust_remote_code"]
        if path.is_file() and (is_licence or is_code):
            shutil.copyfile(path, folder / path.name)


def generation_settings(source: Source) -> dict[str, Any]:
    """Where generation stops: at the tokens that ended a response in training."""
    tokenizer = source.tokenizer
    stops = stop_ids(tokenizer)
    settings: dict[str, Any] = {
        "eos_token_id": stops if len(stops) > 1 else stops[0],
        "pad_token_id": pad_id(tokenizer),
    }
    if tokenizer.bos_token_id is not None:
        settings["bos_token_id"] = tokenizer.bos_token_id
    return settings


def licence_of(base_folder: Path) -> dict[str, Any]:
    """{name, files}: the licence that the base's card names, and the files that hold one; null and none if unknown."""
    files = sorted(path.name for path in base_folder.iterdir() if path.is_file() and LICENCE.match(path.name))
    return {"name": _licence_name(base_folder / "README.md"), "files": files}


def _licence_name(card: Path) -> str | None:
    """The licence in the metadata of a model card."""
    if not card.is_file() or card.stat().st_size > MOST_CARD_BYTES:
        return None
    header = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        metadata = yaml.safe_load(header[1]) if header else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    name = metadata.get("license_name") or metadata.get("license") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) else None


def require_absent(to: Path) -> None:
    """Makes the folder that `to` will be in. UserError where `to` exists, or cannot be made there."""
    if to.exists() or to.is_symlink():
        raise UserError(f"{to}: exists already; give another --to, or remove it")
    try:
        to.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{to}: {to.absolute().parent} cannot be made ({os.strerror(error.errno or 0)}); give another --to"
        ) from error


def require_space(to: Path, needed: int) -> None:
    """UserError when the disk cannot take that many bytes."""
    free = shutil.disk_usage(to.absolute().parent).free
    if needed > free:
        raise UserError(
            f"{to}: the export takes {needed / 2**30:.2f} GiB, and {free / 2**30:.2f} GiB are free there; give --to on "
            "another disk, or a 16-bit --dtype"
        )


def require_memory(planned: Sequence[Planned], source: Source) -> None:
    """UserError when the merged model could not be loaded here, in what it computes in, to be compared."""
    numbers = sum(math.prod(tensor.entry.shape) for tensor in planned)
    needed, free = numbers * source.compute_dtype.itemsize, free_bytes(source.device)
    if needed > free > 0:
        raise UserError(
            f"comparing the export with the trained model takes {needed / 2**30:.1f} GiB on {source.device.type}, and "
            f"{free / 2**30:.1f} GiB are free; give another --device, or --parity none to export it unmeasured"
        )
