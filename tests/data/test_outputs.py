"""What is written never stands in the place of what is read, however either is spelled."""

import os
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from lora_rlhf.data.outputs import require_output
from lora_rlhf.system.errors import UserError


def same(path: Path) -> str:
    return str(path)


def dotted(path: Path) -> str:
    (path.parent / "in").mkdir()
    return str(path.parent / "in" / ".." / path.name)


def relative(path: Path) -> str:
    return os.path.relpath(path)


def symbolic(path: Path) -> str:
    (path.parent / "link.jsonl").symlink_to(path)
    return str(path.parent / "link.jsonl")


def hard(path: Path) -> str:
    os.link(path, path.parent / "hard.jsonl")
    return str(path.parent / "hard.jsonl")


SPELLINGS = [same, dotted, relative, symbolic, hard]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n')
    return path


@pytest.mark.parametrize("spell", SPELLINGS)
@pytest.mark.parametrize("swap", [False, True])
def test_an_input_is_found_in_every_spelling(rows: Path, spell: Callable[[Path], str], swap: bool) -> None:
    target, name = (spell(rows), str(rows)) if swap else (str(rows), spell(rows))
    with pytest.raises(UserError, match=r"--refused .*would destroy it; name another file"):
        require_output("--refused", target, ["elsewhere.jsonl", name])


@pytest.mark.parametrize("name", ["", "*.jsonl", "**/r*"])
def test_an_input_within_a_folder_or_pattern_is_found(rows: Path, name: str) -> None:
    given = str(rows.parent / name)
    with pytest.raises(UserError, match="read as"):
        require_output("--plot", str(rows), [given])
    require_output("--plot", str(rows.parent / "new.jsonl"), [given])


def test_nothing_is_written_into_a_saved_dataset(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match="read as"):
        require_output("--refused", str(tmp_path / "saved" / "state.json"), [str(tmp_path / "saved")])


def test_a_file_of_its_own_may_be_written(rows: Path) -> None:
    other = rows.parent / "other.jsonl"
    other.write_text("older")
    inputs = [str(rows), "owner/name", "gone.jsonl", ""]
    for target in (None, str(other), str(rows.parent / "new.jsonl"), "here.jsonl"):
        require_output("--refused", target, inputs)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none/x.jsonl", r"--to .*none/x\.jsonl: no such folder: .*none; make it first"),
        ("rows.jsonl/x", "no such folder"),
        (".", "this is a folder"),
        ("/dev/null", "no regular file"),
    ],
)
def test_what_cannot_be_a_new_file_is_refused(rows: Path, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        require_output("--to", str(rows.parent / name), [])
    assert not (rows.parent / "none").exists()
