"""How a package names files: those of the run by its name, others by theirs; no path of the machine, no secret."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lora_rlhf.system.errors import UserError

INPUTS = "inputs"  # the folder in which whoever repeats a run puts the files that are not of the run
# Sections of a report, and keys in them, that hold what people and models wrote: that stays, a path in it included.
WRITTEN_IN = {"audit", "samples"}
WRITTEN = {"prompt", "response", "responses", "text", "messages", "completion"}
ABSOLUTE = re.compile(r"(?<![\w/.:])(?:~|[A-Za-z]:)?[/\\](?:[\w.@+ -]+[/\\])*[\w.@+-]+")
SECRETS = re.compile(r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,})|://[^/\s:@]+:[^/\s@]+@")
SECRET_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
SHORTEST_SECRET = 8


class PathMap:
    """The paths of one run as its package writes them.

    roots: the paths by which the run was called, here and where it was made. What lies in the run becomes NAME/...,
    with the name of its folder; any other file or folder becomes inputs/ and its own name.
    """

    def __init__(self, run: Path, roots: Iterable[str]) -> None:
        self.name = run.resolve().name
        self._run = run.resolve()
        known = {str(run), str(self._run), *(root.rstrip("/") for root in roots)}
        self._roots = sorted(known, key=lambda root: (-len(root), root))
        self._names: dict[str, str] = {}

    def packaged(self, path: str) -> str:
        """A path as the package writes it; what is neither in the run nor a file of this machine (a hub name) stays."""
        for root in self._roots:
            if path == root or path.startswith(f"{root}/"):
                return self.name + path.removeprefix(root)
        if os.path.lexists(path) and Path(path).resolve().is_relative_to(self._run):
            return (Path(self.name) / Path(path).resolve().relative_to(self._run)).as_posix()
        is_private = path.startswith(("/", "~", "\\")) or ".." in Path(path).parts or re.match(r"[A-Za-z]:[/\\]", path)
        return self._input(path) if is_private or os.path.lexists(path) else path

    def current(self, path: str, run: Path) -> Path:
        """Where a file is now that was recorded at that path."""
        packaged = self.packaged(path)
        inside = run / packaged.removeprefix(f"{self.name}/")
        return inside if packaged.startswith(f"{self.name}/") and inside.exists() else Path(path)

    def clean(self, value: Any, keep: frozenset[str] = frozenset({"chat_template"})) -> Any:
        """A JSON or YAML value without paths of this machine. Under the keys of `keep` it stays as it is."""
        if isinstance(value, Mapping):
            return {
                name: item if name in keep else self.clean(item, keep | WRITTEN if name in WRITTEN_IN else keep)
                for name, item in value.items()
                if name != "from_run"  # where data are on this machine, seen from the run
            }
        if isinstance(value, list | tuple):
            return [self.clean(item, keep) for item in value]
        return self.clean_text(value) if isinstance(value, str) else value

    def clean_text(self, text: str) -> str:
        """A text in which paths of this machine are written likewise."""
        if "\n" not in text and " " not in text:
            text = self.packaged(text) if self._is_path(text) else text
        for root in (root for root in self._roots if "/" in root):
            text = re.sub(rf"(?<![\w/.-]){re.escape(root)}(?![\w.-])", lambda _: self.name, text)
        return ABSOLUTE.sub(lambda match: self._input(match[0]), text)

    @property
    def inputs(self) -> dict[str, str]:
        """{path as it was: path in the package} of what lies outside the run."""
        return dict(self._names)

    def _is_path(self, text: str) -> bool:
        return "/" in text or "\\" in text or text.startswith("~") or any(text == root for root in self._roots)

    def _input(self, path: str) -> str:
        """inputs/ and the file's own name, with a number where two have the same."""
        if path not in self._names:
            name = re.split(r"[/\\]", path.rstrip("/\\"))[-1] or "root"
            stem, dot, suffix = name.partition(".")
            taken, number, packaged = set(self._names.values()), 2, f"{INPUTS}/{name}"
            while packaged in taken:
                packaged, number = f"{INPUTS}/{stem}-{number}{dot}{suffix}", number + 1
            self._names[path] = packaged
        return self._names[path]


def require_no_secrets(files: Mapping[str, bytes]) -> None:
    """UserError for a file that holds a key: by its form, or as an environment variable that is one has it."""
    known = {
        name: value.encode()
        for name, value in os.environ.items()
        if SECRET_NAMES.search(name) and len(value) >= SHORTEST_SECRET and not value.startswith("/")
    }
    for file, content in files.items():
        for name, value in known.items():
            if value in content:
                raise UserError(f"package: {file} would hold the value of ${name}; take it out of the run's files")
        if SECRETS.search(content.decode(errors="replace")):
            raise UserError(f"package: {file} would hold what looks like a key or password; take it out of the run")
