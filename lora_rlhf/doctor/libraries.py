"""The libraries: installed versions against those that this project needs and those that it was tested with."""

import importlib.metadata
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from lora_rlhf.doctor.findings import Finding

PACKAGE = "lora-rlhf"
PINS = Path(__file__).resolve().parents[2] / "constraints.txt"  # in a checkout; an installed package has none


@dataclass(frozen=True)
class Library:
    """A library that is needed: `needed` as pip writes it (">=5.23"), `tested` the version of the tested set.

    `direct`: this project asks for it itself, rather than one of its libraries.
    """

    name: str
    installed: str | None
    needed: str = ""
    tested: str | None = None
    direct: bool = True


def libraries(pins: Mapping[str, str], package: str = PACKAGE) -> list[Library]:
    """All that a package needs, what its libraries need included; empty where the package itself is not installed."""
    found: dict[str, Library] = {}
    waiting = [(requirement, True) for requirement in _requirements(package, set())]
    while waiting:
        requirement, direct = waiting.pop(0)
        name = canonicalize_name(requirement.name)
        if name not in found:
            installed = _version(name)
            found[name] = Library(name, installed, str(requirement.specifier), pins.get(name), direct)
            if installed is not None:
                waiting += [(inner, False) for inner in _requirements(name, requirement.extras)]
    return list(found.values())


def tested_versions(path: Path = PINS) -> dict[str, str]:
    """The pinned version of each library; empty where there is no such file."""
    if not path.is_file():
        return {}
    rows = [row.partition("==") for row in path.read_text().splitlines() if "==" in row and not row.startswith("#")]
    return {canonicalize_name(name.strip()): version.strip() for name, _, version in rows}


def judge_libraries(found: Sequence[Library], python: str) -> list[Finding]:
    """What is missing or differs, each with the line that mends it. `python` is how to start this Python."""
    if not found:
        return [Finding("libraries", "note", f"{PACKAGE} is not installed here, so what it needs is not known")]
    judged = [finding for library in found if library.direct and (finding := _judge(library, python))]
    others = [library for library in found if not library.direct and _differs(library)]
    if others:
        told = ", ".join(f"{one.name} {one.installed or 'missing'} (tested: {one.tested})" for one in others)
        names = " ".join(f"{one.name}=={one.tested}" for one in others)
        values = {one.name: {"installed": one.installed, "tested": one.tested} for one in others}
        judged.append(Finding("libraries", "note", told, "", values, f"{python} -m pip install {names}"))
    if judged:
        return judged
    direct = {library.name: library.installed for library in found if library.direct}
    shown = ", ".join(f"{name} {direct[name]}" for name in ("torch", "transformers", "peft", "bitsandbytes"))
    tested = sum(library.tested is not None for library in found)
    how = f"{tested} libraries are as tested" if tested else f"{len(direct)} libraries are new enough"
    return [Finding("libraries", "ok", f"{how}: {shown}", values=direct)]


def this_python() -> str:
    """How to start this Python in a shell here."""
    path = Path(sys.executable)
    here = Path(os.path.abspath(os.curdir))
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _judge(library: Library, python: str) -> Finding | None:
    values = {"installed": library.installed, "needed": library.needed, "tested": library.tested}
    wanted = f"{library.name}=={library.tested}" if library.tested else f"{library.name}{library.needed}"
    mend = f"{python} -m pip install {shlex.quote(wanted)}"
    if library.installed is None:
        return Finding("libraries", "problem", f"{library.name} is not installed", "", values, mend)
    if not Requirement(f"{library.name}{library.needed}").specifier.contains(library.installed, prereleases=True):
        found = f"{library.name} {library.installed} is installed, needed is {library.needed}"
        return Finding("libraries", "problem", found, "", values, mend)
    if _differs(library):
        found = f"{library.name} {library.installed} is installed, tested is {library.tested}"
        return Finding("libraries", "note", found, "", values, mend)
    return None


def _differs(library: Library) -> bool:
    """Whether the version is another than the tested one; how it was built, as in 2.13.0+cu130, is no difference."""
    if library.tested is None or library.installed is None:
        return library.tested is not None
    return Version(Version(library.installed).public) != Version(library.tested)


def _requirements(name: str, extras: set[str]) -> list[Requirement]:
    try:
        rows = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    wanted = [Requirement(row) for row in rows]
    choices = [{"extra": extra} for extra in ("", *extras)]
    return [one for one in wanted if one.marker is None or any(map(one.marker.evaluate, choices))]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
