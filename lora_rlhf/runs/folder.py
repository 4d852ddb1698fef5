"""A run folder: one folder per stage with its configuration, lineage, metrics and samples, all written atomically."""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_rlhf.configs.catalogue import BY_NAME
from lora_rlhf.configs.common import TrainingConfig
from lora_rlhf.configs.values import to_yaml
from lora_rlhf.data.locate import DataFiles, HubDataset, locate
from lora_rlhf.runs.curves import CURVES, write_picture
from lora_rlhf.runs.manifest import FINISHED, FORMAT, MANIFEST, RUNNING, TOTAL, read_manifest
from lora_rlhf.runs.resume import Lock, require_same_origin, require_same_settings
from lora_rlhf.system import workers
from lora_rlhf.system.disk import append_row, new_folder, remove_temporary, sha256_of, sync, write_json, write_text
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.plain_files import make_folder, open_file, read_rows, require_no_link, require_size
from lora_rlhf.system.tensor_header import require_adapter
from lora_rlhf.system.untrusted import quote

log = logging.getLogger("lora_rlhf")

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
ELAPSED = "time/elapsed_s"  # in each row of metrics: seconds of the stage so far, interruptions left out
CHECKPOINTS = "checkpoints"
ADAPTER = "adapter"
VALUE_ADAPTER = "value_adapter"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "trl")


MOST_METRICS = 2**26  # bytes of a metrics.jsonl
MOST_SMALL_FILE = 2**26  # bytes of a file beside an adapter's weights


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; none without a file. UserError as `read_rows`, and for a line that is no object."""
    if not os.path.lexists(path):
        return []
    rows = []
    for number, line in enumerate(read_rows(path, MOST_METRICS).splitlines(), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number} is not JSON ({quote(str(error))}); remove that line") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number} is {quote(row)}, not a JSON object; remove that line")
        rows.append(row)
    return rows


def data_hash(name: str) -> str | None:
    """sha256 of a data file, or of the files' hashes where a folder or pattern names several.

    None for a hub dataset, which is identified by its name.
    """
    source = locate(name)
    if isinstance(source, HubDataset):
        return None
    paths = source.paths if isinstance(source, DataFiles) else sorted(p for p in source.path.rglob("*") if p.is_file())
    hashes = []
    for path in paths:
        hashes.append(sha256_of(path, follow_links=True))
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def data_record(name: str, run: str) -> dict[str, Any]:
    """What a manifest holds of data: the name as it was given, where that is as seen from the run, and the hash."""
    record: dict[str, Any] = {"path": name, "sha256": data_hash(name)}
    return record if record["sha256"] is None else {**record, "from_run": os.path.relpath(name, run)}


def base_record(base: Mapping[str, Any], run: str) -> dict[str, Any]:
    """What a manifest holds of the base: its description and, of a folder, where that is as seen from the run."""
    is_folder = Path(base["name"]).expanduser().exists()
    return dict(base) | ({"from_run": os.path.relpath(Path(base["name"]).expanduser(), run)} if is_folder else {})


def _find_base(record: dict[str, Any], run: Path) -> None:
    """Puts into the record where the base's folder is now, seen from the run, unless it is where it was."""
    name, from_run = Path(record["name"]).expanduser(), run / record.get("from_run", "")
    if "from_run" in record and not name.exists() and from_run.exists():
        record["name"] = os.path.normpath(from_run)


def find_data(record: Mapping[str, Any], run: Path) -> str:
    """The path of recorded data: as recorded or, if nothing is there, relative to the run folder."""
    from_run = run / record.get("from_run", record["path"])
    if not Path(record["path"]).exists() and from_run.exists():
        return str(from_run)
    return str(record["path"])


