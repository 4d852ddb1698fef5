"""The pointer to the export that is in use: `promote` moves it in one step, `rollback` moves it back."""

import contextlib
import glob
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_rlhf.configs.values import check
from lora_rlhf.release.config import PromoteConfig, RollbackConfig
from lora_rlhf.release.exports import Export, read_export
from lora_rlhf.release.gate import login_name, summarize_record
from lora_rlhf.release.history import DONE, MOVING, PROMOTE, ROLLBACK, History, read_pointer
from lora_rlhf.release.record import newest_record, read_gate_record
from lora_rlhf.release.rules import PASS
from lora_rlhf.runs.resume import Lock
from lora_rlhf.system.disk import TEMPORARY, sha256_of, sync
from lora_rlhf.system.errors import UserError


def promote(config: PromoteConfig) -> str:
    """Makes the pointer lead to an export folder; returns a sentence for the user.

    Raises UserError before it writes: if the folder holds no finished export, if the gate's record is of another
    policy, did not pass or was changed, if the pointer is no link, or if another process is moving it.
    """
    check(config)
    pointer = Path(config.to)
    export = read_export(Path(os.path.realpath(config.folder)))
    approval = _approval_entry(config, export)
    with _lock_pointer(pointer):
        history = History.read(pointer)
        new_target, old_target = os.path.relpath(export.folder, os.path.realpath(pointer.parent)), read_pointer(pointer)
        if new_target == old_target:
            raise UserError(f"{pointer}: leads to {new_target} already")
        history.add(
            PROMOTE, new_target, MOVING, export_sha256=export.sha256, stage_id=export.id, by=login_name(), **approval
        )
        _move_pointer(pointer, history, new_target)
    return f"{pointer} leads to {new_target} now{f'; before, to {old_target}' if old_target else ''}"


def rollback(config: RollbackConfig) -> str:
    """Makes the pointer lead to its previous target; returns a sentence for the user.

    Raises UserError before it writes: if there is no previous target, or if its export is missing or was replaced.
    """
    check(config)
    pointer = Path(config.to)
    if read_pointer(pointer) is None:
        raise UserError(f"{pointer}: there is no such pointer; `lora-rlhf promote` makes one")
    with _lock_pointer(pointer):
        history = History.read(pointer)
        *_, new_target, old_target = [None, *history.targets_in_use]
        if new_target is None:
            raise UserError(
                f"{pointer}: leads to {old_target}, and nothing was in use before that; promote another export"
            )
        export = read_export(pointer.parent / new_target)
        recorded_hashes = [
            entry.get("export_sha256")
            for entry in history.entries
            if entry["to"] == new_target and entry["state"] == DONE
        ]
        if (recorded_hash := next(filter(None, reversed(recorded_hashes)), None)) not in (None, export.sha256):
            raise UserError(
                f"{pointer.parent / new_target}: another export is there than the one that was in use (sha256 of its "
                f"manifest {export.sha256}, then {recorded_hash}); promote it by itself if it is to be used"
            )
        history.add(ROLLBACK, new_target, MOVING, export_sha256=export.sha256, stage_id=export.id, by=login_name())
        history.entries[-1] |= {"reason": config.reason} if config.reason else {}
        _move_pointer(pointer, history, new_target)
    return f"{pointer} leads to {new_target} again; before, to {old_target}"


def _approval_entry(config: PromoteConfig, export: Export) -> dict[str, Any]:
    """Why this export may be promoted, for the history. Raises UserError if the record does not allow it."""
    if config.gate is None:
        return {"without_gate": config.without_gate}
    path = Path(config.gate)
    if path.is_dir():
        path = newest_record(path)
    record = read_gate_record(path)
    if record["decision"] != PASS:
        raise UserError(f"{path}: this policy did not pass ({summarize_record(record)}); promote one that did")
    passed_id = record["candidate"].get("id")
    if passed_id != export.id:
        raise UserError(
            f"{path}: is about the stage {passed_id}, and {export.folder} was made from {export.id}: give the record "
            "of that one, or export the stage that passed"
        )
    if record["candidate"].get("adapter_sha256") != export.adapter:
        raise UserError(f"{path}: is about another adapter of stage {passed_id} than {export.folder}: export it again")
    return {"gate": {"record": path.name, "sha256": sha256_of(path), "summary": summarize_record(record)}}


@contextlib.contextmanager
def _lock_pointer(pointer: Path) -> Iterator[None]:
    """Holds a lock, so that no other process moves this pointer. Removes files that a killed process left."""
    if not pointer.parent.is_dir():
        raise UserError(f"{pointer}: the folder {pointer.parent} is not there; make it, or name another pointer")
    lock = Lock(pointer.with_name(f".{pointer.name}.lock"), "wait for it, then give the command again")
    lock.acquire()
    try:
        for leftover in pointer.parent.glob(f".{glob.escape(pointer.name)}.*{TEMPORARY}"):
            leftover.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def _move_pointer(pointer: Path, history: History, target: str) -> None:
    """Writes the history, moves the pointer in one step, and marks the entry as done."""
    history.write()
    link = pointer.with_name(f".{pointer.name}.{secrets.token_hex(4)}{TEMPORARY}")
    os.symlink(target, link, target_is_directory=True)
    os.replace(link, pointer)
    sync(pointer.parent)
    history.entries[-1]["state"] = DONE
    history.write()
