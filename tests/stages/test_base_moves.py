"""A run finds its base by the base's files, however its folder is spelled and wherever it went."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.configs.stages import RewardConfig, SFTConfig
from lora_rlhf.runs.folder import find_stage
from lora_rlhf.stages import reward, sft
from lora_rlhf.stages.sample import sample
from lora_rlhf.system.errors import UserError
from tests.support.stages import LIMITS, Models, manifest

SMALL: dict[str, Any] = {"epochs": 1, "batch_size": 32, "device": "cpu", **LIMITS}


@pytest.fixture
def project(tiny_model: Models, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with models/base and a run that was trained on `models/base/` from inside that folder."""
    folder = tmp_path / "project"
    shutil.copytree(tiny_model("llama"), folder / "models" / "base")
    shutil.copytree(data, folder / "data")
    monkeypatch.chdir(folder)
    sft.train(SFTConfig(run="run", model="models/base/", demonstrations="data/demonstrations.jsonl", **SMALL))
    return folder


def sample_a_few(project: Path) -> None:
    prompts, to = str(project / "data" / "prompts.jsonl"), str(project / "samples.jsonl")
    limits = LIMITS | {"max_response_tokens": 4}
    sample(SampleConfig(run=str(project / "run"), prompts=prompts, to=to, min_responses=2, max_responses=2, **limits))


def test_from_another_folder_and_moved_together(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert manifest(Path("run"), "sft")["base"]["from_run"] == "../models/base"
    monkeypatch.chdir("/")
    moved = project.rename(project.with_name("moved"))
    assert find_stage(moved / "run" / "sft", "sft").manifest["base"]["name"] == str(moved / "models" / "base")
    sample_a_few(moved)


def test_the_spelling_does_not_matter_and_the_files_do(project: Path) -> None:
    common = {"run": "run", "rankings": "data/rankings.jsonl", **SMALL}
    (project / "link").symlink_to(project / "models" / "base")
    reward.train(RewardConfig(model="link", **common))
    assert manifest(project / "run", "reward")["base"]["name"] == "link"
    with pytest.raises(UserError, match=r"tinyworld.*whose files are others"):
        reward.train(RewardConfig(model="tinyworld", overwrite=True, **common))


def test_a_base_that_is_gone_is_asked_for(project: Path) -> None:
    (project / "models" / "base").rename(project / "elsewhere")
    with pytest.raises(UserError, match=r"'models/base/': .* no longer there; .* ln -s WHERE_IT_IS_NOW models/base/"):
        sample_a_few(project)
    (project / "models" / "base").symlink_to(project / "elsewhere")
    sample_a_few(project)