def adapter_files(folder: Path) -> list[Path]:
    """The files of an adapter's folder, which can be hashed and copied: tensors that fill their files, and small ones.

    UserError when there is no folder, and for links and other files. Without it, a file of zeros takes no room on a
    disk, and minutes to read.
    """
    require_no_link(folder.parent, folder)
    try:
        paths = sorted(folder.iterdir())
        for path in paths:
            if path.suffix == ".safetensors":
                require_no_link(path)
                require_adapter(path)
            else:
                require_size(path, MOST_SMALL_FILE)
    except OSError as error:
        raise UserError(f"{folder}: the adapter cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}; restore that file, or train the stage again") from error
    return paths


def adapter_hash(folder: Path) -> str:
    """sha256 over the names and hashes of the files of a stage's adapter: it identifies the weights.

    UserError as `adapter_files`.
    """
    total = hashlib.sha256()
    for path in adapter_files(folder / ADAPTER):
        total.update(path.name.encode() + b"\0" + bytes.fromhex(sha256_of(path)))
    return total.hexdigest()


@dataclass(frozen=True)
class Parent:
    """A finished stage that another one starts from."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def adapter(self) -> Path:
        return self.folder / ADAPTER

    @property
    def run(self) -> Path:
        """The run folder that the stage is in."""
        return self.folder.parent

    @property
    def score_offset(self) -> float:
        """What a reward stage takes off its head's output (`SharedModel.set_score_offset`); 0 for other stages."""
        return float(self.manifest["results"].get("offset", 0.0))

    def lineage(self, run: str) -> dict[str, Any]:
        """What a child in that run records of it. A folder inside the run is relative to it: a run may be moved."""
        folder, root = self.folder.resolve(), Path(run).resolve()
        recorded = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder)
        return {"folder": recorded, "stage": self.manifest["stage"], "id": self.manifest["id"]}


def find_stage(folder: str | Path, stage: str) -> Parent:
    """A finished stage. UserError when there is none; the message names the command that makes it."""
    folder = Path(folder)
    make = f"run `lora-rlhf {stage} --run {folder.parent}` first, or name another folder with --{stage}"
    if not os.path.isfile(folder / MANIFEST):  # unlike Path.is_file, no error for a folder that we may not read
        no_parent = "" if folder.parent.is_dir() else f", and no {folder.parent} at all"
        raise UserError(f"{folder}: no {stage} stage there{no_parent}; {make}")
    manifest = read_manifest(folder)
    if manifest["stage"] != stage:
        raise UserError(f"{folder}: holds a {manifest['stage']!r} stage, expected {stage!r}; {make}")
    if manifest["status"] != FINISHED:
        raise UserError(f"{folder}: its {stage} stage did not finish (status {manifest['status']!r}); {make}")
    _find_base(manifest["base"], folder.parent)
    for adapter in (folder / ADAPTER, folder / VALUE_ADAPTER):
        require_no_link(adapter, *adapter.glob("*"))
    return Parent(folder, manifest)


def has_stage(run: str | Path, stage: str) -> bool:
    """Whether a run holds that stage, finished. UserError for a manifest that cannot be used."""
    folder = Path(run) / stage
    if not os.path.isfile(folder / MANIFEST):
        return False
    manifest = read_manifest(folder)
    return manifest["stage"] == stage and manifest["status"] == FINISHED


def stage_lock(run: Path, stage: str) -> Lock:
    """The lock that a process holds while it works on a stage of the run."""
    return Lock(run / f".{stage}.lock")


