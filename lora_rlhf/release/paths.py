"""How a package names files: without paths of the machine. Also refuses secrets in its files."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lora_rlhf.system.errors import UserError

INPUTS = "inputs"  # folder of the files from outside the run, which who repeats the run has to put there
# Sections of a report, and keys in them, with texts of people and models: they stay as they are, with their paths.
TEXT_SECTIONS = {"audit", "samples"}
TEXT_KEYS = {"prompt", "response", "responses", "text", "messages", "completion"}
ABSOLUTE_PATH = re.compile(r"(?<![\w/.:])(?:~|[A-Za-z]:)?[/\\](?:[\w.@+ -]+[/\\])*[\w.@+-]+")
SECRETS = re.compile(r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,})|://[^/\s:@]+:[^/\s@]+@")
SECRET_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
SHORTEST_SECRET = 8


class PathMap:
    """The paths of one run as its package writes them.

    roots: the paths of the run, here and where it was made. A file in the run becomes NAME/..., with the name of the
    run's folder; any other file or folder becomes inputs/ and its own name.
    """

    def __init__(self, run: Path, roots: Iterable[str]) -> None:
        self.name = run.resolve().name
        self._run = run.resolve()
        roots = {str(run), str(self._run), *(root.rstrip("/") for root in roots)}
        self._roots = sorted(roots, key=lambda root: (-len(root), root))
        self._names: dict[str, str] = {}

    def packaged_path(self, path: str) -> str:
        """The path as the package writes it. A text that is no file of this machine (a hub name) stays."""
        for root in self._roots:
            if path == root or path.startswith(f"{root}/"):
                return self.name + path.removeprefix(root)
        if os.path.lexists(path) and Path(path).resolve().is_relative_to(self._run):
            return (Path(self.name) / Path(path).resolve().relative_to(self._run)).as_posix()
        is_private = path.startswith(("/", "~", "\\")) or ".." in Path(path).parts or re.match(r"[A-Za-z]:[/\\]", path)
        return self._input_path(path) if is_private or os.path.lexists(path) else path

    def current_path(self, path: str, run: Path) -> Path:
        """The present path of a file that was recorded at `path`."""
        packaged_path = self.packaged_path(path)
        path_in_run = run / packaged_path.removeprefix(f"{self.name}/")
        return path_in_run if packaged_path.startswith(f"{self.name}/") and path_in_run.exists() else Path(path)

    def without_paths(self, value: Any, keep: frozenset[str] = frozenset({"chat_template"})) -> Any:
        """A JSON or YAML value with paths as the package writes them. Values under keys of `keep` are not changed."""
        if isinstance(value, Mapping):
            return {
                name: item
                if name in keep
                else self.without_paths(item, keep | TEXT_KEYS if name in TEXT_SECTIONS else keep)
                for name, item in value.items()
                if name != "from_run"  # the path of data on this machine, relative to the run
            }
        if isinstance(value, list | tuple):
            return [self.without_paths(item, keep) for item in value]
        return self.text_without_paths(value) if isinstance(value, str) else value

    def text_without_paths(self, text: str) -> str:
        """A text with paths as the package writes them."""
        if "\n" not in text and " " not in text:
            text = self.packaged_path(text) if self._is_path(text) else text
        for root in (root for root in self._roots if "/" in root):
            text = re.sub(rf"(?<![\w/.-]){re.escape(root)}(?![\w.-])", lambda _: self.name, text)
        return ABSOLUTE_PATH.sub(lambda match: self._input_path(match[0]), text)

    @property
    def inputs(self) -> dict[str, str]:
        """{original path: path in the package} of files outside the run."""
        return dict(self._names)

    def _is_path(self, text: str) -> bool:
        return "/" in text or "\\" in text or text.startswith("~") or any(text == root for root in self._roots)

    def _input_path(self, path: str) -> str:
        """inputs/ and the file's name, with a number if two files have the same name."""
        if path not in self._names:
            name = re.split(r"[/\\]", path.rstrip("/\\"))[-1] or "root"
            stem, dot, suffix = name.partition(".")
            used_paths, number, packaged_path = set(self._names.values()), 2, f"{INPUTS}/{name}"
            while packaged_path in used_paths:
                packaged_path, number = f"{INPUTS}/{stem}-{number}{dot}{suffix}", number + 1
            self._names[path] = packaged_path
        return self._names[path]


def require_no_secrets(files: Mapping[str, bytes]) -> None:
    """Raises UserError if a file holds a key, by its form or because a secret environment variable has that value."""
    secret_values = {
        name: value.encode()
        for name, value in os.environ.items()
        if SECRET_NAMES.search(name) and len(value) >= SHORTEST_SECRET and not value.startswith("/")
    }
    for file, content in files.items():
        for name, value in secret_values.items():
            if value in content:
                raise UserError(f"package: {file} would hold the value of ${name}; take it out of the run's files")
        if SECRETS.search(content.decode(errors="replace")):
            raise UserError(f"package: {file} would hold what looks like a key or password; take it out of the run")
