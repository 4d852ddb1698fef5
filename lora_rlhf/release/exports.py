"""Reads a finished export folder: which trained stage it was made from."""

from dataclasses import dataclass
from pathlib import Path

from lora_rlhf.runs.manifest import ID, OBJECT, TEXT
from lora_rlhf.system.disk import sha256_of
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import quote, read_object, require

MANIFEST = "export.json"
WAY_OUT = "name a folder that `lora-rlhf export` wrote"


@dataclass(frozen=True)
class Export:
    """A finished export. `id` and `adapter`: id and adapter hash of its stage. `sha256`: of its manifest."""

    folder: Path
    id: str
    adapter: str
    sha256: str


def read_export(folder: Path) -> Export:
    """The export in a folder. Raises UserError if it is not finished: its manifest is written last."""
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder; {WAY_OUT}")
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: holds no finished export ({MANIFEST} is not there); {WAY_OUT}")
    manifest = read_object(path, WAY_OUT)
    try:
        require(manifest, {"source": OBJECT, "files": OBJECT})
        require(manifest["source"], {"id": ID, "adapter_sha256": TEXT}, "source.")
        if missing_files := [name for name in manifest["files"] if not (folder / name).is_file()]:
            raise ValueError(f"{quote(missing_files[0])} is not there any more")
    except ValueError as error:
        raise UserError(f"{path}: {error}; {WAY_OUT}") from error
    source = manifest["source"]
    return Export(folder, source["id"], source["adapter_sha256"], sha256_of(path))