class StageFolder:
    """The folder of one stage while it runs. `finish` marks it complete; before that, no stage can start from it.

    Of several processes only the main one writes; the others may call every method too.
    """

    def __init__(self, config: TrainingConfig, stage: str) -> None:
        self.path = Path(config.run) / stage
        self.stage = stage
        self.resumes = False
        self._config = config
        self._lock = stage_lock(Path(config.run), stage)
        self._started = time.monotonic()
        self._seconds_before = 0.0
        self._changes: dict[str, Any] = {}
        self._manifest: dict[str, Any] = {}

    @classmethod
    @contextlib.contextmanager
    def open(cls, config: TrainingConfig, stage: str) -> Iterator["StageFolder"]:
        """The folder. Inside the block, once `begin` was called, no other process can write to it.

        UserError, before any long work: a finished stage without `overwrite`, an unfinished one of other settings,
        `resume` without a run to go on with, another process that is at work there.
        """
        folder = cls(config, stage)
        folder.resumes, folder._changes = workers.from_main(folder._check_before_start)
        try:
            yield folder
        finally:
            folder._lock.release()

    def _check_before_start(self) -> tuple[bool, dict[str, Any]]:
        """Whether there is an unfinished run to go on with, and which of its settings have changed since it began."""
        config = self._config
        self._lock.require_free()
        manifest = read_manifest(self.path) if (self.path / MANIFEST).is_file() and not config.overwrite else None
        if manifest is not None and manifest["status"] == FINISHED:
            parents = (f" --{name} {Path(config.run, one['folder'])}" for name, one in manifest["parents"].items())
            with_parents = "".join(parents)
            raise UserError(
                f"{self.path}: this stage is finished already; use --overwrite, or another --run"
                f"{with_parents and ' with' + with_parents}"
            )
        has_checkpoint = manifest is not None and any((self.path / CHECKPOINTS).glob("step-*"))
        if not has_checkpoint:
            if config.resume:
                reason = "no checkpoint was written yet" if manifest else "no unfinished run is there"
                raise UserError(f"{self.path}: nothing to resume: {reason}; leave --resume out to begin")
            return False, {}
        return True, require_same_settings(config, self.path / CONFIG, config.allow_changes)

    def begin(self, base: Mapping[str, Any], parents: Mapping[str, Parent], data: Mapping[str, str | None]) -> None:
        """Makes the folder, or goes on with the run in it. Writes its manifest and configuration.

        UserError where it cannot be made, where a folder of that name does not hold a stage, and where the unfinished
        run there began from another base, other parents or (unless changes are allowed) other data.
        """
        self._manifest = {
            "format": FORMAT,
            "stage": self.stage,
            "status": RUNNING,
            "id": secrets.token_hex(8),
            "base": base_record(base, self._config.run),
            "parents": {role: parent.lineage(self._config.run) for role, parent in parents.items()},
            "data": {name: data_record(path, self._config.run) for name, path in data.items() if path},
            "seed": self._config.seed,
            "processes": workers.process_count(),
            "versions": {"python": platform.python_version(), **_package_versions()},
            "git_commit": _git_commit(),
        }
        self._manifest |= workers.from_main(self._continue_run if self.resumes else self._make_folder)

    def _make_folder(self) -> dict[str, Any]:
        """Makes the stage's folder with its configuration and manifest. UserError if that is impossible."""
        if self.path.exists() and any(self.path.iterdir()) and not (self.path / MANIFEST).is_file():
            raise UserError(f"{self.path}: holds files that are not a stage's; choose another --run, or move them away")
        try:
            make_folder(self.path.parent)
            self._lock.acquire()
            remove_temporary(self.path.parent, f"{self.stage}.*")
            with new_folder(self.path) as folder:  # with its manifest from the start, which says that it is a stage
                write_text(folder / CONFIG, to_yaml(self._config))
                write_json(folder / MANIFEST, self._manifest)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be made ({os.strerror(error.errno or 0)}); choose another --run"
            ) from error
        return {}

    def _continue_run(self) -> dict[str, Any]:
        """Takes over an unfinished run, and records in the manifest that it was resumed."""
        self._lock.acquire()
        remove_temporary(self.path.parent, f"{self.stage}.*")
        for folder in (self.path, self.path / CHECKPOINTS):
            remove_temporary(folder, "*")
        before = read_manifest(self.path)
        changed = require_same_origin(self.path, before, self._manifest, self._config.allow_changes)
        software = {key: self._manifest[key] for key in ("versions", "git_commit", "processes")}
        resumed = [*before.get("resumed", []), {**software, "changes": self._changes, "changed_data": changed}]
        updates = {"id": before["id"], "resumed": resumed}
        write_text(self.path / CONFIG, to_yaml(self._config))
        write_json(self.path / MANIFEST, self._manifest | updates)
        return updates

    def recorded_base(self) -> dict[str, Any]:
        """What the unfinished run that goes on recorded of its base."""
        base: dict[str, Any] = read_manifest(self.path)["base"]
        return base

    @property
    def identity(self) -> str:
        """The run's id, which stays the same when it is resumed."""
        return str(self._manifest["id"])

    @property
    def seconds(self) -> float:
        """How long the stage has taken so far, interruptions left out."""
        return self._seconds_before + time.monotonic() - self._started

    def sync_growing_files(self) -> dict[str, Any]:
        """Syncs the files that grow. Returns their sizes and the seconds so far.

        A checkpoint stores both, and `rewind` cuts the files back to these sizes.
        """
        sizes = {}
        for name in (METRICS, SAMPLES):
            if (path := self.path / name).exists():
                sync(path)
                sizes[name] = path.stat().st_size
        return {"sizes": sizes, "seconds": self.seconds}

    def rewind(self, position: Mapping[str, Any]) -> None:
        """Removes the rows that were written after a checkpoint: they will be written again."""
        self._seconds_before = position["seconds"]
        if not workers.is_main():
            return
        for name in (METRICS, SAMPLES):
            if (path := self.path / name).exists():
                with open_file(path, "r+b") as file:
                    file.truncate(min(position["sizes"].get(name, 0), file.seek(0, os.SEEK_END)))

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl so far."""
        return read_metrics(self.path / METRICS)

    def record_total(self, steps: int) -> None:
        """Writes into the manifest how many steps the stage has, so that others see how far it is."""
        if self._manifest.get(TOTAL) != steps:
            self._manifest[TOTAL] = steps
            self.write(MANIFEST, self._manifest)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one row to metrics.jsonl."""
        self._append_row(METRICS, {"step": step, **metrics})

    def sample(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Appends responses to the fixed prompts to samples.jsonl."""
        for row in rows:
            self._append_row(SAMPLES, {"step": step, **row})

    def write(self, name: str, value: Any) -> None:
        """Writes a JSON file into the folder."""
        if workers.is_main():
            write_json(self.path / name, value)

    def finish(self, results: Mapping[str, Any], outcome: str = "") -> dict[str, Any]:
        """Marks the stage complete and returns its manifest. Call once everything else is on disk.

        outcome: what matters of the results, for the last line in the terminal. A picture of the curves is drawn.
        """
        if workers.is_main():
            self._draw_curves()
        self._manifest |= {"status": FINISHED, "seconds": round(self.seconds, 2), "results": dict(results)}
        workers.from_main(lambda: self.write(MANIFEST, self._manifest))
        self._lock.release()
        log.info("%s: finished in %.0f s%s", self.path, self._manifest["seconds"], outcome and f": {outcome}")
        return self._manifest

    def _draw_curves(self) -> None:
        """Writes curves.svg; a metrics.jsonl that somebody has spoilt is no reason to lose the stage."""
        try:
            if write_picture(self.path, BY_NAME[self.stage], self.rows(), vars(self._config)):
                log.info("curves: %s", self.path / CURVES)
        except UserError as error:
            log.warning("no picture of the curves: %s", error)

    def _append_row(self, name: str, row: Mapping[str, Any]) -> None:
        if workers.is_main():
            append_row(self.path / name, row)


def _package_versions() -> dict[str, str]:
    """The versions of the installed packages that results depend on."""
    versions = {}
    for package in ("lora-rlhf", *PACKAGES):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _git_commit() -> str | None:
    """The commit of the checkout that this package runs from; None for an installed one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
