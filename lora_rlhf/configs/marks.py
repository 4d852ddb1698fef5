"""Marks on the fields of a configuration: what recipes, resumed runs and renamed flags must know of a field.

A mark stands where the field is declared: `field(default=8, metadata=COMMON | SAFE_TO_CHANGE_ON_RESUME)`.
"""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, TypeVar

from lora_rlhf.system.errors import UserError

log = logging.getLogger("lora_rlhf")

Value = TypeVar("Value")
Mark = dict[str, Any]

# The field may stand at the top of a recipe; it then holds for every section that has it.
COMMON: Mark = {"common": True}
# The field changes how a stage runs, not what comes out of it: a run may go on with another value.
SAFE_TO_CHANGE_ON_RESUME: Mark = {"safe_to_change_on_resume": True}

# Among the flags that --help shows first, with those that must be given.
MOST_USED: Mark = {"most_used": True}


# The field may run code or reach a server that it names: the app takes it only where --allow_start true was given.
NEEDS_TRUST: Mark = {"needs_trust": True}


def subject(title: str) -> Mark:
    """The field and those after it stand under this heading in --help, up to the next such mark of their class."""
    return {"subject": title}


def input_file(*words: str) -> Mark:
    """The field names a file or hub dataset to read, unless it is None or one of these words."""
    return {"input_file": words}


def not_in_recipe(instead: str) -> Mark:
    """A recipe does not take the field; `instead` says what to do. It may hold {run} and {name} (of the section)."""
    return {"not_in_recipe": instead}


def formerly(name: str) -> Mark:
    """The field had this name before. Flags, files of flags, recipes and older runs may still use it."""
    return {"formerly": name}


# Of the flag that says how responses are generated.
ENGINE: Mark = COMMON | SAFE_TO_CHANGE_ON_RESUME | formerly("rollout")


def fields_with_mark(kind: type[Any], mark: Mark) -> list[str]:
    """The fields that have the mark."""
    return [field.name for field in dataclasses.fields(kind) if mark.items() <= field.metadata.items()]


def mark_by_field(kind: type[Any], mark: str) -> dict[str, Any]:
    """{name of a field: what its mark of that name says}, for the fields that have it."""
    return {field.name: field.metadata[mark] for field in dataclasses.fields(kind) if mark in field.metadata}


def former_names(kind: type[Any]) -> dict[str, str]:
    """Former name -> name, of the fields that had another."""
    return {former: name for name, former in mark_by_field(kind, "formerly").items()}


def with_new_names(former: Mapping[str, str], values: Mapping[str, Value], source: str | None) -> dict[str, Value]:
    """The values under the names of today. `source`: what they come from, for one line of warning a name; None: quiet.

    UserError for a field that is there under both names.
    """
    for old, new in former.items():
        if old in values and new in values:
            raise UserError(f"{source}: {old} is the former name of {new}; give {new} alone")
        if old in values and source is not None:
            log.warning("%s: %s is now called %s", source, old, new)
    return {former.get(name, name): value for name, value in values.items()}
