"""The files beside the weights: config, tokenizer, chat template, generation settings and the base's licence."""

import math
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lora_rlhf.data.chosen_template import without_date
from lora_rlhf.data.template import ensure_template, pad_id, stop_ids
from lora_rlhf.exporting.source import Source
from lora_rlhf.model.base import generation_stops
from lora_rlhf.model.dense import free_bytes
from lora_rlhf.model.merging import PlannedTensor
from lora_rlhf.model.text_part import text_settings
from lora_rlhf.system.disk import write_json
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DROPPED_SETTINGS = ("quantization_config", "_name_or_path", "transformers_version")
LICENCE_NAME = re.compile(r"(licen[cs]e|notice|use[_-]?policy|copying)", re.IGNORECASE)
MOST_CARD_BYTES = 2**20
MOST_LICENCE_BYTES = 2**20


def write_companions(folder: Path, source: Source, dtype: str) -> None:
    """Writes all files but weights, card and manifest."""
    write_config(folder, source, dtype, {})
    save_tokenizer(folder, source.tokenizer)
    write_json(folder / "generation_config.json", generation_settings(source))
    copy_licence_and_code(folder, source)


def save_tokenizer(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> None:
    """The tokenizer with the run's chat template, but for the run's date: that is the day on which it is used."""
    template = ensure_template(tokenizer)
    tokenizer.chat_template = without_date(template)
    tokenizer.save_pretrained(folder)
    tokenizer.chat_template = template


def write_config(folder: Path, source: Source, dtype: str, settings: dict[str, Any]) -> None:
    """Writes the base's config.json without quantization; `settings` are added, or replace the base's."""
    config = read_object(source.base_folder / "config.json", "fetch the base model again", follow_links=True)
    if source.text_only:
        config = text_settings(str(source.base_folder))
    kept_settings = {name: value for name, value in config.items() if name not in DROPPED_SETTINGS}
    # transformers 4 and vLLM read "torch_dtype", transformers 5 reads both
    write_json(folder / "config.json", kept_settings | {"torch_dtype": dtype, "dtype": dtype} | settings)


def copy_licence_and_code(folder: Path, source: Source) -> None:
    """Copies the base's licence files, and its code if that was allowed for the run."""
    for path in sorted(source.base_folder.iterdir()):
        is_licence = LICENCE_NAME.match(path.name) is not None and path.stat().st_size <= MOST_LICENCE_BYTES
        is_code = path.suffix == ".py" and source.base["trust_remote_code"]
        if path.is_file() and (is_licence or is_code):
            shutil.copyfile(path, folder / path.name)


def generation_settings(source: Source) -> dict[str, Any]:
    """The content of generation_config.json: generation stops where responses end, in training and in the base."""
    tokenizer = source.tokenizer
    base_stops = tokenizer.convert_tokens_to_ids(generation_stops(source.base["name"], tokenizer))
    stops = list(dict.fromkeys([*stop_ids(tokenizer), *base_stops]))
    settings: dict[str, Any] = {
        "eos_token_id": stops if len(stops) > 1 else stops[0],
        "pad_token_id": pad_id(tokenizer),
    }
    if tokenizer.bos_token_id is not None:
        settings["bos_token_id"] = tokenizer.bos_token_id
    return settings


def licence_facts(base_folder: Path) -> dict[str, Any]:
    """{name, files}: the licence that the base's card names (or None), and the files that hold a licence."""
    files = sorted(path.name for path in base_folder.iterdir() if path.is_file() and LICENCE_NAME.match(path.name))
    return {"name": _licence_name(base_folder / "README.md"), "files": files}


def _licence_name(card: Path) -> str | None:
    """The licence in the metadata of a model card; None if there is none."""
    if not card.is_file() or card.stat().st_size > MOST_CARD_BYTES:
        return None
    header = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        metadata = yaml.safe_load(header[1]) if header else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    name = metadata.get("license_name") or metadata.get("license") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) else None


def require_absent(target: Path) -> None:
    """Makes the parent folder of `target`. Raises UserError if `target` exists, or if its parent cannot be made."""
    if target.exists() or target.is_symlink():
        raise UserError(f"{target}: exists already; give another --to, or remove it")
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{target}: {target.absolute().parent} cannot be made ({os.strerror(error.errno or 0)}); give another --to"
        ) from error


def require_space(target: Path, needed_bytes: int) -> None:
    """Raises UserError if the disk has fewer free bytes than needed."""
    free_disk_bytes = shutil.disk_usage(target.absolute().parent).free
    if needed_bytes > free_disk_bytes:
        raise UserError(
            f"{target}: the export takes {needed_bytes / 2**30:.2f} GiB, and {free_disk_bytes / 2**30:.2f} GiB are "
            "free there; give --to on another disk, or a 16-bit --dtype"
        )


def require_memory(planned: Sequence[PlannedTensor], source: Source) -> None:
    """Raises UserError if the merged model, in the dtype of the comparison, does not fit into the device's memory."""
    num_values = sum(math.prod(tensor.entry.shape) for tensor in planned)
    needed_bytes, available_bytes = num_values * source.compute_dtype.itemsize, free_bytes(source.device)
    if needed_bytes > available_bytes > 0:
        raise UserError(
            f"comparing the export with the trained model takes {needed_bytes / 2**30:.1f} GiB on "
            f"{source.device.type}, and {available_bytes / 2**30:.1f} GiB are free; give another "
            "--device, or --parity none to export it unmeasured"
        )
