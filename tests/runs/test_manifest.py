"""A manifest from anywhere is read with the fields that its readers rely on, or refused with file, field and value."""

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.runs.manifest import read_manifest
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import quote, read_object

GOOD: dict[str, Any] = {
    "format": 1,
    "stage": "reward",
    "status": "finished",
    "id": "0123456789abcdef",
    "base": {
        "name": "owner/model",
        "quantization": "nf4",
        "compute_dtype": "auto",
        "trust_remote_code": False,
        "source_hash": "829fe4eb",
        "chat_template": "{{ messages }}",
    },
    "parents": {"sft": {"folder": "sft", "stage": "sft", "id": "00ff"}},
    "data": {"rankings": {"path": "rankings.jsonl", "sha256": "aa"}, "text": {"path": "owner/name", "sha256": None}},
    "seconds": 1.5,
    "results": {"offset": -0.25, "accuracy": {"rate": 0.7}},
    "noted": ["by", {"somebody": None}],
}
MISSING = object()


def changed(where: str, value: Any) -> dict[str, Any]:
    """The good manifest with one field set, or taken out; `where` has dots between the names."""
    manifest = json.loads(json.dumps(GOOD))
    *outer, name = where.split(".")
    target = manifest
    for key in outer:
        target = target[key]
    if value is MISSING:
        del target[name]
    else:
        target[name] = value
    return manifest


def written(folder: Path, manifest: Any) -> Path:
    (folder / "manifest.json").write_text(manifest if isinstance(manifest, str) else json.dumps(manifest))
    return folder


def test_a_good_manifest_is_read_as_it_is(tmp_path: Path) -> None:
    assert read_manifest(written(tmp_path, GOOD)) == GOOD


def test_older_and_unfinished_ones_are_read(tmp_path: Path) -> None:
    older = changed("format", MISSING)
    assert read_manifest(written(tmp_path, older)) == older
    unfinished = {key: value for key, value in GOOD.items() if key not in ("seconds", "results")} | {
        "status": "running"
    }
    assert read_manifest(written(tmp_path, unfinished)) == unfinished
    template = changed("base.chat_template", None)
    assert read_manifest(written(tmp_path, template)) == template


def test_a_newer_one_asks_for_a_newer_version_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}/manifest.json: format is 2, made by a newer version.*upgrade"):
        read_manifest(written(tmp_path, {"format": 2, "everything": "else"}))


@pytest.mark.parametrize("value", [0, -1, True, "1", 1.5, None, [1]])
def test_a_format_is_a_number_from_1(tmp_path: Path, value: Any) -> None:
    with pytest.raises(UserError, match=r"manifest.json: format is .*, expected 1"):
        read_manifest(written(tmp_path, changed("format", value)))


RELIED_ON = [
    *("stage", "status", "id", "base", "parents", "data", "seconds", "results", "results.offset"),
    *(f"base.{name}" for name in GOOD["base"]),
    *(f"parents.sft.{name}" for name in ("folder", "stage", "id")),
    *(f"data.rankings.{name}" for name in ("path", "sha256")),
]
WRONG: list[tuple[tuple[str, ...], list[Any]]] = [
    (("base", "parents", "data", "results", "parents.sft", "data.rankings"), [None, [], "a", 1, True]),
    (("seconds", "results.offset"), [None, "1", True, []]),
    (("id", "parents.sft.id"), [None, 5, "", "../x", "a b", "a" * 65, "é", "a\n"]),
    (("parents.sft.folder", "data.rankings.path", "base.name"), [None, 5, "", " ", "a\0b", "a" * 5000]),
    (("stage", "status", "base.quantization", "base.compute_dtype", "base.source_hash"), [None, 1, "", []]),
    (("base.trust_remote_code",), [None, 0, 1, "false", []]),
    (("base.chat_template",), [1, [], {}]),
    (("data.rankings.sha256",), [1, []]),
    (("resumed",), [None, {}, 3, "x"]),
]


@pytest.mark.parametrize("where", RELIED_ON)
def test_a_field_that_is_missing_is_named(tmp_path: Path, where: str) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path}/manifest.json: '{where}' is missing; restore that file"):
        read_manifest(written(tmp_path, changed(where, MISSING)))


