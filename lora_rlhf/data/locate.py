"""Which files, or which dataset of the hub, a name stands for. Nothing is opened here."""

import glob
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lora_rlhf.system.errors import UserError

DATA_SUFFIXES = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".text", ".parquet"}
# To find the files of a folder. A compression that is not supported is refused when the file is opened.
COMPRESSED_SUFFIXES = {".gz", ".zip", ".xz", ".zst", ".bz2"}
# Files of many datasets that are not data although their suffix is that of data.
BESIDE_DATA = {
    *("changelog", "citation", "copying", "dataset_dict", "dataset_info", "dataset_infos", "licence", "license"),
    *("notice", "readme", "requirements"),
}
# Words in the names of JSON files that describe the data.
NOTES = {"manifest", "report", "info", "infos", "config", "stats", "statistics", "metadata", "schema", "summary"}
# How files and folders name the split that they hold.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval", "heldout"), "validation"),
}
HUB_NAME = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(:(?P<config>[\w.+-]+))??(:(?P<split>[\w.-]+))?")
MAX_NAMES = 8  # file names in a message


@dataclass(frozen=True)
class DataFiles:
    """Files to read, in order; `skipped` are those that a folder or a pattern also holds and that are not data."""

    paths: tuple[Path, ...]
    skipped: tuple[Path, ...] = ()


@dataclass(frozen=True)
class HubDataset:
    """One split of a dataset on the hub; `config` None is the dataset's only or default one."""

    name: str
    config: str | None = None
    split: str = "train"


@dataclass(frozen=True)
class SavedDataset:
    """A folder that `save_to_disk` of the library datasets wrote."""

    path: Path


def data_suffix(path: Path) -> str:
    """The suffix of the file's format in lower case, without that of a compression (".gz", ...)."""
    if path.suffix.lower() in COMPRESSED_SUFFIXES:
        path = path.with_suffix("")
    return path.suffix.lower()


def locate(name: str) -> DataFiles | HubDataset | SavedDataset:
    """The source that a name stands for: a file, a folder, a pattern ("data/train-*.parquet"), or a dataset of the hub.

    A hub dataset is "owner/name", "owner/name:split" or "owner/name:config:split", split "train" by default. A file or
    folder of that name comes first. Raises UserError for a file that does not exist or cannot be read, for a folder
    without data or with several splits, and for a pattern without a match.
    """
    try:
        return _find_source(name)
    except (OSError, RuntimeError) as error:  # the second is pathlib's: ~somebody without a home
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{name}: cannot be looked at ({reason}); give a file, a folder, or a hub dataset") from error


def _find_source(name: str) -> DataFiles | HubDataset | SavedDataset:
    """`locate` without the handling of OSError."""
    path = Path(name).expanduser()
    if not name.strip():
        raise UserError("an empty name stands for no data; give a file, a folder, or a hub dataset as owner/name")
    if path.is_dir():
        return SavedDataset(path) if _is_saved_dataset(path) else _find_folder_files(path)
    if path.is_file():
        return DataFiles((path,))
    if path.exists():
        raise UserError(f"{name}: a pipe or device, and data are read more than once; write them to a file first")
    if glob.has_magic(name):
        return _find_pattern_files(str(path))
    hub = HUB_NAME.fullmatch(name)
    if hub and data_suffix(Path(hub["name"])) not in DATA_SUFFIXES:
        return HubDataset(hub["name"], hub["config"], hub["split"] or "train")
    raise UserError(f"{name}: no such file; a hub dataset is owner/name, owner/name:split or owner/name:config:split")


def is_data_file(path: Path) -> bool:
    """Whether a file's name is that of data."""
    stem = path.name.lower().split(".")[0]
    if stem in BESIDE_DATA or path.name.startswith(".") or data_suffix(path) not in DATA_SUFFIXES:
        return False
    return data_suffix(path) != ".json" or NOTES.isdisjoint(re.split(r"[^a-z]+", stem))


def _is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` of the library datasets wrote the folder."""
    is_split = (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    return is_split or (folder / "dataset_dict.json").is_file()


def _find_folder_files(folder: Path) -> DataFiles:
    """The data files of a folder and of the folders in it, by name; hidden ones are skipped."""
    files = sorted(Path(subfolder, name) for subfolder, _, names in os.walk(folder) for name in names)
    hidden = {path for path in files if any(part.startswith(".") for part in path.relative_to(folder).parts)}
    paths = tuple(path for path in files if is_data_file(path) and path not in hidden)
    if not paths:
        raise UserError(
            f"{folder}: no data in this folder ({_describe_contents(files)}); data are files named "
            + ", ".join(f"*{suffix}" for suffix in sorted(DATA_SUFFIXES))
            + ", also gzipped"
        )
    _require_one_split(folder, paths)
    return DataFiles(paths, tuple(path for path in files if path not in set(paths)))


def _require_one_split(folder: Path, paths: Iterable[Path]) -> None:
    """UserError for a folder of training and test files: read as one, it would train on what it is tested on."""
    first_files: dict[str, Path] = {}
    for path in paths:
        for word in re.split(r"[^a-z]+", str(path.relative_to(folder)).lower()):
            if word in SPLITS:
                first_files.setdefault(SPLITS[word], path)
    if len(first_files) > 1:
        splits = ", ".join(f"{split}: {path.relative_to(folder)}" for split, path in first_files.items())
        pattern = f"{folder}/**/*{next(iter(first_files))}*"
        raise UserError(f"{folder}: holds several splits ({splits}); name one by a pattern, such as '{pattern}'")


def _find_pattern_files(pattern: str) -> DataFiles:
    """The data files that match a pattern, by name."""
    files = [path for path in map(Path, sorted(glob.glob(pattern, recursive=True))) if not path.is_dir()]
    if not files:
        raise UserError(f"{pattern}: no file matches this pattern")
    # if no match has a data suffix, the user means the files as they are named ("part-*")
    paths = tuple(filter(is_data_file, files)) or tuple(files)
    return DataFiles(paths, tuple(path for path in files if path not in set(paths)))


def _describe_contents(paths: Iterable[Path]) -> str:
    """A part of a message: the first file names."""
    names = [path.name for path in paths]
    if not names:
        return "it is empty"
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return "it holds " + ", ".join(names[:MAX_NAMES]) + more
