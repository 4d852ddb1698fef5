"""What people have on disk: each kind of folder loads, or is refused in one line that says what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from lora_rlhf.configs.stages import SFTConfig
from lora_rlhf.data.template import encode_text
from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.exporting.export import export
from lora_rlhf.model import files
from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.base import BaseSpec, hash_live_tensors, hash_source, load_base
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.plan.config import PlanConfig
from lora_rlhf.plan.subject import measure_model
from lora_rlhf.stages import sft
from lora_rlhf.system.errors import UserError
from tests.support.stages import DEMONSTRATIONS, write_rows

Tiny = Callable[[str], Path]


@pytest.fixture
def folder(tiny_model: Tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))


def refusal(folder: Path, quantization: str = "nf4") -> str:
    """What `load_base` says; `plan` says the same."""
    with pytest.raises(UserError) as refused:
        load_base(BaseSpec(str(folder), quantization), "cpu")
    with pytest.raises(UserError) as of_plan:
        measure_model(
            PlanConfig(model=str(folder), device="cpu", quantization="none" if quantization == "none" else "nf4")
        )
    assert str(of_plan.value) == str(refused.value)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def quantized(folder: Path, **settings: Any) -> Path:
    """The same model as bitsandbytes stores it."""
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    config = BitsAndBytesConfig(**nf4 | settings, bnb_4bit_compute_dtype=torch.bfloat16)
    to = folder.with_name("model-bnb-4bit")
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32).save_pretrained(to)
    AutoTokenizer.from_pretrained(folder).save_pretrained(to)
    return to


def test_a_folder_in_nf4_loads_as_it_is(folder: Path) -> None:
    stored = quantized(folder)
    assert load_file(stored / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].dtype == torch.uint8
    base, original = load_base(BaseSpec(str(stored)), "cpu"), load_base(BaseSpec(str(folder)), "cpu")
    ids = torch.arange(4, 40)[None]
    with torch.no_grad():
        assert torch.equal(base.model(ids).logits, original.model(ids).logits)
    assert hash_live_tensors(base.model) == hash_live_tensors(original.model)
    assert "bnb" in refusal(stored, "none")


def test_a_folder_in_nf4_is_exported_as_what_was_trained(folder: Path, tmp_path: Path) -> None:
    stored, run = quantized(folder), tmp_path / "run"
    rows = write_rows(tmp_path / "demonstrations.jsonl", DEMONSTRATIONS[:12])
    common: dict[str, Any] = {"max_prompt_tokens": 32, "max_response_tokens": 16, "learning_rate": 5e-3, "epochs": 1}
    sft.train(SFTConfig(run=str(run), model=str(stored), demonstrations=rows, validation_fraction=0.25, **common))
    asked: dict[str, Any] = {"folder": str(run), "role": "sft", "dtype": "float32", "parity_prompts": 2}
    facts = export(ExportConfig(to=str(tmp_path / "merged"), **asked))
    assert facts["parity"]["export"]["kl_per_token"] < 1e-9
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    with pytest.raises(UserError, match="its original weights are not there"):
        export(ExportConfig(to=str(tmp_path / "original"), base="original", **asked))


def test_other_settings_of_bitsandbytes_are_refused(folder: Path) -> None:
    stored = quantized(folder, bnb_4bit_quant_type="fp4")
    message = refusal(stored)
    assert "4 bits (fp4)" in message
    assert f"probably {folder}," in message


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"quant_method": "mxfp4"}, ("stored in mxfp4", "Mxfp4Config(dequantize=True)")),
        ({"quant_method": "fp8"}, ("stored in fp8", "FineGrainedFP8Config(dequantize=True)")),
        ({"quant_method": "gptq", "bits": 4}, ("(gptq)", "Give the original 16-bit model")),
        ({"quant_method": "awq", "bits": 4}, ("(awq)", "Give the original 16-bit model")),
        ({"quant_method": "compressed-tensors"}, ("(compressed-tensors)", "original")),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, ("in 8 bits", "original")),
    ],
)
def test_other_quantizations_are_named(folder: Path, settings: dict[str, Any], parts: tuple[str, ...]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    message = refusal(folder)
    assert all(part in message for part in parts)


def test_an_adapter_names_its_base(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    assert refusal(folder).endswith(
        "an adapter, which is no model by itself; it was trained on 'owner/base': give that model"
    )
    (folder / "adapter_config.json").write_text("[]")
    assert refusal(folder).endswith("an adapter, which is no model by itself")


def test_a_left_over_adapter_is_never_added_in_silence(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    assert "Remove adapter_config.json, or merge the adapter first" in refusal(folder)


def test_an_adapter_that_transformers_added_is_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub repository is not looked into before it is loaded."""
    model = SharedModel(load_base(BaseSpec(str(folder), "none"), "cpu"))
    model.add_role("sft", LoraSettings(rank=2))
    model.save_role("sft", folder / "adapter")
    for path in (folder / "adapter").iterdir():
        path.rename(folder / path.name)
    monkeypatch.setattr(files, "_find_folder_fault", lambda _folder: None)
    with pytest.raises(UserError, match="an adapter lies beside it"):
        load_base(BaseSpec(str(folder), "none"), "cpu")


def test_pointers_of_git_lfs_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "model.safetensors is a pointer of Git LFS" in refusal(folder)
    assert "git lfs pull" in refusal(folder)


def test_gguf_alone_is_named(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "model.gguf").write_bytes(b"GGUF")
    assert "only GGUF files are there" in refusal(folder)


def test_a_base_is_known_by_its_hash(folder: Path) -> None:
    before = hash_source(str(folder))
    link = folder.with_name("link")
    link.symlink_to(folder)
    assert hash_source(f"{folder}/") == hash_source(str(link)) == before
    moved = folder.rename(folder.with_name("moved"))
    assert hash_source(str(moved)) == before
    (moved / "config.json").write_text((moved / "config.json").read_text() + " ")
    assert hash_source(str(moved)) != before


def test_a_control_token_that_no_text_holds_needs_no_row(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = load_base(BaseSpec(str(folder)), "cpu").model.get_input_embeddings().num_embeddings
    tokenizer.add_tokens([f"<unused{index}>" for index in range(rows - len(tokenizer))])
    tokenizer.add_tokens(["<image_soft_token>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    loaded = load_base(BaseSpec(str(folder)), "cpu").tokenizer
    assert len(loaded) == rows + 1
    assert max(encode_text(loaded, "an <image_soft_token> that a user typed")) < rows
    tokenizer.add_tokens(["plain"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=f"{rows + 2} tokens in the tokenizer, {rows} in the model"):
        load_base(BaseSpec(str(folder)), "cpu")
