"""The pointer to the export that is in use: moved in one step, with the reason on record, and back again."""

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
from lora_rlhf.release.gate import login, summary
from lora_rlhf.release.history import DONE, MOVING, PROMOTE, ROLLBACK, History, target_of
from lora_rlhf.release.record import read_record
from lora_rlhf.release.rules import PASS
from lora_rlhf.runs.resume import Lock
from lora_rlhf.system.disk import TEMPORARY, sha256_of, sync
from lora_rlhf.system.errors import UserError


def promote(config: PromoteConfig) -> str:
    """Makes the pointer lead to an export folder; returns what was done, in a sentence.

    UserError before anything is written: a folder without a finished export, a gate's record that is of another policy,
    of a failure or was changed, a pointer that is something else than a link, another process that is moving it.
    """
    check(config)
    pointer = Path(config.to)
    export = read_export(Path(os.path.realpath(config.folder)))
    approval = _approval(config, export)
    with _alone(pointer):
        history = History.read(pointer)
        to, before = os.path.relpath(export.folder, os.path.realpath(pointer.parent)), target_of(pointer)
        if to == before:
            raise UserError(f"{pointer}: leads to {to} already")
        history.add(PROMOTE, to, MOVING, export_sha256=export.sha256, stage_id=export.id, by=login(), **approval)
        _move(pointer, history, to)
    return f"{pointer} leads to {to} now{f'; before, to {before}' if before else ''}"


def rollback(config: RollbackConfig) -> str:
    """Makes the pointer lead to what it led to before; returns what was done, in a sentence.

    UserError before anything is written: nothing to go back to, or an export there that is gone or was replaced.
    """
    check(config)
    pointer = Path(config.to)
    if target_of(pointer) is None:
        raise UserError(f"{pointer}: there is no such pointer; `lora-rlhf promote` makes one")
    with _alone(pointer):
        history = History.read(pointer)
        *_, to, before = [None, *history.stack]
        if to is None:
            raise UserError(f"{pointer}: leads to {before}, and nothing was in use before that; promote another export")
        export = read_export(pointer.parent / to)
        then = [entry.get("export_sha256") for entry in history.entries if entry["to"] == to and entry["state"] == DONE]
        if (recorded := next(filter(None, reversed(then)), None)) not in (None, export.sha256):
            raise UserError(
                f"{pointer.parent / to}: another export is there than the one that was in use (sha256 of its manifest "
                f"{export.sha256}, then {recorded}); promote it by itself if it is to be used"
            )
        history.add(ROLLBACK, to, MOVING, export_sha256=export.sha256, stage_id=export.id, by=login())
        history.entries[-1] |= {"reason": config.reason} if config.reason else {}
        _move(pointer, history, to)
    return f"{pointer} leads to {to} again; before, to {before}"


def _approval(config: PromoteConfig, export: Export) -> dict[str, Any]:
    """Why this export may be promoted, for the history. UserError for a record that does not say so."""
    if config.gate is None:
        return {"without_gate": config.without_gate}
    path = Path(config.gate)
    record = read_record(path)
    if record["decision"] != PASS:
        raise UserError(f"{path}: this policy did not pass ({summary(record)}); promote one that did")
    passed = record["candidate"].get("id")
    if passed != export.id:
        raise UserError(
            f"{path}: is about the stage {passed}, and {export.folder} was made from {export.id}: give the record of "
            "that one, or export the stage that passed"
        )
    if record["candidate"].get("adapter_sha256") != export.adapter:
        raise UserError(f"{path}: is about another adapter of stage {passed} than {export.folder}: export it again")
    return {"gate": {"record": path.name, "sha256": sha256_of(path), "summary": summary(record)}}


@contextlib.contextmanager
def _alone(pointer: Path) -> Iterator[None]:
    """No other process moves this pointer inside the block. What a killed one left over is removed."""
    if not pointer.parent.is_dir():
        raise UserError(f"{pointer}: the folder {pointer.parent} is not there; make it, or name another pointer")
    lock = Lock(pointer.with_name(f".{pointer.name}.lock"), "wait for it, then give the command again")
    lock.acquire()
    try:
        for left in pointer.parent.glob(f".{glob.escape(pointer.name)}.*{TEMPORARY}"):
            left.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def _move(pointer: Path, history: History, to: str) -> None:
    """Writes the intention, moves the pointer in one step, marks the entry as done."""
    history.write()
    link = pointer.with_name(f".{pointer.name}.{secrets.token_hex(4)}{TEMPORARY}")
    os.symlink(to, link, target_is_directory=True)
    os.replace(link, pointer)
    sync(pointer.parent)
    history.entries[-1]["state"] = DONE
    history.write()
