"""A package on disk: a zip or a folder, the same bytes for the same content, with hashes to check it by."""

import hashlib
import json
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from lora_rlhf.runs.manifest import OBJECT, TEXT
from lora_rlhf.system.disk import new_file, new_folder, sha256_of
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import object_of, quote, require

MANIFEST = "MANIFEST.json"
FORMAT = 1
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the first date that a zip can hold
CHUNK = 2**20
MOST_FILES = 100_000
MOST_MANIFEST_BYTES = 32 * 2**20
WAY_OUT = "name a package that `lora-rlhf package` wrote"

Content = bytes | Path  # a file's bytes, or where they are


def write_bundle(to: Path, files: Mapping[str, Content], about: Mapping[str, Any]) -> str:
    """Writes a zip where `to` ends in .zip, else a folder; returns the sha256 of its manifest.

    Nothing in it depends on when, where or in which order it was packed. A zip is stored, not compressed: its bytes do
    not depend on a version of zlib either.
    """
    hashes = {name: {"sha256": _sha256(files[name]), "bytes": _size(files[name])} for name in sorted(files)}
    manifest = json.dumps({"format": FORMAT, **about, "files": hashes}, indent=2, ensure_ascii=False).encode() + b"\n"
    everything = {**{name: files[name] for name in sorted(files)}, MANIFEST: manifest}
    if to.suffix == ".zip":
        with new_file(to) as raw, zipfile.ZipFile(raw, "w", zipfile.ZIP_STORED) as archive:
            for name, content in everything.items():
                info = zipfile.ZipInfo(name, LONG_AGO)
                info.create_system, info.external_attr = 3, (stat.S_IFREG | _mode(name)) << 16
                info.file_size = _size(content)
                with archive.open(info, "w") as file:
                    _copy(content, file)
    else:
        with new_folder(to) as folder:
            for name, content in everything.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "wb") as file:
                    _copy(content, file)
                path.chmod(_mode(name))
    return hashlib.sha256(manifest).hexdigest()


def verify_bundle(path: Path) -> tuple[int, list[str], str]:
    """(files that are as they were packed, what is not, sha256 of the manifest). UserError for what is no package."""
    with _opened(path) as (names, read):
        if MANIFEST not in names:
            raise UserError(f"{path}: holds no {MANIFEST}; {WAY_OUT}")
        hashes, digest = _manifest(path, read(MANIFEST))
        faults = [f"{name}: is not there" for name in hashes if name not in names]
        faults += [f"{name}: is not of the package" for name in names if name not in hashes and name != MANIFEST]
        sound = 0
        for name in (name for name in hashes if name in names):
            if _is_sound(read, name, hashes[name]):
                sound += 1
            else:
                faults.append(f"{name}: its content has changed")
    return sound, faults, digest


def _is_sound(read: Callable[[str], Any], name: str, sha256: str) -> bool:
    try:
        with read(name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except zipfile.BadZipFile:  # the zip's own checksum does not fit
        return False


@contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str], Any]]:
    """(names of all files, a function that opens one) of a zip or a folder."""
    if path.is_dir():
        names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir())
        yield names, lambda name: _plain(path / name)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
            if len(names) > MOST_FILES or len(set(names)) < len(names):
                raise UserError(f"{path}: holds {len(names)} files, some of them twice or too many; {WAY_OUT}")
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):  # what could be a bomb
                raise UserError(f"{path}: holds compressed files, which a package never does; {WAY_OUT}")
            yield names, archive.open
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {WAY_OUT}") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # the last two: methods, encryption
        raise UserError(f"{path}: not a zip that can be read ({error}); {WAY_OUT}") from error


def _plain(path: Path) -> IO[bytes]:
    if path.is_symlink() or not path.is_file():
        raise UserError(f"{path}: a package holds plain files alone; {WAY_OUT}")
    return open(path, "rb")


def _manifest(path: Path, file: IO[bytes]) -> tuple[dict[str, str], str]:
    """({file: sha256}, sha256 of the manifest)."""
    with file:
        raw = file.read(MOST_MANIFEST_BYTES + 1)
    try:
        if len(raw) > MOST_MANIFEST_BYTES:
            raise ValueError("too large")
        manifest = object_of(raw)
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
    return {name: record["sha256"] for name, record in manifest["files"].items()}, hashlib.sha256(raw).hexdigest()


def _copy(content: Content, file: IO[bytes]) -> None:
    if isinstance(content, bytes):
        file.write(content)
        return
    with open(content, "rb") as source:
        while chunk := source.read(CHUNK):
            file.write(chunk)


def _sha256(content: Content) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    return sha256_of(content)


def _size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _mode(name: str) -> int:
    return 0o755 if name.endswith(".sh") else 0o644
