"""A small finished run to talk to and to score with."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.open import describe_base
from lora_rlhf.model.shared import SharedModel

OFFSET = 0.5  # of the reward stage


@pytest.fixture
def run(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    """A run with an SFT model, a reward model and a policy; the two that write answer differently."""
    model = SharedModel(load_base(BaseSpec(str(tiny_model("llama"))), "cpu"))
    for number, (role, stage) in enumerate((("sft", "sft"), ("policy", "ppo"), ("reward", "reward"))):
        model.add_role(role, LoraSettings(rank=4), head=role == "reward")
        for name, parameter in model.named_parameters_of(role):
            if ".lora_B." in name:
                parameter.data.fill_(0.02 * (1 + number))
        folder = tmp_path / "run" / stage
        folder.mkdir(parents=True)
        model.save_role(role, folder / "adapter")
        manifest = {
            **{"format": 1, "stage": stage, "status": "finished", "id": stage, "parents": {}, "data": {}},
            **{"seconds": 1.0, "results": {"offset": OFFSET}, "base": describe_base(model)},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path / "run"
