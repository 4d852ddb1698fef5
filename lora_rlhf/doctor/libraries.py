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

    is_direct: this project needs it itself, and not only one of its libraries.
    """

    name: str
    installed: str | None
    needed: str = ""
    tested: str | None = None
    is_direct: bool = True


def find_libraries(pins: Mapping[str, str], package: str = PACKAGE) -> list[Library]:
    """All libraries that a package needs, directly or not; empty if the package itself is not installed."""
    library_by_name: dict[str, Library] = {}
    requirements_left = [(requirement, True) for requirement in _read_requirements(package, set())]
    while requirements_left:
        requirement, is_direct = requirements_left.pop(0)
        name = canonicalize_name(requirement.name)
        if name not in library_by_name:
            installed = installed_version(name)
            library_by_name[name] = Library(name, installed, str(requirement.specifier), pins.get(name), is_direct)
            if installed is not None:
                requirements_left += [
                    (inner_requirement, False) for inner_requirement in _read_requirements(name, requirement.extras)
                ]
    return list(library_by_name.values())


def read_tested_versions(path: Path = PINS) -> dict[str, str]:
    """The pinned version of each library; empty if there is no such file."""
    if not path.is_file():
        return {}
    rows = [row.partition("==") for row in path.read_text().splitlines() if "==" in row and not row.startswith("#")]
    return {canonicalize_name(name.strip()): version.strip() for name, _, version in rows}


def library_findings(libraries: Sequence[Library], python: str) -> list[Finding]:
    """What is missing or differs, each with the command that repairs it.

    python: the command that starts this Python.
    """
    if not libraries:
        return [Finding("libraries", "note", f"{PACKAGE} is not installed here, so what it needs is not known")]
    findings = [
        finding for library in libraries if library.is_direct and (finding := _version_finding(library, python))
    ]
    indirect_libraries = [library for library in libraries if not library.is_direct and _is_other_version(library)]
    if indirect_libraries:
        text = ", ".join(
            f"{library.name} {library.installed or 'missing'} (tested: {library.tested})"
            for library in indirect_libraries
        )
        pins = " ".join(f"{library.name}=={library.tested}" for library in indirect_libraries)
        values = {
            library.name: {"installed": library.installed, "tested": library.tested} for library in indirect_libraries
        }
        findings.append(Finding("libraries", "note", text, "", values, f"{python} -m pip install {pins}"))
    if findings:
        return findings
    direct_versions = {library.name: library.installed for library in libraries if library.is_direct}
    versions = ", ".join(
        f"{name} {direct_versions[name]}" for name in ("torch", "transformers", "peft", "bitsandbytes")
    )
    num_tested = sum(library.tested is not None for library in libraries)
    summary = (
        f"{num_tested} libraries are as tested" if num_tested else f"{len(direct_versions)} libraries are new enough"
    )
    return [Finding("libraries", "ok", f"{summary}: {versions}", values=direct_versions)]


def python_command() -> str:
    """The command that starts this Python from a shell in the working folder."""
    path = Path(sys.executable)
    working_folder = Path(os.path.abspath(os.curdir))
    return shlex.quote(str(path.relative_to(working_folder) if path.is_relative_to(working_folder) else path))


def _version_finding(library: Library, python: str) -> Finding | None:
    """What is wrong with the installed version, with the command that repairs it; None if nothing is."""
    values = {"installed": library.installed, "needed": library.needed, "tested": library.tested}
    requirement = f"{library.name}=={library.tested}" if library.tested else f"{library.name}{library.needed}"
    command = f"{python} -m pip install {shlex.quote(requirement)}"
    if library.installed is None:
        return Finding("libraries", "problem", f"{library.name} is not installed", "", values, command)
    if not Requirement(f"{library.name}{library.needed}").specifier.contains(library.installed, prereleases=True):
        text = f"{library.name} {library.installed} is installed, needed is {library.needed}"
        return Finding("libraries", "problem", text, "", values, command)
    if _is_other_version(library):
        text = f"{library.name} {library.installed} is installed, tested is {library.tested}"
        return Finding("libraries", "note", text, "", values, command)
    return None


def _is_other_version(library: Library) -> bool:
    """Whether the version differs from the tested one. The build, as in 2.13.0+cu130, does not count."""
    if library.tested is None or library.installed is None:
        return library.tested is not None
    return Version(Version(library.installed).public) != Version(library.tested)


def _read_requirements(name: str, extras: set[str]) -> list[Requirement]:
    """What a package requires on this machine with these extras; empty if it is not installed."""
    try:
        rows = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    requirements = [Requirement(row) for row in rows]
    environments = [{"extra": extra} for extra in ("", *extras)]
    return [
        requirement
        for requirement in requirements
        if requirement.marker is None or any(map(requirement.marker.evaluate, environments))
    ]


def installed_version(name: str) -> str | None:
    """A package's version; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
