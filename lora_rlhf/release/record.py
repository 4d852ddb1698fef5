"""A gate's signed-off record: written once, whole, under a name of its own; a changed one is told by its seal."""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from lora_rlhf.release.rules import FAIL, PASS
from lora_rlhf.runs.manifest import LIST, OBJECT, TEXT
from lora_rlhf.system.disk import TEMPORARY, finite, new_file, sync
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import FieldType, quote, read_object, require

FOLDER = "gate"
FORMAT = 1
SEAL = "seal"  # sha256 over the rest: tells a change, by accident or by hand, and not who made it
WAY_OUT = "give a record that `lora-rlhf gate` wrote, unchanged"
DECISION: FieldType = (f"{PASS} or {FAIL}", lambda value: value in (PASS, FAIL))
RECORD = {
    "decision": DECISION,
    "rows": LIST,
    "candidate": OBJECT,
    "baseline": OBJECT,
    "report": OBJECT,
    "policy": OBJECT,
}


def write_record(run: Path, record: Mapping[str, Any], when: datetime) -> Path:
    """Writes RUN/gate/TIME-DECISION.json and returns where. What has that name already stays as it is."""
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    sealed = finite({"format": FORMAT, **record})
    sealed[SEAL] = _seal(sealed)
    draft = folder / f".{secrets.token_hex(4)}{TEMPORARY}"
    try:
        with new_file(draft) as file:
            file.write((json.dumps(sealed, indent=2, allow_nan=False) + "\n").encode())
        for path in _names(folder, f"{when:%Y%m%dT%H%M%SZ}", record["decision"]):
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)  # unlike a rename, this replaces nothing
                sync(folder)
                return path
    finally:
        draft.unlink(missing_ok=True)
    raise AssertionError("the names do not end")


def read_record(path: Path) -> dict[str, Any]:
    """A record as it was written. UserError for another file, a newer format, and one that was changed."""
    record = read_object(path, WAY_OUT)
    try:
        if record.get("format") != FORMAT:
            raise ValueError(f"format is {quote(record.get('format'))}, expected {FORMAT}")
        require(record, {**RECORD, SEAL: TEXT})
        for number, row in enumerate(record["rows"]):
            require({f"{number}": row}, {f"{number}": OBJECT}, "rows.")
            require(row, {"decision": DECISION}, f"rows.{number}.")
        if record[SEAL] != _seal(record):
            raise ValueError("it was changed after it was signed off")
        passes = bool(record["rows"]) and all(row["decision"] == PASS for row in record["rows"])
        if passes != (record["decision"] == PASS):
            raise ValueError(f"decision is {record['decision']}, which its rows do not say")
    except ValueError as error:
        raise UserError(f"{path} cannot be used: {error}; {WAY_OUT}") from error
    return record


def _seal(record: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in record.items() if name != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _names(folder: Path, time: str, decision: str) -> Iterator[Path]:
    """TIME-DECISION.json, then TIME-2-DECISION.json and so on, for decisions of the same second."""
    number = 1
    while True:
        yield folder / f"{time}{'' if number == 1 else f'-{number}'}-{decision}.json"
        number += 1
