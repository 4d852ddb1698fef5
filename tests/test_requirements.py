"""What the two scripts install with hashes is what constraints.txt names, and all that the project asks for."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PIN = re.compile(r"^([\w.-]+)==([^\s;]+)", re.MULTILINE)
PINS = {canonicalize_name(name): version for name, version in PIN.findall((ROOT / "constraints.txt").read_text())}
OUTSIDE = {"torch"}  # another file on each index


@pytest.mark.parametrize("extra", ["demo", "test"])
def test_every_package_has_its_version_and_hashes(extra: str) -> None:
    text = (ROOT / "requirements" / f"{extra}.txt").read_text()
    entries = {canonicalize_name(name): version for name, version in PIN.findall(text)}
    assert {name: version for name, version in entries.items() if PINS.get(name, version) != version} == {}
    blocks = re.split(r"\n(?=\w)", text.strip())
    assert len(blocks) == len(entries) and all("--hash=sha256:" in block for block in blocks)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = map(Requirement, [*project["dependencies"], *project["optional-dependencies"][extra], "setuptools"])
    missing = [r.name for r in asked if canonicalize_name(r.name) not in entries.keys() | OUTSIDE]
    assert missing == [], "give the command scripts/renew_hashes.sh"
