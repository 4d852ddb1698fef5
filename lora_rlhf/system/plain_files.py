"""Files that strangers may have prepared: opened never through a symbolic link, never as a pipe or a device."""

import io
import os
import stat
from pathlib import Path

from lora_rlhf.system.errors import UserError

MODES = ("rb", "r+b", "a+b")  # not wb: it would empty a file before anybody holds a lock on it
MOST_BYTES = 2**30
MOST_ROWS = 500_000  # of a file whose rows are all in memory: an empty row takes a hundred times its bytes there


def open_file(path: Path, mode: str = "rb", follow_links: bool = False) -> io.FileIO:
    """Opens a regular file without a buffer. (A new file is opened with `open(path, "xb")`, which follows no link.)

    follow_links: of a file that the user named, such as data, a config, or a base in the hub's cache of links.

    Raises:
        UserError: the path is a symbolic link, a folder, a pipe or a device.
        OSError: as `open`.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r}; use one of {', '.join(MODES)}")

    def open_descriptor(name: str, flags: int) -> int:
        if not follow_links:
            require_no_link(path)  # for the message; O_NOFOLLOW is what holds
        # O_NONBLOCK: opening a pipe would wait for its other end
        descriptor = os.open(name, flags | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW), 0o666)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise UserError(f"{path} cannot be used: not a file")
        return descriptor

    return io.FileIO(path, mode, opener=open_descriptor)


def read_file(path: Path, most_bytes: int = MOST_BYTES, follow_links: bool = False) -> bytes:
    """The content of a file. UserError as `open_file`, and for more than `most_bytes`, which are then not read."""
    with open_file(path, follow_links=follow_links) as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > most_bytes else file.read(most_bytes + 1)  # some files grow, or hide their size
    _require_at_most(path, max(size, len(content)), most_bytes)
    return content


def require_size(path: Path, most_bytes: int) -> None:
    """UserError as `open_file`, and for more than `most_bytes`: for a file that is hashed and copied, never parsed."""
    with open_file(path) as file:
        _require_at_most(path, os.fstat(file.fileno()).st_size, most_bytes)


def _require_at_most(path: Path, size: int, most_bytes: int) -> None:
    if size > most_bytes:
        raise UserError(
            f"{path} cannot be used: {size:,} bytes, more than the {most_bytes:,} that such a file can have"
        )


def read_rows(path: Path, most_bytes: int) -> bytes:
    """The content of a file of rows, one a line. UserError as `read_file`, and for more than MOST_ROWS lines."""
    content = read_file(path, most_bytes)
    if (num_rows := content.count(b"\n")) > MOST_ROWS:
        raise UserError(f"{path} cannot be used: {num_rows:,} rows, more than the {MOST_ROWS:,} that it can have")
    return content


def make_folder(folder: Path) -> None:
    """Makes a folder that only its owner can read, and the folders above it as usual. UserError for a link there."""
    require_no_link(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def require_no_link(*paths: Path) -> None:
    """UserError if one of the paths is a symbolic link. Call it before a library opens a file or folder of a run."""
    for path in paths:
        if os.path.islink(path):  # unlike Path.is_symlink, no error for a name that is too long
            raise UserError(
                f"{path} is a symbolic link, which is not followed there: put what it leads to in its place"
            )
