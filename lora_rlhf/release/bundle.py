"""A package on disk: a zip or a folder with hashes of its files. The same content gives the same bytes."""

import hashlib
import json
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from lora_rlhf.runs.manifest import OBJECT, TEXT
from lora_rlhf.system.disk import new_file, new_folder, sha256_of
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.plain_files import open_file, require_no_link
from lora_rlhf.system.untrusted import object_of, quote, require

MANIFEST = "MANIFEST.json"
FORMAT = 1
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the date of all files: the first one that a zip can hold
CHUNK_BYTES = 2**20
MOST_FILES = 100_000
SETUID = stat.S_ISUID | stat.S_ISGID
MOST_MANIFEST_BYTES = 32 * 2**20
WAY_OUT = "name a package that `lora-rlhf package` wrote"

Content = bytes | Path  # a file's bytes, or the path of a file that holds them


def write_package(target: Path, files: Mapping[str, Content], package_facts: Mapping[str, Any]) -> str:
    """Writes a zip if `target` ends in .zip, else a folder; returns the sha256 of its manifest.

    The bytes depend only on the content: not on the time, the machine or the order of files. A zip is not compressed,
    so that its bytes do not depend on the version of zlib.
    """
    num_bytes = sum(_content_bytes(content) for content in files.values())
    if num_bytes > (free_bytes := shutil.disk_usage(target.absolute().parent).free):
        raise UserError(f"{target}: its files have {num_bytes:,} bytes, and {free_bytes:,} are free there")
    hashes = {
        name: {"sha256": _content_hash(files[name]), "bytes": _content_bytes(files[name])} for name in sorted(files)
    }
    manifest = (
        json.dumps({"format": FORMAT, **package_facts, "files": hashes}, indent=2, ensure_ascii=False).encode() + b"\n"
    )
    contents = {**{name: files[name] for name in sorted(files)}, MANIFEST: manifest}
    if target.suffix == ".zip":
        with new_file(target) as zip_file, zipfile.ZipFile(zip_file, "w", zipfile.ZIP_STORED) as archive:
            for name, content in contents.items():
                info = zipfile.ZipInfo(name, ZIP_DATE)
                info.create_system, info.external_attr = 3, (stat.S_IFREG | _file_mode(name)) << 16
                info.file_size = _content_bytes(content)
                with archive.open(info, "w") as file:
                    _copy_content(content, file)
    else:
        with new_folder(target) as folder:
            for name, content in contents.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "xb") as file:
                    _copy_content(content, file)
                path.chmod(_file_mode(name))
    return hashlib.sha256(manifest).hexdigest()


def check_package(path: Path) -> tuple[int, list[str], str]:
    """Compares a package with its manifest. Raises UserError if the path is no package.

    Returns (number of unchanged files, a message for each difference, sha256 of the manifest).
    """
    with _open_package(path) as (names, open_file):
        if MANIFEST not in names:
            raise UserError(f"{path}: holds no {MANIFEST}; {WAY_OUT}")
        hashes, manifest_hash = _read_hashes(path, open_file(MANIFEST))
        faults = [f"{name}: is not there" for name in hashes if name not in names]
        folders = {f"{parent}/" for name in hashes for parent in PurePosixPath(name).parents}
        faults += [
            f"{name}: is not of the package"
            for name in names
            if name not in hashes and name not in {MANIFEST, *folders}
        ]
        num_unchanged = 0
        for name in (name for name in hashes if name in names):
            if _is_unchanged(open_file, name, hashes[name]):
                num_unchanged += 1
            else:
                faults.append(f"{name}: its content has changed")
    return num_unchanged, faults, manifest_hash


def _is_unchanged(open_file: Callable[[str], Any], name: str, sha256: str) -> bool:
    """Whether a file's content has the sha256 of the manifest."""
    try:
        with open_file(name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except zipfile.BadZipFile:  # the zip's checksum of the file is another
        return False


@contextmanager
def _open_package(path: Path) -> Iterator[tuple[list[str], Any]]:
    """Yields (names of all files, a function that opens a file by its name) of a zip or a folder."""
    if path.is_dir():
        paths = sorted(path.rglob("*"))
        require_no_link(*paths)
        _require_plain_modes(path, [(str(file), file.stat().st_mode) for file in paths])
        names = [file.relative_to(path).as_posix() + "/" * file.is_dir() for file in paths]
        yield names, lambda name: _open_plain_file(path / name)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist()]
            _require_plain_modes(path, [(info.orig_filename, info.external_attr >> 16) for info in archive.infolist()])
            if len(names) > MOST_FILES or len(set(names)) < len(names):
                raise UserError(f"{path}: holds {len(names)} files, some of them twice or too many; {WAY_OUT}")
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):  # it could be a bomb
                raise UserError(f"{path}: holds compressed files, which a package never does; {WAY_OUT}")
            yield names, archive.open
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {WAY_OUT}") from error
    # NotImplementedError: an unknown compression; RuntimeError: an encrypted file
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: not a zip that can be read ({error}); {WAY_OUT}") from error


def _require_plain_modes(path: Path, modes: Iterable[tuple[str, int]]) -> None:
    """UserError for links, devices, setuid entries, and names that other systems read as other paths."""
    for name, mode in modes:
        # a folder may have the bit: in some places every new one has it
        is_plain = stat.S_ISDIR(mode) or (stat.S_IFMT(mode) in (0, stat.S_IFREG) and not mode & SETUID)
        if not is_plain or "\\" in name or any(ord(character) < 32 for character in name):
            raise UserError(f"{path}: {quote(name)} is no plain file or folder with a plain name; {WAY_OUT}")


def _open_plain_file(path: Path) -> IO[bytes]:
    return open_file(path)


def _read_hashes(path: Path, file: IO[bytes]) -> tuple[dict[str, str], str]:
    """Reads a manifest; returns ({file: sha256}, sha256 of the manifest)."""
    with file:
        manifest_bytes = file.read(MOST_MANIFEST_BYTES + 1)
    try:
        if len(manifest_bytes) > MOST_MANIFEST_BYTES:
            raise ValueError("too large")
        manifest = object_of(manifest_bytes)
        if manifest.get("format") != FORMAT:
            raise ValueError(f"format is {quote(manifest.get('format'))}, expected {FORMAT}")
        require(manifest, {"files": OBJECT})
        for name, record in manifest["files"].items():
            require(manifest["files"], {name: OBJECT}, "files.")
            require(record, {"sha256": TEXT}, f"files.{name}.")
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"{quote(name)} leads out of the package")
    except ValueError as error:
        raise UserError(f"{path}: {MANIFEST}: {error}; {WAY_OUT}") from error
    hashes = {name: record["sha256"] for name, record in manifest["files"].items()}
    return hashes, hashlib.sha256(manifest_bytes).hexdigest()


def _copy_content(content: Content, file: IO[bytes]) -> None:
    """Writes the content to an open file, piece by piece."""
    if isinstance(content, bytes):
        file.write(content)
        return
    with open_file(content) as source:
        while chunk := source.read(CHUNK_BYTES):
            file.write(chunk)


def _content_hash(content: Content) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    return sha256_of(content)


def _content_bytes(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _file_mode(name: str) -> int:
    return 0o755 if name.endswith(".sh") else 0o644
