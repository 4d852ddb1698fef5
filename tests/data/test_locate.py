"""A name is a file, a folder, a pattern or a hub dataset; what cannot be found says what would be."""

import os
from pathlib import Path

import pytest

from lora_rlhf.data.locate import DataFiles, HubDataset, SavedDataset, data_suffix, is_data_file, locate
from lora_rlhf.system.errors import UserError


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_folder_gives_its_data_in_order_and_names_the_rest(tmp_path: Path) -> None:
    data = ["a.csv", "b/c/train-00000.parquet", "b/x.jsonl.gz", "b/y.JSON", "notes.txt", "z.jsonl.zst"]
    rest = [".cache/a.jsonl", "LICENSE", "README.md", "dataset_infos.json", "load.py", "picture.png", "readme.txt"]
    fill(tmp_path, *data, *rest, ".hidden.jsonl")
    found = locate(str(tmp_path))
    assert isinstance(found, DataFiles)
    assert found.paths == tuple(tmp_path / name for name in data)
    assert set(found.skipped) == {tmp_path / name for name in (*rest, ".hidden.jsonl")}


def test_a_hidden_folder_can_be_named_itself(tmp_path: Path) -> None:
    fill(tmp_path, ".data/rows.jsonl")
    assert locate(str(tmp_path / ".data")) == DataFiles((tmp_path / ".data/rows.jsonl",))


def test_a_file_is_taken_whatever_its_name(tmp_path: Path) -> None:
    fill(tmp_path, "README.md", "weird[1].jsonl")
    assert locate(str(tmp_path / "README.md")) == DataFiles((tmp_path / "README.md",))
    assert locate(str(tmp_path / "weird[1].jsonl")) == DataFiles((tmp_path / "weird[1].jsonl",))


def test_patterns(tmp_path: Path) -> None:
    fill(tmp_path, "train-2.jsonl", "train-1.jsonl", "train-notes.md", "test-1.jsonl", "deep/train-3.jsonl", "part-0")
    first, second = tmp_path / "train-1.jsonl", tmp_path / "train-2.jsonl"
    assert locate(str(tmp_path / "train-*")) == DataFiles((first, second), (tmp_path / "train-notes.md",))
    assert locate(str(tmp_path / "**/train-*.jsonl")) == DataFiles((tmp_path / "deep/train-3.jsonl", first, second))
    assert locate(str(tmp_path / "part-?")) == DataFiles((tmp_path / "part-0",))


@pytest.mark.parametrize(
    ("name", "hub"),
    [
        ("Anthropic/hh-rlhf", HubDataset("Anthropic/hh-rlhf", None, "train")),
        ("openai/x.y_z:test", HubDataset("openai/x.y_z", None, "test")),
        ("openai/summarize:axis-1.0:validation", HubDataset("openai/summarize", "axis-1.0", "validation")),
    ],
)
def test_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hub: HubDataset) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate(name) == hub


def test_what_exists_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "owner/name/rows.jsonl")
    monkeypatch.chdir(tmp_path)
    assert locate("owner/name") == DataFiles((Path("owner/name/rows.jsonl"),))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/owner/name/rows.jsonl") == DataFiles((tmp_path / "owner/name/rows.jsonl",))


def test_folders_of_the_library_datasets(tmp_path: Path) -> None:
    fill(tmp_path, "one/dataset_info.json", "one/state.json", "one/data-00000-of-00001.arrow", "many/dataset_dict.json")
    assert locate(str(tmp_path / "one")) == SavedDataset(tmp_path / "one")
    assert locate(str(tmp_path / "many")) == SavedDataset(tmp_path / "many")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data/train.jsonl", "no such file; a hub dataset is owner/name"),
        ("data/train.jsonl.gz", "no such file"),
        ("./data/mine", "no such file"),
        ("mine", "no such file"),
        ("a/b:c:d:e", "no such file"),
        ("none-*.jsonl", "no file matches"),
        ("", "empty name"),
        ("empty", r"no data in this folder \(it is empty\).*\.parquet"),
        ("pictures", r"no data in this folder \(it holds LICENSE, a\.png\)"),
        ("pipe", "pipe or device"),
        ("~no-such-person/rows.jsonl", "cannot be looked at.*home directory"),
        ("x" * 300, "cannot be looked at.*too long"),
    ],
)
def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    fill(tmp_path, "pictures/a.png", "pictures/LICENSE")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        locate(name)


def test_suffixes_and_names_of_data() -> None:
    assert [data_suffix(Path(name)) for name in ("a.JSONL.gz", "b.tar.gz", "c", "d.csv")] == [
        ".jsonl",
        ".tar",
        "",
        ".csv",
    ]
    assert is_data_file(Path("x/train.jsonl")) and not is_data_file(Path("x/README.txt"))


def test_a_folder_of_several_splits_is_not_read_as_one(tmp_path: Path) -> None:
    for name in ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "contest.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=r"several splits \(test: data/test-0.*, train: data/train-0") as error:
        locate(str(tmp_path))
    pattern = str(error.value).split("'")[1].replace("*test*", "*train*")
    assert locate(pattern) == DataFiles((tmp_path / "data" / "train-00000-of-00001.parquet",))
    (tmp_path / "data" / "test-00000-of-00001.parquet").unlink()
    assert len(locate(str(tmp_path)).paths) == 2
