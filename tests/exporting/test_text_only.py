"""The text model of a base with towers, exported by itself: plain transformers loads it as a text model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.exporting.export import export
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError
from tests.zoo.walk import walk

IDS = torch.arange(5, 25)[None]
SFT_ONLY = ("plan", "forward", "greedy", "static", "mixture", "sample", "reward", "ppo", "export", "adapter")


def export_of(folder: Path, name: str, text_only: bool = False) -> Path:
    """The float32 export of the SFT model of a checkpoint of the zoo, which is trained first."""
    run, to = folder / "run", folder / f"export-{text_only}"
    if not run.exists():
        assert walk(name, folder, without=SFT_ONLY).steps == {"sft": "works"}
    config = ExportConfig(
        folder=str(run), role="sft", to=str(to), dtype="float32", parity_prompts=2, text_only=text_only
    )
    export(config)
    return to


@pytest.mark.parametrize(
    "name", ["gemma3", *(pytest.param(name, marks=pytest.mark.long) for name in ("mistral3", "qwen3_5_moe"))]
)
def test_the_text_model_alone_computes_what_was_trained(tmp_path: Path, name: str) -> None:
    folder = export_of(tmp_path, name, text_only=True)
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert "ConditionalGeneration" not in type(model).__name__
    trained = SharedModel(load_base(BaseSpec(str(tmp_path / "base")), "cpu"))
    trained.load_role("sft", tmp_path / "run" / "sft" / "adapter")
    with torch.no_grad(), trained.role("sft"):
        expected = trained.causal(input_ids=IDS, use_cache=False).logits
        assert torch.allclose(model.eval()(IDS, use_cache=False).logits, expected, rtol=0, atol=1e-4)


def test_the_whole_export_has_the_towers_of_the_base(tmp_path: Path) -> None:
    whole, base = (load_file(path / "model.safetensors") for path in (export_of(tmp_path, "gemma3"), tmp_path / "base"))
    assert whole.keys() == base.keys()
    changed = {name for name, tensor in base.items() if not torch.equal(tensor, whole[name])}
    assert changed and all("language_model" in name for name in changed)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("llama", "a 'llama' model is a text model as it is"), ("mistral4", "no text model of type 'mistral4'")],
)
def test_what_has_no_text_model_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        export_of(tmp_path, name, text_only=True)
