"""Weights merged from files are those of the live model: bit for bit where rounded, exact sums where adapted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant, quantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from lora_rlhf.model import merging
from lora_rlhf.model.adapters import LoraSettings, read_adapter
from lora_rlhf.model.base import BaseSpec, load_base, load_config
from lora_rlhf.model.files import find_files, find_weight_files
from lora_rlhf.model.merging import Part, plan_merge
from lora_rlhf.model.rounding import round_pieces, rows_per_piece
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.model.targets import Targets
from lora_rlhf.system.errors import UserError
from tests.zoo.checkpoints import save_checkpoint

CPU = torch.device("cpu")
Tiny = Callable[[str], Path]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny tensors come in several pieces, as large ones do."""
    monkeypatch.setattr(merging, "PIECE_NUMBERS", 1024)


def planned(base: Path, adapter: Path, quantization: str = "nf4", dtype: torch.dtype = torch.float32) -> list[Part]:
    files = find_weight_files(find_files(str(base)), "it")
    return plan_merge(load_config(str(base)), files, quantization, dtype, read_adapter(adapter))


def merged(part: Part, mode: merging.Mode = "rounded", dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.cat(list(part.pieces(mode, dtype, CPU)))


def with_adapter(base: Path, folder: Path, quantization: str, dtype: str, **settings: Any) -> SharedModel:
    model = SharedModel(load_base(BaseSpec(str(base), quantization, dtype), "cpu"))
    model.add_role("sft", LoraSettings(rank=4, alpha=8, **settings))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters_of("sft"):
        if ".lora_B." in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_role("sft", folder)
    return model


def live_weight(layer: Any, dtype: torch.dtype) -> Tensor:
    """What a layer computes with, (out, in), by bitsandbytes' own functions."""
    if isinstance(layer, Linear4bit):
        return dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(dtype)
    if isinstance(layer, Linear8bitLt):
        scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
        return int8_vectorwise_dequant(layer.weight.data, scales).to(dtype)
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


@pytest.mark.parametrize(("quantization", "dtype"), [("nf4", "float32"), ("nf4", "bfloat16"), ("int8", "float32")])
def test_rounded_weights_are_the_live_ones_bit_for_bit(
    tiny_model: Tiny, tmp_path: Path, architecture: str, quantization: str, dtype: str
) -> None:
    base, computed = tiny_model(architecture), getattr(torch, dtype)
    model = with_adapter(base, tmp_path / "adapter", quantization, dtype)
    modules = dict(model.causal.named_modules())
    quantized = 0
    for part in planned(base, tmp_path / "adapter", quantization, computed):
        path, _, last = part.name.rpartition(".")
        layer = getattr(modules[path], "base_layer", modules[path])
        live = live_weight(layer, computed) if last == "weight" else getattr(layer, last)
        values = merged(replace(part, update=None))
        quantized += part.quantization == quantization
        assert torch.equal(values.T if part.transposed else values, live.float()), part.name
    assert quantized == sum(isinstance(layer, Linear4bit | Linear8bitLt) for layer in modules.values()) > 0


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("mode", ["rounded", "original"])
def test_the_adapter_is_added_once_in_float32(
    tiny_model: Tiny, tmp_path: Path, architecture: str, mode: merging.Mode, rslora: bool
) -> None:
    base = tiny_model(architecture)
    with_adapter(base, tmp_path / "adapter", "nf4", "float32", use_rslora=rslora)
    stored = load_file(base / "model.safetensors")
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    scale = 8 / 2 if rslora else 8 / 4  # alpha 8 over sqrt(rank), or over rank 4
    adapted = 0
    for part in planned(base, tmp_path / "adapter"):
        down = state.get(f"base_model.model.{part.name.removesuffix('.weight')}.lora_A.weight")
        before = merged(replace(part, update=None)) if mode == "rounded" else stored[part.stored.name]
        expected = before.double()
        if down is not None:
            up = state[f"base_model.model.{part.name.removesuffix('.weight')}.lora_B.weight"]
            added = scale * (up.double() @ down.double())
            expected = expected + (added.T if part.transposed else added)
            adapted += 1
        assert torch.allclose(merged(part, mode).double(), expected, rtol=0, atol=1e-6), part.name
        half = merged(part, mode, torch.bfloat16)
        assert torch.equal(half, merged(part, mode).to(torch.bfloat16))
    assert adapted == len(state) / 2 > 0


def test_a_weight_rounds_the_same_in_any_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where rows hold no whole blocks, and for bitsandbytes' own function on the whole."""
    torch.manual_seed(0)
    for shape in ((96, 40), (130, 64), (7, 72), (64, 30)):
        weight = torch.randn(shape) * torch.rand(shape[0], 1)
        weight[0] = 0
        whole = dequantize_4bit(*quantize_4bit(weight, quant_type="nf4", compress_statistics=True))
        for most in (1, 500, 10**6):
            rows = rows_per_piece(shape[1], most)
            assert rows * shape[1] % 64 == 0
            assert torch.equal(torch.cat(list(round_pieces(weight.split(rows), "nf4"))), whole), (shape, most)


def test_tied_and_untied_heads_and_shards_are_alike(tiny_model: Tiny, tmp_path: Path) -> None:
    """llama's head is tied and not in its file, qwen2's is a tensor of its own; neither is rounded."""
    for name, has_head in (("llama", False), ("qwen2", True)):
        with_adapter(tiny_model(name), tmp_path / name, "nf4", "float32")
        parts = {part.name: part for part in planned(tiny_model(name), tmp_path / name)}
        assert ("lm_head.weight" in parts) == has_head
        kept = [parts["model.embed_tokens.weight"], *([parts["lm_head.weight"]] if has_head else [])]
        assert all(part.quantization == "none" and part.update is None for part in kept)
        sharded = tmp_path / f"{name}-sharded"
        AutoModelForCausalLM.from_pretrained(tiny_model(name)).save_pretrained(sharded, max_shard_size="100KB")
        again = {part.name: part for part in planned(sharded, tmp_path / name)}
        assert again.keys() == parts.keys() and len({part.stored.path for part in again.values()}) > 1
        assert all(torch.equal(merged(part), merged(parts[key])) for key, part in again.items())


def test_names_without_the_backbone_prefix_are_understood(tiny_model: Tiny, tmp_path: Path) -> None:
    """Old checkpoints of a backbone alone have no "model." before their names; unknown tensors are left out."""
    with_adapter(tiny_model("llama"), tmp_path / "adapter", "nf4", "float32")
    expected = {part.name: merged(part) for part in planned(tiny_model("llama"), tmp_path / "adapter")}
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text((tiny_model("llama") / "config.json").read_text())
    tensors = load_file(tiny_model("llama") / "model.safetensors")
    renamed = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(renamed | {"rotary_emb.inv_freq": torch.ones(8)}, folder / "model.safetensors")
    parts = planned(folder, tmp_path / "adapter")
    assert {part.name: part.stored.name for part in parts} == {f"model.{name}": name for name in renamed}
    assert all(torch.equal(merged(part), expected[part.name]) for part in parts)


def test_what_does_not_fit_is_refused(tiny_model: Tiny, tmp_path: Path) -> None:
    base, adapter = tiny_model("llama"), tmp_path / "adapter"
    with_adapter(base, adapter, "nf4", "float32")
    with pytest.raises(UserError, match="adapter does not fit this base"):
        planned(tiny_model("gpt2"), adapter)
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text((base / "config.json").read_text())
    tensors = load_file(base / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if "down_proj" not in name}, folder / "model.safetensors"
    )
    with pytest.raises(UserError, match=r"lack 2 tensors .* model\.layers\.0\.mlp\.down_proj\.weight"):
        planned(folder, adapter)
    wrong = {name: tensor[:-1].clone() if name == "model.norm.weight" else tensor for name, tensor in tensors.items()}
    save_file(wrong, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.norm\.weight is \(63,\), but the model has \(64,\)"):
        planned(folder, adapter)


def test_an_adapter_on_a_tied_head_is_refused(tiny_model: Tiny, tmp_path: Path) -> None:
    model = SharedModel(load_base(BaseSpec(str(tiny_model("llama"))), "cpu"))
    model._targets = Targets(("lm_head",), ("lm_head",), {})
    model.add_role("sft", LoraSettings(rank=4, alpha=8))
    model.save_role("sft", tmp_path / "adapter")
    with pytest.raises(UserError, match="lm_head, whose weight is tied"):
        planned(tiny_model("llama"), tmp_path / "adapter")


def test_tensors_that_a_mixture_joins_are_copied_as_they_are(tmp_path: Path) -> None:
    """Each expert is a tensor in the file, all are one parameter in memory, and no adapter changes it."""
    save_checkpoint("qwen3_moe", tmp_path / "base")
    with_adapter(tmp_path / "base", tmp_path / "adapter", "nf4", "float32")
    parts = planned(tmp_path / "base", tmp_path / "adapter")
    stored = load_file(tmp_path / "base" / "model.safetensors")
    experts = [part for part in parts if part.joined]
    assert len(experts) == sum(".experts." in name for name in stored) > 8
    assert {part.stored.name for part in parts} == stored.keys()
    assert all(torch.equal(merged(part), stored[part.stored.name]) for part in experts)
    assert sum(part.update is not None for part in parts) == 8


def test_towers_of_a_wrapper_are_copied_bit_for_bit(tmp_path: Path) -> None:
    save_checkpoint("gemma3", tmp_path / "base")
    with_adapter(tmp_path / "base", tmp_path / "adapter", "nf4", "float32")
    parts = planned(tmp_path / "base", tmp_path / "adapter")
    stored = load_file(tmp_path / "base" / "model.safetensors")
    towers = [part for part in parts if "language_model" not in part.stored.name and "lm_head" not in part.stored.name]
    assert len(towers) > 8
    for part in towers:
        assert part.plan_tensor("rounded", torch.bfloat16, CPU).entry.dtype == torch.float32
        assert torch.equal(merged(part, "rounded", torch.bfloat16), stored[part.stored.name])
    assert sum(part.update is not None for part in parts) == 14


@pytest.mark.parametrize("name", ["gemma3n_text", "falcon_h1", "gemma4", "opt_proj"])
def test_what_is_quantized_is_what_transformers_quantizes(tmp_path: Path, name: str) -> None:
    """Gemma 3n ties its LM head, and its last parameter is that of a linear layer."""
    save_checkpoint(name, tmp_path / "base")
    model = with_adapter(tmp_path / "base", tmp_path / "adapter", "nf4", "float32").causal
    for part in planned(tmp_path / "base", tmp_path / "adapter"):
        module = model.get_submodule(part.name.rpartition(".")[0])
        if part.quantization == "nf4":
            assert isinstance(getattr(module, "base_layer", module), Linear4bit), part.name
        elif part.model_dtype is not None:
            assert not isinstance(getattr(module, "base_layer", module), Linear4bit) or "bias" in part.name, part.name
