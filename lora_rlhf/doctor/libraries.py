"""The libraries: installed versions against the needed and the tested ones."""

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

    `direct`: this project needs it itself, and not only one of its libraries.
    """

    name: str
    installed: str | None
    needed: str = ""
    tested: str | None = None
    direct: bool = True


def libraries(pins: Mapping[str, str], package: str = PACKAGE) -> list[Library]:
    """All libraries that a package needs, directly or not; empty where the package itself is not installed."""
    known: dict[str, Library] = {}
    waiting = [(requirement, True) for requirement in _requirements(package, set())]
    while waiting:
        requirement, direct = waiting.pop(0)
        name = canonicalize_name(requirement.name)
        if name not in known:
            installed = _version(name)
            known[name] = Library(name, installed, str(requirement.specifier), pins.get(name), direct)
            if installed is not None:
                waiting += [(inner, False) for inner in _requirements(name, requirement.extras)]
    return list(known.values())


def tested_versions(path: Path = PINS) -> dict[str, str]:
    """The pinned version of each library; empty where there is no such file."""
    if not path.is_file():
        return {}
    rows = [row.partition("==") for row in path.read_text().splitlines() if "==" in row and not row.startswith("#")]
    return {canonicalize_name(name.strip()): version.strip() for name, _, version in rows}


def judge_libraries(needed: Sequence[Library], python: str) -> list[Finding]:
    """What is missing or differs, each with the command that repairs it. `python` is how to start this Python."""
    if not needed:
        return [Finding("libraries", "note", f"{PACKAGE} is not installed here, so what it needs is not known")]
    findings = [finding for library in needed if library.direct and (finding := _judge(library, python))]
    indirect = [library for library in needed if not library.direct and _differs(library)]
    if indirect:
        text = ", ".join(f"{each.name} {each.installed or 'missing'} (tested: {each.tested})" for each in indirect)
        pins = " ".join(f"{each.name}=={each.tested}" for each in indirect)
        values = {each.name: {"installed": each.installed, "tested": each.tested} for each in indirect}
        findings.append(Finding("libraries", "note", text, "", values, f"{python} -m pip install {pins}"))
    if findings:
        return findings
    direct = {library.name: library.installed for library in needed if library.direct}
    versions = ", ".join(f"{name} {direct[name]}" for name in ("torch", "transformers", "peft", "bitsandbytes"))
    tested = sum(library.tested is not None for library in needed)
    how = f"{tested} libraries are as tested" if tested else f"{len(direct)} libraries are new enough"
    return [Finding("libraries", "ok", f"{how}: {versions}", values=direct)]


def this_python() -> str:
    """How to start this Python from a shell in the working folder."""
    path = Path(sys.executable)
    here = Path(os.path.abspath(os.curdir))
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _judge(library: Library, python: str) -> Finding | None:
    values = {"installed": library.installed, "needed": library.needed, "tested": library.tested}
    requirement = f"{library.name}=={library.tested}" if library.tested else f"{library.name}{library.needed}"
    command = f"{python} -m pip install {shlex.quote(requirement)}"
    if library.installed is None:
        return Finding("libraries", "problem", f"{library.name} is not installed", "", values, command)
    if not Requirement(f"{library.name}{library.needed}").specifier.contains(library.installed, prereleases=True):
        text = f"{library.name} {library.installed} is installed, needed is {library.needed}"
        return Finding("libraries", "problem", text, "", values, command)
    if _differs(library):
        text = f"{library.name} {library.installed} is installed, tested is {library.tested}"
        return Finding("libraries", "note", text, "", values, command)
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
    requirements = [Requirement(row) for row in rows]
    environments = [{"extra": extra} for extra in ("", *extras)]
    return [each for each in requirements if each.marker is None or any(map(each.marker.evaluate, environments))]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
