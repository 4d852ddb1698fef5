"""Files and folders that are written whole or not at all: a temporary name, fsync, rename."""

import contextlib
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from lora_rlhf.system.plain_files import open_file, require_no_link

TEMPORARY = ".tmp"  # how the names end that a killed process may leave; they begin with a dot


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file to fill, which gets its name at the end of the block. An OSError names the file.

    An older file of that name stays until the new one is on disk, and also after an error.
    """
    temporary = _temporary(path)
    try:
        with _name_errors(path):
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file."""
    with new_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes JSON; NaN and infinity become null."""
    write_text(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Adds one line of JSON, in one write. After a kill the line is whole, absent, or cut off at the file's end."""
    line = json_line(finite(row))
    with _name_errors(path), open_file(path, "a+b") as file:
        while line:  # a disk that fills up writes a part, and reports the error at the next write only
            line = line[file.write(line) :]


def json_line(row: Mapping[str, Any]) -> bytes:
    """One row of JSONL, its line break included. NaN and infinity are a ValueError."""
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # a model can sample half a character: it has no UTF-8, but JSON has an escape for it
        text = json.dumps(row, allow_nan=False).encode()
    return text + b"\n"


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Makes a folder to fill, which gets its name at the end of the block; after an error it is removed.

    An older folder of that name is replaced.
    """
    require_no_link(folder)
    temporary = _temporary(folder)
    try:
        with _name_errors(folder):
            temporary.mkdir()
            yield temporary
            for path in (*temporary.rglob("*"), temporary):
                sync(path)
            if folder.exists():  # a rename cannot replace a folder that is not empty
                old = _temporary(folder)
                folder.rename(old)
                temporary.rename(folder)
                shutil.rmtree(old)
            else:
                temporary.rename(folder)
            sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Removes a folder. After a kill it is whole, gone, or there under a temporary name."""
    temporary = _temporary(folder)
    folder.rename(temporary)
    if temporary.is_symlink():
        temporary.unlink()
    else:
        shutil.rmtree(temporary)


def remove_temporary(folder: Path, names: str) -> None:
    """Removes the temporary files that killed processes left in a folder. `names`: a pattern of the final names."""
    for path in folder.glob(f".{names}{TEMPORARY}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on disk. An OSError names it."""
    with _name_errors(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_of(path: Path, follow_links: bool = False) -> str:
    """The hash of a file's bytes, in hexadecimal digits. UserError as of `open_file`."""
    with open_file(path, follow_links=follow_links) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finite(value: Any) -> Any:
    """The same JSON value with None for NaN and infinity, which JSON cannot write."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")


@contextlib.contextmanager
def _name_errors(path: Path) -> Iterator[None]:
    """Re-raises an OSError with the target's path; Python's own error names the temporary file, or none."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, f"{os.strerror(error.errno)}, while writing", str(path)) from error
