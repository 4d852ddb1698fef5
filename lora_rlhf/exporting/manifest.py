"""export.json: the source of an export, how close it is to the trained model, and its files' hashes. Written last."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from lora_rlhf import __version__
from lora_rlhf.exporting.source import Source
from lora_rlhf.system.disk import sha256_of
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import YES_OR_NO, FieldType, is_number, quote, read_object, require

MANIFEST = "export.json"
PARITY = "parity.json"
FORMAT = 1
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "safetensors")
WAY_OUT = "give a folder that `lora-rlhf export` made"
OBJECT_TYPE: FieldType = ("an object", lambda value: isinstance(value, dict))
TEXT_TYPE: FieldType = ("a text", lambda value: isinstance(value, str))
NUMBER_TYPE: FieldType = ("a number", is_number)


def source_facts(source: Source, mode: str, dtype: str) -> dict[str, Any]:
    """The facts of the manifest that are known before any measurement."""
    manifest = source.stage.manifest
    return {
        "format": FORMAT,
        "kind": "merged",
        "role": source.role,
        "source": {
            "run": source.run.resolve().name,
            "stage": manifest["stage"],
            "id": manifest["id"],
            "adapter_sha256": source.adapter_hash,
            "base": {
                **{key: value for key, value in source.base.items() if key not in ("chat_template", "from_run")},
                "name": source.base_name,
            },
        },
        "mode": mode,
        "meaning": MODE_MEANINGS[mode],
        "dtype": dtype,
        "read_out_in": source.compute_dtype_name,
        "device": source.device.type,
        "versions": {
            "lora-rlhf": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


MODE_MEANINGS = {
    "rounded": "the adapter added to the base as it was trained on: rounded, and read out again",
    "original": "the adapter added to the base's original weights, which it was not trained on",
}


def hash_folder(folder: Path, known_hashes: dict[str, str]) -> dict[str, str]:
    """{path within the folder: sha256} of every file; files with a known hash are not read."""
    hashes = dict(known_hashes)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in hashes and name != MANIFEST:
            hashes[name] = sha256_of(path)
    return hashes


def read_export_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an export, with the types of its fields checked.

    Raises UserError if there is none, if its format is newer, or if an export would not write such fields.
    """
    manifest = read_object(folder / MANIFEST, WAY_OUT)
    try:
        require(
            manifest,
            {"files": OBJECT_TYPE, "parity": OBJECT_TYPE, "source": OBJECT_TYPE, "mode": TEXT_TYPE, "dtype": TEXT_TYPE},
        )
        if manifest.get("format") != FORMAT:
            raise ValueError(f"format is {quote(manifest.get('format'))}, this version reads {FORMAT}")
        require(manifest["source"], {"base": OBJECT_TYPE}, "source.")
        require(manifest["source"]["base"], {"trust_remote_code": YES_OR_NO}, "source.base.")
        require(manifest["files"], dict.fromkeys(manifest["files"], TEXT_TYPE), "files.")
        require(manifest["parity"], {"measured": YES_OR_NO}, "parity.")
        if manifest["parity"]["measured"]:
            require(
                manifest["parity"],
                {"export": OBJECT_TYPE, "adapter_effect": OBJECT_TYPE, "forced": YES_OR_NO},
                "parity.",
            )
            for part in ("export", "adapter_effect"):
                require(
                    manifest["parity"][part], dict.fromkeys(manifest["parity"][part], NUMBER_TYPE), f"parity.{part}."
                )
    except ValueError as error:
        raise UserError(f"{folder / MANIFEST}: {error}; {WAY_OUT}") from error
    return manifest
