"""Run folders: what a manifest records, files whole or not there, and only finished stages are parents."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from lora_rlhf.configs.stages import PPOConfig, SFTConfig
from lora_rlhf.configs.values import from_dict, read_yaml, to_yaml
from lora_rlhf.runs.folder import StageFolder, data_hash, data_record, find_data, find_stage, has_stage
from lora_rlhf.runs.resume import require_same_settings
from lora_rlhf.system import disk
from lora_rlhf.system.disk import write_json, write_text
from lora_rlhf.system.errors import UserError

BASE = {
    **{"name": "tiny", "quantization": "nf4", "compute_dtype": "auto", "trust_remote_code": False},
    **{"source_hash": "abc", "chat_template": None},
}


def config_in(folder: Path, overwrite: bool = False) -> PPOConfig:
    return PPOConfig(run=str(folder), prompts=str(folder / "prompts.jsonl"), seed=3, overwrite=overwrite)


def begun(folder: Path, stage: str = "ppo") -> StageFolder:
    config = config_in(folder)
    if not Path(config.prompts).exists():
        Path(config.prompts).write_text('{"prompt": "Hello"}\n')
    started = StageFolder(config, stage)
    started.begin(BASE, {}, {"prompts": config.prompts, "pretraining_text": None})
    return started


def test_manifest_records_what_the_stage_was_made_of(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hello"}\n')
    begun(tmp_path, "sft").finish({})
    parent = find_stage(tmp_path / "sft", "sft")
    folder = StageFolder(config_in(tmp_path), "ppo")
    folder.begin(BASE, {"sft": parent}, {"prompts": str(tmp_path / "prompts.jsonl")})
    folder.finish({"kl": 1.5})

    manifest = json.loads((tmp_path / "ppo" / "manifest.json").read_text())
    assert manifest["status"] == "finished" and manifest["stage"] == "ppo" and manifest["seed"] == 3
    assert manifest["base"] == BASE and manifest["format"] == 1
    assert manifest["parents"] == {"sft": {"folder": "sft", "stage": "sft", "id": parent.manifest["id"]}}
    assert manifest["data"]["prompts"]["sha256"] == hashlib.sha256(b'{"prompt": "Hello"}\n').hexdigest()
    assert manifest["results"] == {"kl": 1.5}
    assert manifest["versions"]["torch"] and manifest["seconds"] >= 0
    assert manifest["id"] != parent.manifest["id"]


def test_stage_folder_holds_the_configuration_that_reproduces_it(tmp_path: Path) -> None:
    begun(tmp_path)
    assert from_dict(PPOConfig, read_yaml(tmp_path / "ppo" / "config.yaml"), "x") == config_in(tmp_path)


def test_a_run_of_an_older_version_has_the_same_settings(tmp_path: Path) -> None:
    """With a setting under its former name, and without one that is younger than the run."""
    config = PPOConfig(run="r", prompts="p", engine="static", decode_weights="merged")
    path = tmp_path / "config.yaml"
    text = to_yaml(config).replace("engine: static", "rollout: plain").replace("sample_every: 10\n", "")
    assert "rollout: plain" in text and "sample_every" not in text
    path.write_text(text)
    assert require_same_settings(config, path, allow_changes=False) == {}
    younger = dataclasses.replace(config, sample_every=5)
    assert require_same_settings(younger, path, allow_changes=True) == {"sample_every": {"before": 10, "now": 5}}
    with pytest.raises(UserError, match="sample_every: 10 then, 5 now"):
        require_same_settings(younger, path, allow_changes=False)


def test_metrics_and_samples_are_rows(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    folder.log(1, {"ppo/kl": 0.5, "ppo/loss": float("nan")})
    folder.log(2, {"ppo/kl": 0.75})
    folder.sample(2, [{"prompt": "Où?", "response": "Là."}])
    rows = [json.loads(line) for line in (tmp_path / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "ppo/kl": 0.5, "ppo/loss": None}, {"step": 2, "ppo/kl": 0.75}]
    assert "Où?" in (tmp_path / "ppo" / "samples.jsonl").read_text()


def test_an_unfinished_stage_is_no_parent(tmp_path: Path) -> None:
    folder = begun(tmp_path, "sft")
    assert not has_stage(tmp_path, "sft")
    with pytest.raises(UserError, match="did not finish") as caught:
        find_stage(tmp_path / "sft", "sft")
    assert f"lora-rlhf sft --run {tmp_path}" in str(caught.value)
    folder.finish({})
    assert has_stage(tmp_path, "sft")


def test_a_missing_or_other_stage_is_no_parent(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no sft stage there, and no .*nowhere at all; run `lora-rlhf sft"):
        find_stage(tmp_path / "nowhere" / "sft", "sft")
    with pytest.raises(UserError, match=f"no sft stage there; run `lora-rlhf sft --run {tmp_path}` first"):
        find_stage(tmp_path / "sft", "sft")
    begun(tmp_path, "reward").finish({"offset": 0.0})
    with pytest.raises(UserError, match="holds a 'reward' stage, expected 'sft'"):
        find_stage(tmp_path / "reward", "sft")


def test_a_broken_manifest_is_named(tmp_path: Path) -> None:
    begun(tmp_path, "sft").finish({})
    (tmp_path / "sft" / "manifest.json").write_text('{"stage": ')
    with pytest.raises(UserError, match=r"manifest\.json cannot be used"):
        find_stage(tmp_path / "sft", "sft")


def opened(config: PPOConfig) -> None:
    with StageFolder.open(config, "ppo") as folder:
        assert not folder.resumes


def test_a_finished_stage_is_replaced_only_when_asked(tmp_path: Path) -> None:
    opened(config_in(tmp_path))
    begun(tmp_path)
    opened(config_in(tmp_path))  # unfinished, without a checkpoint: nothing is lost
    begun(tmp_path).finish({})
    with pytest.raises(UserError, match="--overwrite"):
        opened(config_in(tmp_path))
    (tmp_path / "ppo" / "old.txt").write_text("")
    with StageFolder.open(config_in(tmp_path, overwrite=True), "ppo") as folder:
        folder.begin(BASE, {}, {})
    assert not (tmp_path / "ppo" / "old.txt").exists()


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    write_text(path, "old")

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(disk.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new, and longer")
    assert path.read_text() == "old"
    assert [child.name for child in tmp_path.iterdir()] == ["report.json"], "no temporary file is left behind"


def test_a_file_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "report.json", []
    monkeypatch.setattr(disk.os, "fsync", lambda descriptor: seen.append(path.exists()))
    write_text(path, "text")
    assert seen == [False, True] and path.read_text() == "text"


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": float("nan"), "b": [float("inf"), 1.0]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [None, 1.0]}


def test_a_folder_with_other_files_is_never_cleared(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "notes.txt").write_text("mine")
    config = SFTConfig(run=str(tmp_path), model="m", demonstrations="d", overwrite=True)
    with pytest.raises(UserError, match="not a stage's"):
        StageFolder(config, "sft").begin(BASE, {}, {})
    assert (tmp_path / "sft" / "notes.txt").read_text() == "mine"


def test_a_file_is_never_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped just before the rename, the old file is whole: nothing was written under its own name."""
    path = tmp_path / "manifest.json"
    write_text(path, "old")

    def stopped(_source: object, _target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(disk.os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_of_data_is_identified_by_all_its_files(tmp_path: Path) -> None:
    for name, text in (("a.jsonl", "1"), ("b.jsonl", "2"), ("README.md", "x")):
        (tmp_path / name).write_text(text)
    one = data_hash(str(tmp_path))
    parts = "\n".join(hashlib.sha256(text).hexdigest() for text in (b"1", b"2"))
    assert one == data_hash(str(tmp_path / "*.jsonl")) == hashlib.sha256(parts.encode()).hexdigest()
    (tmp_path / "README.md").write_text("y")
    assert data_hash(str(tmp_path)) == one
    (tmp_path / "b.jsonl").write_text("3")
    assert data_hash(str(tmp_path)) != one
    assert data_hash("owner/name:train") is None


def test_data_are_found_from_another_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    record = data_record("data/rows.jsonl", "runs/mine")
    assert record["path"] == "data/rows.jsonl" and record["from_run"] == "../../data/rows.jsonl"
    assert find_data(record, Path("runs/mine")) == "data/rows.jsonl"
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Path(find_data(record, Path("../runs/mine"))).read_text() == "{}\n"
    # a run of 0.1.0 has no such record, and what is nowhere keeps its name for the message
    assert find_data({"path": "data/rows.jsonl"}, Path("../runs/mine")) == "data/rows.jsonl"
    (tmp_path / "data" / "rows.jsonl").unlink()
    assert find_data(record, Path("../runs/mine")) == "data/rows.jsonl"
