"""A stage's checkpoints: written whole or not at all, verified by hashes; the newest few and the best are kept."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lora_rlhf.model.adapters import save_tensors
from lora_rlhf.runs.folder import CHECKPOINTS, StageFolder
from lora_rlhf.system import workers
from lora_rlhf.system.disk import finite, new_folder, remove_folder, write_text
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.plain_files import open_file, read_file, require_no_link

log = logging.getLogger("lora_rlhf")

RECORD, TENSORS = "checkpoint.json", "state.safetensors"
MOST_RECORD_BYTES = 2**28
RNG = "rng."  # how the tensors of PyTorch's own generators begin


@dataclass(frozen=True)
class Checkpoint:
    """A stage's saved state: JSON values, tensors on the CPU, and a PEFT folder for each trained role."""

    folder: Path
    step: int
    state: dict[str, Any]
    tensors: dict[str, Tensor]


class Checkpoints:
    """The folder `checkpoints` of a stage: `step-N` stands after step N.

    Version 0.1.0 also saved `step-N+M` in the middle of an iteration of PPO. Those are passed over.
    """

    def __init__(self, folder: StageFolder, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._path = folder.path / CHECKPOINTS

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        write_adapters: Callable[[Path], None],
        score: float | None = None,
    ) -> None:
        """Writes one checkpoint, by the main process, and removes those that are no longer kept.

        `score` ranks the checkpoints; the highest is kept. PyTorch's generators are saved too. OSError
        when the disk is full; what was there before is untouched then.
        """
        if not workers.is_main():
            return
        target = self._path / f"step-{step:08d}"
        record = {"step": step, "score": score, "position": self._folder.sync_growing_files(), "state": dict(state)}
        require_no_link(self._path)
        self._path.mkdir(exist_ok=True)  # not the stage's own folder: where that was deleted, the run ends
        with new_folder(target) as temporary:
            write_adapters(temporary)
            save_tensors(temporary / TENSORS, {**tensors, **_generator_states()})
            files = {str(path.relative_to(temporary)): _hash_of_file(path) for path in sorted(_files_in(temporary))}
            text = json.dumps(finite({**record, "files": files}))
            write_text(temporary / RECORD, json.dumps({"hash": _hash_of_text(text), "record": text}))
        self._remove_old()

    def resume(self) -> Checkpoint:
        """The newest checkpoint that is whole, with the growing files and PyTorch's generators put back to it.

        A damaged one is named in a warning, skipped for the one before, and removed. UserError when none is whole.
        """
        useless = []
        for path in reversed(self._checkpoint_folders()):
            if "+" in path.name:
                log.warning("%s stands in the middle of an iteration: taking the one before", path)
                useless.append(path)
                continue
            try:
                record = _read_record(path)
                require_no_link(self._path, path, path / TENSORS)
                tensors = load_file(path / TENSORS)
            except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError, UserError) as error:
                log.warning("%s is damaged (%s): taking the one before", path, error)
                useless.append(path)
                continue
            for useless_path in useless if workers.is_main() else ():
                remove_folder(useless_path)
            self._folder.rewind(record["position"])
            _restore_generators(tensors)
            log.info("going on from %s", path)
            return Checkpoint(path, record["step"], record["state"], tensors)
        raise UserError(f"{self._path}: none of the checkpoints there is whole; --overwrite begins again")

    def _checkpoint_folders(self) -> list[Path]:
        """The folders of all checkpoints, in the order of their steps."""
        return sorted(path for path in self._path.glob("step-*") if path.is_dir())

    def _remove_old(self) -> None:
        """Removes all checkpoints but the newest few and the one with the best score."""
        paths = self._checkpoint_folders()
        scores = {path: score for path in paths if (score := _read_score(path)) is not None}
        best = {max(scores, key=lambda path: scores[path])} if scores else set()
        for path in paths[: -self._keep]:
            if path not in best:
                remove_folder(path)


def _read_record(path: Path) -> dict[str, Any]:
    """A checkpoint's record. ValueError where it, or a file that it lists, does not match its hash."""
    outer = json.loads(read_file(path / RECORD, MOST_RECORD_BYTES))
    if _hash_of_text(outer["record"]) != outer["hash"]:
        raise ValueError(f"{RECORD} is not what was written")
    record: dict[str, Any] = json.loads(outer["record"])
    for name, expected in record["files"].items():
        inside = (path / name).resolve().is_relative_to(path.resolve())  # the record may be anybody's
        if not inside or not (path / name).is_file() or _hash_of_file(path / name) != expected:
            raise ValueError(f"{name} is not what was written")
    return record


def _read_score(path: Path) -> float | None:
    """The score in a checkpoint's record; None if the record cannot be read."""
    try:
        score: float | None = json.loads(json.loads(read_file(path / RECORD, MOST_RECORD_BYTES))["record"])["score"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError):
        return None
    return score


def _files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _hash_of_file(path: Path) -> str:
    """The xxh3 hash of a file, read in pieces."""
    total = xxhash.xxh3_128()
    with open_file(path) as file:
        while piece := file.read(1 << 20):
            total.update(piece)
    return total.hexdigest()


def _hash_of_text(text: str) -> str:
    return xxhash.xxh3_128(text.encode()).hexdigest()


def _generator_states() -> dict[str, Tensor]:
    """The states of PyTorch's generators: the CPU's, and each GPU's that is in use."""
    states = {f"{RNG}cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states[f"{RNG}cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_generators(tensors: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(tensors[f"{RNG}cpu"])
    if torch.cuda.is_available() and f"{RNG}cuda" in tensors:
        torch.cuda.set_rng_state(tensors[f"{RNG}cuda"])
