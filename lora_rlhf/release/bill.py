"""The bill of materials of a package, in CycloneDX: what is installed where it is packed, and the base model."""

import importlib.metadata
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from lora_rlhf import __version__

BILL = "bill_of_materials.cdx.json"


def bill_of_materials(base: Mapping[str, Any]) -> dict[str, Any]:
    """CycloneDX 1.6 as JSON. `base`: the base of a stage's manifest.

    It has no time and no serial number, so the same installation gives the same bytes.
    """
    versions = {
        re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower(): distribution.version
        for distribution in importlib.metadata.distributions()
        if distribution.metadata["Name"]  # a folder that an installer left behind has none
    }
    libraries = [
        {"type": "library", "name": name, "version": version, "purl": f"pkg:pypi/{name}@{quote(version)}"}
        for name, version in sorted(versions.items())
    ]
    model = {"type": "machine-learning-model", "name": base["name"], "version": base["source_hash"]}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "lora-rlhf", "version": __version__}},
        "components": [model, *libraries],
    }
