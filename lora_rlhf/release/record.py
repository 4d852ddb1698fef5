"""A gate's signed-off record: a file that is written once; its seal shows whether it was changed."""

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
from lora_rlhf.system.plain_files import make_folder
from lora_rlhf.system.untrusted import FieldType, quote, read_object, require

RECORD_FOLDER = "gate"
FORMAT = 1
SEAL = "seal"  # sha256 over the other fields: shows that a record was changed, not who changed it
WAY_OUT = "give a record that `lora-rlhf gate` wrote, unchanged"
DECISION_TYPE: FieldType = (f"{PASS} or {FAIL}", lambda value: value in (PASS, FAIL))
RECORD_TYPES = {
    "decision": DECISION_TYPE,
    "rows": LIST,
    "candidate": OBJECT,
    "baseline": OBJECT,
    "report": OBJECT,
    "policy": OBJECT,
}


def write_record(run: Path, record: Mapping[str, Any], time: datetime) -> Path:
    """Writes RUN/gate/TIME-DECISION.json and returns its path. Never replaces a file."""
    folder = run / RECORD_FOLDER
    make_folder(folder)
    sealed_record = finite({"format": FORMAT, **record})
    sealed_record[SEAL] = _record_seal(sealed_record)
    draft = folder / f".{secrets.token_hex(4)}{TEMPORARY}"
    try:
        with new_file(draft) as file:
            file.write((json.dumps(sealed_record, indent=2, allow_nan=False) + "\n").encode())
        for path in _candidate_paths(folder, f"{time:%Y%m%dT%H%M%SZ}", record["decision"]):
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)  # unlike a rename, this replaces nothing
                sync(folder)
                return path
    finally:
        draft.unlink(missing_ok=True)
    raise AssertionError("the names do not end")


def newest_record(run: Path) -> Path:
    """The record of the last gate that was held on a run. UserError where there is none."""
    records = sorted((run / RECORD_FOLDER).glob("*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    if not records:
        raise UserError(f"{run / RECORD_FOLDER}: no record of a gate; `lora-rlhf gate --candidate {run}` writes one")
    return records[-1]


def read_gate_record(path: Path) -> dict[str, Any]:
    """Reads a record. Raises UserError for another file, a newer format, and a record that was changed."""
    record = read_object(path, WAY_OUT)
    try:
        if record.get("format") != FORMAT:
            raise ValueError(f"format is {quote(record.get('format'))}, expected {FORMAT}")
        require(record, {**RECORD_TYPES, SEAL: TEXT})
        for number, row in enumerate(record["rows"]):
            require({f"{number}": row}, {f"{number}": OBJECT}, "rows.")
            require(row, {"decision": DECISION_TYPE}, f"rows.{number}.")
        if record[SEAL] != _record_seal(record):
            raise ValueError("it was changed after it was signed off")
        all_passed = bool(record["rows"]) and all(row["decision"] == PASS for row in record["rows"])
        if all_passed != (record["decision"] == PASS):
            raise ValueError(f"decision is {record['decision']}, which its rows do not say")
    except ValueError as error:
        raise UserError(f"{path} cannot be used: {error}; {WAY_OUT}") from error
    return record


def _record_seal(record: Mapping[str, Any]) -> str:
    sealed_fields = {name: value for name, value in record.items() if name != SEAL}
    return hashlib.sha256(json.dumps(sealed_fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _candidate_paths(folder: Path, time: str, decision: str) -> Iterator[Path]:
    """Yields TIME-DECISION.json, then TIME-2-DECISION.json and so on, for decisions of the same second."""
    number = 1
    while True:
        yield folder / f"{time}{'' if number == 1 else f'-{number}'}-{decision}.json"
        number += 1