@pytest.mark.parametrize(
    ("where", "value"), [(where, value) for names, values in WRONG for where in names for value in values]
)
def test_a_field_of_another_type_is_named_with_its_value(tmp_path: Path, where: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path}/manifest.json: '{where}' is .*, expected ") as caught:
        read_manifest(written(tmp_path, changed(where, value)))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


def test_seconds_are_not_below_0(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'seconds' is -1, expected"):
        read_manifest(written(tmp_path, changed("seconds", -1)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ('{"stage": ', "Expecting value"),
        ("[]", "expected an object"),
        ("[" * 10**5, "nested too deep"),
        ('{"a":' * 1000 + "1" + "}" * 1000, "nested"),
        ('{"a":' * 32 + "1" + "}" * 32, "nested deeper than 32 levels"),
        ('{"a": NaN}', "NaN is not"),
        ('{"a": [-1e999]}', "not finite"),
        ('{"a": 123456789012345678901}', "integer of 21 digits"),
        ('{"a": 1, "a": 2}', "'a' stands there twice"),
        ('{"a": ["\\udc80"]}', "half a character"),
        ('{"\\udc80": 1}', "half a character"),
        ('{"a": [' + "[]," * 250_000 + "0]}", "500,002 commas and brackets, more than the 500,000"),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_not_plain_json_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path}/manifest.json cannot be used: .*{message}.*; restore"):
        read_manifest(written(tmp_path, text))


def test_31_levels_are_fine(tmp_path: Path) -> None:
    (tmp_path / "x").write_text('{"a":' * 31 + "1" + "}" * 31)
    assert "a" in read_object(tmp_path / "x", "")


@pytest.mark.timeout(20)
def test_files_of_no_use_are_not_opened_or_read(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    with pytest.raises(UserError, match="not there"):
        read_manifest(tmp_path)
    with pytest.raises(UserError, match="too long"):
        read_manifest(tmp_path / ("x" * 300))
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(UserError, match="1,099,511,627,776 bytes, more than the 16,777,216"):
        read_manifest(tmp_path)
    for make in (Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path)):
        path.unlink(missing_ok=True)
        make(path)
        with pytest.raises(UserError, match=r"not a file|is a symbolic link"):
            read_manifest(tmp_path)
        if path.is_dir():
            path.rmdir()


@pytest.mark.timeout(20)
def test_many_names_of_which_one_comes_twice_take_no_time(tmp_path: Path) -> None:
    names = ",".join(f'"{number}":0' for number in range(200_000))
    started = time.monotonic()
    with pytest.raises(UserError, match="'199999' stands there twice"):
        read_manifest(written(tmp_path, f'{{{names},"199999":0}}'))
    assert time.monotonic() - started < 10


def test_a_value_is_shown_on_one_short_line() -> None:
    assert quote("a\x1b[2J\n") == "'a\\x1b[2J\\n'"
    assert quote({"a": [1, None]}) == "{'a': [1, None]}"
    assert len(quote(["x" * 10**6] * 1000)) < 1000 and len(quote("x" * 10**6)) < 130


@pytest.mark.timeout(60)
def test_1000_damaged_manifests_are_read_or_refused(tmp_path: Path) -> None:
    """Never another exception; what is read has every field that readers rely on."""
    rng = random.Random(0)
    good = json.dumps(GOOD).encode()
    path = tmp_path / "manifest.json"
    loaded = refused = 0
    for _ in range(1000):
        raw = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(raw))
            piece = rng.choice((b"", rng.randbytes(3), b"null", b"[]", b"{}", b"9" * 30, b'"', b"\\u0000", b"-"))
            raw[at : at + rng.randrange(6)] = piece
        path.write_bytes(raw)
        try:
            manifest = read_manifest(tmp_path)
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and len(str(error)) < 1000
        else:
            loaded += 1
            assert manifest == json.loads(raw)
            assert isinstance(manifest["base"]["trust_remote_code"], bool) and isinstance(manifest["stage"], str)
            assert all(isinstance(parent["folder"], str) for parent in manifest["parents"].values())
    assert loaded > 50 and refused > 400
