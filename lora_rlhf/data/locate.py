"""Which files, or which dataset of the hub, a name stands for. Nothing is opened here."""

import glob
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lora_rlhf.system.errors import UserError

DATA_SUFFIXES = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".text", ".parquet"}
# Told from the name only to find the files of a folder; those that are not read here are refused when they are opened.
COMPRESSED_SUFFIXES = {".gz", ".zip", ".xz", ".zst", ".bz2"}
# What stands beside the data of most datasets, and would pass for data by its suffix.
BESIDE_DATA = {
    *("changelog", "citation", "copying", "dataset_dict", "dataset_info", "dataset_infos", "licence", "license"),
    *("notice", "readme", "requirements"),
}
# How files and folders name the split that they hold.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval", "heldout"), "validation"),
}
HUB_NAME = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(:(?P<config>[\w.+-]+))??(:(?P<split>[\w.-]+))?")
SHOWN = 8


@dataclass(frozen=True)
class Files:
    """Files to read, in order; `skipped` are those that a folder or a pattern also holds and that are not data."""

    paths: tuple[Path, ...]
    skipped: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Hub:
    """One split of a dataset on the hub; `config` None is the dataset's only or default one."""

    name: str
    config: str | None = None
    split: str = "train"


@dataclass(frozen=True)
class Saved:
    """A folder that `save_to_disk` of the library datasets wrote."""

    path: Path


def plain_suffix(path: Path) -> str:
    """The suffix that tells what a file holds, in lower case and without that of a compression (".gz", ...)."""
    if path.suffix.lower() in COMPRESSED_SUFFIXES:
        path = path.with_suffix("")
    return path.suffix.lower()


def locate(name: str) -> Files | Hub | Saved:
    """What a name stands for: a file, a folder, a pattern ("data/train-*.parquet"), or a dataset of the hub.

    The hub's are "owner/name", "owner/name:split" and "owner/name:config:split", split "train" unless given. What
    exists on disk wins. Raises UserError for what is not there or cannot be looked at, a folder without data or of
    several splits, and a pattern without a match.
    """
    try:
        return _locate(name)
    except (OSError, RuntimeError) as error:  # the second is pathlib's: ~somebody without a home
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{name}: cannot be looked at ({why}); give a file, a folder, or a hub dataset") from error


def _locate(name: str) -> Files | Hub | Saved:
    path = Path(name).expanduser()
    if not name.strip():
        raise UserError("an empty name stands for no data; give a file, a folder, or a hub dataset as owner/name")
    if path.is_dir():
        return Saved(path) if _is_saved(path) else _folder(path)
    if path.is_file():
        return Files((path,))
    if path.exists():
        raise UserError(f"{name}: a pipe or device, and data are read more than once; write them to a file first")
    if glob.has_magic(name):
        return _pattern(str(path))
    hub = HUB_NAME.fullmatch(name)
    if hub and plain_suffix(Path(hub["name"])) not in DATA_SUFFIXES:
        return Hub(hub["name"], hub["config"], hub["split"] or "train")
    raise UserError(f"{name}: no such file; a hub dataset is owner/name, owner/name:split or owner/name:config:split")


def is_data(path: Path) -> bool:
    """Whether a file's name is that of data."""
    stem = path.name.lower().split(".")[0]
    return plain_suffix(path) in DATA_SUFFIXES and stem not in BESIDE_DATA and not path.name.startswith(".")


def _is_saved(folder: Path) -> bool:
    one = (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    return one or (folder / "dataset_dict.json").is_file()


def _folder(folder: Path) -> Files:
    found = []
    for inside, _, names in os.walk(folder):
        found += [Path(inside, name) for name in names]
    found.sort()
    hidden = {path for path in found if any(part.startswith(".") for part in path.relative_to(folder).parts)}
    paths = tuple(path for path in found if is_data(path) and path not in hidden)
    if not paths:
        raise UserError(
            f"{folder}: no data in this folder ({_shown(found)}); data are files named "
            + ", ".join(f"*{suffix}" for suffix in sorted(DATA_SUFFIXES))
            + ", also gzipped"
        )
    _require_one_split(folder, paths)
    return Files(paths, tuple(path for path in found if path not in set(paths)))


def _require_one_split(folder: Path, paths: Iterable[Path]) -> None:
    """UserError for a folder of training and test files: read as one, it would train on what it is tested on."""
    named: dict[str, Path] = {}
    for path in paths:
        for word in re.split(r"[^a-z]+", str(path.relative_to(folder)).lower()):
            if word in SPLITS:
                named.setdefault(SPLITS[word], path)
    if len(named) > 1:
        listed = ", ".join(f"{split}: {path.relative_to(folder)}" for split, path in named.items())
        one = next(iter(named))
        pattern = f"{folder}/**/*{one}*"
        raise UserError(f"{folder}: holds several splits ({listed}); name one by a pattern, such as '{pattern}'")


def _pattern(pattern: str) -> Files:
    found = [path for path in map(Path, sorted(glob.glob(pattern, recursive=True))) if not path.is_dir()]
    if not found:
        raise UserError(f"{pattern}: no file matches this pattern")
    # a pattern that matches nothing with a name of data was meant as it is written ("part-*")
    paths = tuple(filter(is_data, found)) or tuple(found)
    return Files(paths, tuple(path for path in found if path not in set(paths)))


def _shown(paths: Iterable[Path]) -> str:
    names = [path.name for path in paths]
    if not names:
        return "it is empty"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return "it holds " + ", ".join(names[:SHOWN]) + more
