"""Makes finished runs on tiny models without training: what an export starts from."""

import json
from pathlib import Path

import torch

from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.open import describe_base
from lora_rlhf.model.shared import SharedModel

STAGES = {"sft": "sft", "policy": "ppo", "reward": "reward"}
SPREAD = 0.05


def spread(model: SharedModel, role: str, seed: int) -> None:
    """Gives an adapter a visible effect, as training would: B is zero after adding it."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters_of(role):
        if ".lora_B." in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * SPREAD)


def write_run(
    folder: Path, base: Path | str, quantization: str = "nf4", compute_dtype: str = "float32", rslora: bool = False
) -> Path:
    """A run with an SFT model, a policy and a reward model, each with an adapter of its own."""
    model = SharedModel(load_base(BaseSpec(str(base), quantization, compute_dtype), "cpu"))
    torch.manual_seed(0)
    for number, (role, stage) in enumerate(STAGES.items()):
        model.add_role(role, LoraSettings(rank=4, alpha=8, use_rslora=rslora), head=role == "reward")
        spread(model, role, number)
        (folder / stage).mkdir(parents=True)
        model.save_role(role, folder / stage / "adapter")
        manifest = {
            **{"format": 1, "stage": stage, "status": "finished", "id": f"{stage}0", "parents": {}, "data": {}},
            **{"seconds": 1.0, "results": {"offset": 0.0}, "base": describe_base(model)},
        }
        (folder / stage / "manifest.json").write_text(json.dumps(manifest))
    return folder
