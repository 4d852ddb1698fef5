"""Nothing is read or written through a symbolic link in a run, in a root of runs, or beside a pointer."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lora_rlhf_demo.config import DemoConfig
from lora_rlhf_demo.label_session import LabelActions
from lora_rlhf_demo.rows import RowFile
from lora_rlhf_demo.runs import list_runs
from lora_rlhf_demo.tail import Tails

from lora_rlhf.cli.main import main
from lora_rlhf.configs.stages import SFTConfig
from lora_rlhf.configs.values import read_yaml
from lora_rlhf.judges.cache import Cache
from lora_rlhf.runs.folder import ADAPTER, StageFolder, adapter_hash, find_stage
from lora_rlhf.runs.resume import Lock
from lora_rlhf.system.disk import append_row, new_folder, remove_folder, sha256_of, write_text
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.plain_files import make_folder, open_file, read_file
from lora_rlhf.system.tracking import Trackers
from lora_rlhf.system.untrusted import read_object

SECRET = '{"secret": "alias ll=ls"}\n'
BASE = {"name": "m", "quantization": "none", "compute_dtype": "float32", "trust_remote_code": False}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file of the user's, and a folder with such a file."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "secret").write_text(SECRET)
    return tmp_path / "home"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a finished SFT stage without tensors."""
    folder = StageFolder(SFTConfig(run=str(tmp_path / "run"), model="m", demonstrations="d"), "sft")
    folder.begin({**BASE, "source_hash": "0", "chat_template": None}, {}, {})
    (folder.path / ADAPTER).mkdir()
    (folder.path / ADAPTER / "adapter_config.json").write_text("{}")
    folder.finish({})
    return tmp_path / "run"


USES: dict[str, Callable[[Path], Any]] = {
    "lock": lambda path: Lock(path).acquire(),
    "append": lambda path: append_row(path, {"a": 1}),
    "cache": Cache,
    "votes": lambda path: RowFile(path).add({"a": 1}),
    "votes are read": lambda path: RowFile(path).rows(),
    "lock of votes": lambda path: RowFile(path.with_name("votes.jsonl")).add({"a": 1}),
    "JSON": lambda path: read_object(path, "mend it"),
    "YAML": read_yaml,
    "hash": sha256_of,
    "bytes": read_file,
    "folder": make_folder,
    "new folder": lambda path: new_folder(path).__enter__(),
    "tracking": lambda path: Trackers([], path, "run", {}, "id"),
}


@pytest.mark.parametrize("target", ["secret", "nowhere", "."])
@pytest.mark.parametrize("use", USES)
def test_a_link_is_refused_and_its_target_stays(use: str, target: str, outside: Path, tmp_path: Path) -> None:
    link = tmp_path / (".votes.jsonl.lock" if use == "lock of votes" else "link")
    link.symlink_to(outside / target)
    with pytest.raises(UserError, match="is a symbolic link"):
        USES[use](link)
    assert (outside / "secret").read_text() == SECRET
    assert [path.name for path in outside.iterdir()] == ["secret"]


def test_a_link_that_the_user_names_is_followed(outside: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(outside / "secret")
    assert read_file(tmp_path / "link", follow_links=True) == SECRET.encode()
    assert read_yaml(tmp_path / "link", follow_links=True) == json.loads(SECRET)


@pytest.mark.timeout(10)
def test_pipes_folders_and_large_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"12345")
    for name, mode in (("pipe", "rb"), ("pipe", "a+b"), (".", "rb")):
        with pytest.raises(UserError, match="not a file"):
            open_file(tmp_path / name, mode)
    with pytest.raises(UserError, match="5 bytes, more than the 4"):
        read_file(tmp_path / "large", 4)
    assert read_file(tmp_path / "large", 5) == b"12345"
    with pytest.raises(ValueError, match="mode 'wb'"):
        open_file(tmp_path / "large", "wb")


def test_no_file_is_emptied_before_its_lock_is_held(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    first.acquire()
    holder = (tmp_path / "lock").read_text()
    with pytest.raises(UserError, match=f"process {os.getpid()}"):
        second.acquire()
    assert (tmp_path / "lock").read_text() == holder


def test_a_file_replaces_a_link(outside: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(outside / "secret")
    write_text(tmp_path / "link", "mine")
    assert not (tmp_path / "link").is_symlink()
    (tmp_path / "folder").symlink_to(outside)
    remove_folder(tmp_path / "folder")
    assert (outside / "secret").read_text() == SECRET


@pytest.mark.parametrize("name", ["sft", "sft/adapter", "sft/adapter/adapter_config.json", "sft/manifest.json"])
def test_no_part_of_a_stage_may_be_a_link(name: str, run: Path, tmp_path: Path) -> None:
    (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a symbolic link"):
        find_stage(run / "sft", "sft")
    if name != "sft/manifest.json":
        with pytest.raises(UserError, match="is a symbolic link"):
            adapter_hash(run / "sft")
    assert main(["package", str(run), "--to", str(tmp_path / "package"), "--with_adapters"]) == 2


@pytest.mark.parametrize("name", [".sft.lock", ".ppo.lock"])
def test_a_stage_is_not_begun_through_a_linked_lock(name: str, outside: Path, run: Path) -> None:
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(outside / "secret")
    stage = name[1:4]
    config = SFTConfig(run=str(run), model="m", demonstrations="d", overwrite=True)
    with pytest.raises(UserError, match="is a symbolic link"), StageFolder.open(config, stage):
        pass
    assert (outside / "secret").read_text() == SECRET


@pytest.mark.parametrize("name", ["report.md", "sft/metrics.jsonl", "gate", "recipe.yaml", "sft/config.yaml"])
def test_a_package_holds_nothing_from_outside(
    name: str, outside: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "report.json").write_text("{}")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(outside if name == "gate" else outside / "secret")
    assert main(["package", str(run), "--to", str(tmp_path / "package")]) == 2
    assert "is a symbolic link" in capsys.readouterr().err
    assert not (tmp_path / "package").exists()


def test_promote_writes_through_no_link(outside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export = tmp_path / "export"
    export.mkdir()
    source = {"id": "i", "adapter_sha256": "a"}
    (export / "export.json").write_text(json.dumps({"format": 1, "source": source, "files": {}}))
    command = ["promote", str(export), "--to", str(tmp_path / "current"), "--without_gate", "trying"]
    for name in (".current.lock", "current.history.json"):
        (tmp_path / name).symlink_to(outside / "secret")
        assert main(command) == 2
        assert "is a symbolic link" in capsys.readouterr().err
        (tmp_path / name).unlink()
    assert (outside / "secret").read_text() == SECRET
    assert main(command) == 0


def test_the_app_shows_no_linked_file(outside: Path, run: Path) -> None:
    (run.parent / "copy").symlink_to(run)
    assert [state.name for state in list_runs(run.parent)] == ["run"]
    actions = LabelActions(DemoConfig(root=str(run.parent)))
    (run / "candidates.jsonl").symlink_to(outside / "secret")
    with pytest.raises(UserError, match="is a symbolic link"):
        actions.read_labelling("run")
    (run / "candidates.jsonl").unlink()
    (outside / "candidates.jsonl").write_text(SECRET)
    (run / "data").symlink_to(outside)
    with pytest.raises(UserError, match="is a symbolic link"):
        actions.read_labelling("run")
    (run / "sft" / "metrics.jsonl").symlink_to(outside / "secret")
    assert Tails().read_tail(run / "sft" / "metrics.jsonl").rows == []


def test_a_new_run_is_its_owners_alone(run: Path) -> None:
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
