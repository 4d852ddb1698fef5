"""JSON in a response, and whether a JSON Schema accepts it: the part of the standard that says what data look like."""

import json
import re
from typing import Any

NUMBER = int | float
TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "number": NUMBER, "integer": int, "boolean": bool, "null": type(None),
}  # fmt: skip
ANNOTATIONS = frozenset("$schema $id $defs definitions title description default examples $comment".split())
KEYWORDS = ANNOTATIONS | frozenset(
    "type enum const anyOf allOf oneOf not $ref properties required additionalProperties minProperties maxProperties "
    "items minItems maxItems uniqueItems pattern minLength maxLength minimum maximum exclusiveMinimum exclusiveMaximum "
    "multipleOf".split()
)


def find_json(text: str) -> Any:
    """The JSON value that a text is, alone or in its only fence. ValueError if it is none."""
    fences = re.findall(r"```(?:json)?[ \t]*\n(.*?)```", text, re.DOTALL)
    return json.loads(fences[0] if len(fences) == 1 else text, parse_constant=_refuse)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def is_valid(value: Any, schema: Any, root: Any = None) -> bool:
    """Whether the schema (JSON Schema 2020-12) accepts the value. ValueError for a keyword that is not known here.

    `$ref` may point into the schema itself ("#/$defs/name"). Formats are not known.
    """
    root = schema if root is None else root
    if isinstance(schema, bool):
        return schema
    if unknown := set(schema) - KEYWORDS:
        raise ValueError(f"JSON Schema: {', '.join(sorted(unknown))} is not supported; known are {sorted(KEYWORDS)}")
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    checks = [
        not types or any(_has_type(value, name) for name in types),
        "enum" not in schema or any(_is_same(value, choice) for choice in schema["enum"]),
        "const" not in schema or _is_same(value, schema["const"]),
        "$ref" not in schema or is_valid(value, _resolve(root, schema["$ref"]), root),
        all(is_valid(value, part, root) for part in schema.get("allOf", [])),
        "anyOf" not in schema or any(is_valid(value, part, root) for part in schema["anyOf"]),
        "oneOf" not in schema or sum(is_valid(value, part, root) for part in schema["oneOf"]) == 1,
        "not" not in schema or not is_valid(value, schema["not"], root),
    ]
    if isinstance(value, dict):
        checks.append(_is_valid_object(value, schema, root))
    elif isinstance(value, list):
        checks.append(_is_valid_array(value, schema, root))
    elif isinstance(value, str):
        checks.append(schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)))
        checks.append("pattern" not in schema or re.search(schema["pattern"], value) is not None)
    elif _has_type(value, "number"):
        checks.append(schema.get("minimum", value) <= value <= schema.get("maximum", value))
        checks.append("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        checks.append("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
        checks.append("multipleOf" not in schema or value % schema["multipleOf"] == 0)
    return all(checks)


def _is_valid_object(value: dict[str, Any], schema: Any, root: Any) -> bool:
    known = schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    return (
        set(schema.get("required", [])) <= set(value)
        and schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value))
        and all(is_valid(item, known.get(name, others), root) for name, item in value.items())
    )


def _is_valid_array(value: list[Any], schema: Any, root: Any) -> bool:
    texts = {json.dumps(item, sort_keys=True) for item in value}
    return (
        schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        and (not schema.get("uniqueItems", False) or len(texts) == len(value))
        and all(is_valid(item, schema.get("items", True), root) for item in value)
    )


def _has_type(value: Any, name: str) -> bool:
    if isinstance(value, bool) or name == "boolean":
        return isinstance(value, bool) and name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return name in TYPES and isinstance(value, TYPES[name])


def _is_same(value: Any, other: Any) -> bool:
    """Equal as JSON: true is not 1."""
    return json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True)


def _resolve(root: Any, reference: str) -> Any:
    """The part of the schema that a reference such as #/$defs/name names. ValueError for any other reference."""
    if not reference.startswith("#"):
        raise ValueError(f"JSON Schema: $ref {reference!r} does not point into the schema itself")
    part = root
    for name in reference.removeprefix("#").split("/")[1:]:
        part = part[name]
    return part
