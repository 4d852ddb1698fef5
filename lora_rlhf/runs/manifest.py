"""A stage's manifest.json. It may come from a stranger: every field that the code reads is checked."""

import re
from pathlib import Path
from typing import Any

from lora_rlhf.configs.catalogue import STAGES
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.plain_files import require_no_link
from lora_rlhf.system.untrusted import YES_OR_NO, FieldType, is_number, quote, read_object, require

MANIFEST = "manifest.json"
FORMAT = 1  # to be raised when older versions cannot read a new manifest
RUNNING, FINISHED = "running", "finished"
TOTAL = "total_steps"  # of the stage; in PPO, iterations. There from its first step on
WAY_OUT = "restore that file, make the stage again with --overwrite, or name another folder"
LONGEST_PATH = 4096
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


TEXT: FieldType = ("a text", _is_text)
TEXT_OR_NULL: FieldType = ("a text or null", lambda value: value is None or _is_text(value))
PATH: FieldType = ("a path", lambda value: _is_text(value) and len(value) <= LONGEST_PATH)
ID: FieldType = ("letters and digits", lambda value: isinstance(value, str) and bool(NAME.fullmatch(value)))
NUMBER: FieldType = ("a number", is_number)
DURATION: FieldType = ("a number of seconds", lambda value: is_number(value) and value >= 0)
OBJECT: FieldType = ("an object", lambda value: isinstance(value, dict))
COUNT: FieldType = ("a number of steps", lambda value: is_number(value) and isinstance(value, int) and value >= 0)
LIST: FieldType = ("a list", lambda value: isinstance(value, list))

ALWAYS = {"stage": TEXT, "status": TEXT, "id": ID, "base": OBJECT, "parents": OBJECT, "data": OBJECT}
ONCE_FINISHED = {"seconds": DURATION, "results": OBJECT}
BASE = {
    **{"name": PATH, "quantization": TEXT, "compute_dtype": TEXT, "trust_remote_code": YES_OR_NO},
    **{"source_hash": TEXT, "chat_template": TEXT_OR_NULL},
}
PARENT = {"folder": PATH, "stage": TEXT, "id": ID}
DATA = {"path": PATH, "sha256": TEXT_OR_NULL}
FROM_RUN = {"from_run": PATH}  # where a local file or folder is as seen from the run; 0.1.0 did not record it
RESULTS = {stage.name: {"offset": NUMBER} for stage in STAGES if stage.scores}  # what later stages compute with


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the stage in a folder. The fields that code reads have the right types; others are kept as is.

    A manifest without the field `format` has format 1. The values may come from a stranger: never open a path or run
    code only because the manifest names it.

    Raises UserError, with file, field and value, for a file that `read_object` refuses, a newer format, a missing field
    and a wrong type.
    """
    require_no_link(folder)
    path = folder / MANIFEST
    manifest = read_object(path, WAY_OUT)
    number = manifest.get("format", 1)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise UserError(f"{path}: format is {quote(number)}, expected {FORMAT}; {WAY_OUT}")
    if number > FORMAT:
        raise UserError(
            f"{path}: format is {number}, made by a newer version of lora-rlhf; this one reads up to {FORMAT}: "
            "upgrade lora-rlhf"
        )
    try:
        _check(manifest)
    except ValueError as error:
        raise UserError(f"{path}: {error}; {WAY_OUT}") from error
    return manifest


def _check(manifest: dict[str, Any]) -> None:
    """ValueError for a missing field, or one of another type."""
    require(manifest, ALWAYS)
    require(manifest["base"], BASE, "base.")
    if "from_run" in manifest["base"]:
        require(manifest["base"], FROM_RUN, "base.")
    for name, fields in (("parents", PARENT), ("data", DATA)):
        for key, record in manifest[name].items():
            require(manifest[name], {key: OBJECT}, f"{name}.")
            require(record, fields, f"{name}.{key}.")
            if "from_run" in record:
                require(record, FROM_RUN, f"{name}.{key}.")
    if TOTAL in manifest:
        require(manifest, {TOTAL: COUNT})
    if "resumed" in manifest:
        require(manifest, {"resumed": LIST})
    if manifest["status"] == FINISHED:
        require(manifest, ONCE_FINISHED)
        require(manifest["results"], RESULTS.get(manifest["stage"], {}), "results.")
