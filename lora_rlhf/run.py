"""A run folder: one folder per stage with its configuration, lineage, metrics and samples, all written atomically."""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_rlhf.config import StageConfig
from lora_rlhf.data.locate import Files, Hub, locate
from lora_rlhf.errors import UserError
from lora_rlhf.settings import to_yaml

log = logging.getLogger("lora_rlhf")

MANIFEST = "manifest.json"
CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
ADAPTER = "adapter"
VALUE_ADAPTER = "value_adapter"
RUNNING, FINISHED = "running", "finished"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "trl")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all: temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically; NaN and infinity become null."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def data_hash(name: str) -> str | None:
    """sha256 of a data file, or of the files' hashes where a folder or pattern names several.

    None for a hub dataset, which is identified by its name.
    """
    source = locate(name)
    if isinstance(source, Hub):
        return None
    paths = source.paths if isinstance(source, Files) else sorted(p for p in source.path.rglob("*") if p.is_file())
    hashes = []
    for path in paths:
        with open(path, "rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


@dataclass(frozen=True)
class Parent:
    """A finished stage that another one starts from."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def adapter(self) -> Path:
        return self.folder / ADAPTER

    def lineage(self) -> dict[str, Any]:
        """What a child records of it."""
        return {"folder": str(self.folder), "stage": self.manifest["stage"], "id": self.manifest["id"]}


def find_stage(folder: str | Path, stage: str) -> Parent:
    """A finished stage. UserError when there is none, saying which command makes it."""
    folder = Path(folder)
    make = f"run `lora-rlhf {stage} --run {folder.parent}` first, or name another folder with --{stage}"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise UserError(f"{folder}: no {stage} stage there; {make}") from None
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{folder / MANIFEST}: cannot be read ({error})") from error
    if manifest.get("stage") != stage:
        raise UserError(f"{folder}: holds a {manifest.get('stage')!r} stage, expected {stage!r}; {make}")
    if manifest.get("status") != FINISHED:
        raise UserError(f"{folder}: its {stage} stage did not finish (status {manifest.get('status')!r}); {make}")
    return Parent(folder, manifest)


def has_stage(run: str | Path, stage: str) -> bool:
    """Whether a run holds that stage, finished."""
    try:
        find_stage(Path(run) / stage, stage)
    except UserError:
        return False
    return True


class StageFolder:
    """The folder of one stage while it runs. `finish` marks it complete; until then it is not a parent for anything."""

    def __init__(self, config: StageConfig, stage: str) -> None:
        self.path = Path(config.run) / stage
        self.stage = stage
        self._config = config
        self._started = time.monotonic()
        self._manifest: dict[str, Any] = {}

    @classmethod
    def check_free(cls, config: StageConfig, stage: str) -> "StageFolder":
        """UserError when the stage is there already, finished, and was not asked to be replaced."""
        folder = cls(config, stage)
        if has_stage(config.run, stage) and not config.overwrite:
            raise UserError(f"{folder.path}: this stage is finished already; use --overwrite, or another --run")
        return folder

    def begin(self, base: Mapping[str, Any], parents: Mapping[str, Parent], data: Mapping[str, str | None]) -> None:
        """Makes the folder afresh, with its configuration and a manifest of status "running".

        UserError where it cannot be made, or where a folder of that name holds something else than a stage.
        """
        if self.path.exists() and any(self.path.iterdir()) and not (self.path / MANIFEST).is_file():
            raise UserError(f"{self.path}: holds files that are not a stage's; choose another --run, or move them away")
        try:
            if self.path.exists():
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be made ({error.strerror}); choose another --run") from error
        self._manifest = {
            "stage": self.stage,
            "status": RUNNING,
            "id": hashlib.sha256(f"{self.path.absolute()}{time.time_ns()}{os.getpid()}".encode()).hexdigest()[:16],
            "base": dict(base),
            "parents": {role: parent.lineage() for role, parent in parents.items()},
            "data": {name: {"path": path, "sha256": data_hash(path)} for name, path in data.items() if path},
            "seed": self._config.seed,
            "versions": {"python": platform.python_version(), **_versions()},
            "git_commit": _git_commit(),
        }
        write_text(self.path / CONFIG, to_yaml(self._config))
        write_json(self.path / MANIFEST, self._manifest)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one row to metrics.jsonl."""
        self._append(METRICS, {"step": step, **metrics})

    def sample(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Appends responses to the fixed prompts to samples.jsonl."""
        for row in rows:
            self._append(SAMPLES, {"step": step, **row})

    def write(self, name: str, value: Any) -> None:
        """Writes a JSON file into the folder."""
        write_json(self.path / name, value)

    def finish(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Marks the stage complete and returns its manifest. Call once everything else is on disk."""
        self._manifest |= {
            "status": FINISHED,
            "seconds": round(time.monotonic() - self._started, 2),
            "results": dict(results),
        }
        write_json(self.path / MANIFEST, self._manifest)
        log.info("%s: finished in %.0f s", self.path, self._manifest["seconds"])
        return self._manifest

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with open(self.path / name, "a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(row), ensure_ascii=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _versions() -> dict[str, str]:
    found = {}
    for package in ("lora-rlhf", *PACKAGES):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _git_commit() -> str | None:
    """The commit of the checkout that this package runs from; None for an installed one."""
    where = Path(__file__).resolve().parent.parent
    if not (where / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(where), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
