"""Where a command may write: into a folder that is there, and never over what it reads."""

from collections.abc import Iterable
from pathlib import Path

from lora_rlhf.data.locate import DataFiles, SavedDataset, locate
from lora_rlhf.system.errors import UserError


def require_output(flag: str, path: str | None, inputs: Iterable[str]) -> None:
    """Raises UserError if a file to write has no folder, is not a regular file, or is an input. Call it before reading.

    flag: what gave the path, for the message; a path of None is nothing to write. inputs: names as `locate` takes them,
    compared as files: another spelling of one, a symbolic link and a hard link to it are the same.
    """
    if path is None:
        return
    target = Path(path)
    if not target.parent.is_dir():
        raise UserError(f"{flag} {path}: no such folder: {target.parent}; make it first, or correct the path")
    if target.exists() and not target.is_file():
        file_type = "a folder" if target.is_dir() else "no regular file"
        raise UserError(f"{flag} {path}: this is {file_type}; name a file to write")
    for name in inputs:
        if _is_input_file(name, target):
            input_description = "an input" if name == path else f"read as {name}"
            raise UserError(
                f"{flag} {path}: this file is {input_description}, and writing would destroy it; name another file"
            )


def _is_input_file(input_name: str, target: Path) -> bool:
    """Whether the file is among those of an input; an input that does not exist is reported later."""
    try:
        source = locate(input_name)
    except UserError:
        return False
    if isinstance(source, SavedDataset):
        return target.resolve().is_relative_to(source.path.resolve())
    if not isinstance(source, DataFiles) or not target.exists():
        return False
    return any(path.exists() and target.samefile(path) for path in source.paths)
