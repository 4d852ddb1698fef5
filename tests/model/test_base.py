"""Loading the base: quantizations, identity, silence, and every way in which a name can be wrong."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from lora_rlhf.model import devices
from lora_rlhf.model.base import Base, BaseSpec, hash_live_tensors, load_base
from lora_rlhf.system.errors import UserError
from tests.zoo.checkpoints import save_checkpoint

Tiny = Callable[[str], Path]


@pytest.fixture
def folder(tiny_model: Tiny, tmp_path: Path) -> Path:
    """A copy of a tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_model("mistral"), tmp_path / "model"))


def load(name: str | Path, **spec: Any) -> Base:
    return load_base(BaseSpec(str(name), **spec), "cpu")


@pytest.mark.parametrize(
    ("quantization", "kind"), [("nf4", Linear4bit), ("int8", Linear8bitLt), ("none", torch.nn.Linear)]
)
def test_quantizations(tiny_model: Tiny, architecture: str, quantization: str, kind: type) -> None:
    base = load(tiny_model(architecture), quantization=quantization)
    lm_head = base.model.get_output_embeddings()
    linears = [m for m in base.model.modules() if isinstance(m, torch.nn.Linear | Conv1D) and m is not lm_head]
    assert {type(m) for m in linears} == {Conv1D if (architecture, quantization) == ("gpt2", "none") else kind}
    assert type(lm_head) is torch.nn.Linear
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert base.model.get_input_embeddings().weight.dtype == torch.float32
    if quantization == "nf4":
        state = linears[0].weight.quant_state
        assert (state.quant_type, state.nested) == ("nf4", True)
        assert {module.compute_dtype for module in linears} == {torch.float32}


def test_int8_computes_the_same_in_train_and_eval_mode(tiny_model: Tiny) -> None:
    """With the weight that 8 bits hold, and inputs as they are."""
    layer = load(tiny_model("llama"), quantization="int8").model.model.layers[0].mlp.up_proj
    inputs = torch.randn((3, 64), generator=torch.Generator().manual_seed(0))
    outputs = [layer.train(training)(inputs) for training in (True, False)]
    weight = layer.state.CB.double() * layer.state.SCB.double()[:, None] / 127
    for output in outputs:
        torch.testing.assert_close(output.double(), inputs.double() @ weight.T, rtol=1e-5, atol=1e-5)
    assert layer.training is False


def test_nf4_weights_are_near_the_originals(tiny_model: Tiny) -> None:
    """Half-width of the widest nf4 step is 0.15 of a block's largest weight (QLoRA, appendix E)."""
    quantized, exact = load(tiny_model("llama")), load(tiny_model("llama"), quantization="none")
    weight = quantized.model.model.layers[0].self_attn.q_proj.weight
    blocks = exact.model.model.layers[0].self_attn.q_proj.weight.reshape(-1, 64)
    error = (dequantize_4bit(weight.data, weight.quant_state).reshape(-1, 64) - blocks).abs()
    assert (error <= 0.17 * blocks.abs().max(dim=1, keepdim=True).values).all()
    assert error.max() > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_compute_dtype(tiny_model: Tiny, dtype: str) -> None:
    base = load(tiny_model("llama"), compute_dtype=dtype)
    assert base.model.get_input_embeddings().weight.dtype == getattr(torch, dtype)


def test_forwards_do_not_repack_the_base(tiny_model: Tiny) -> None:
    base = load(tiny_model("llama"))
    before = hash_live_tensors(base.model)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        first = base.model(ids).logits
    assert hash_live_tensors(base.model) == before
    assert torch.equal(base.model.train()(ids).logits, first)


@pytest.mark.parametrize("name", ["phi", "gpt_neox"])
def test_dropout_inside_the_base_is_off(tiny_model: Tiny, name: str) -> None:
    base = load(tiny_model(name), quantization="none")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(base.model.train()(ids).logits, base.model(ids).logits)


def test_source_hash_is_of_config_and_weights_before_quantization(folder: Path) -> None:
    first = load(folder)
    assert first.source_hash == load(folder, quantization="none").source_hash
    (folder / "notes.txt").write_text("not part of the model")
    assert first.source_hash == load(folder).source_hash
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"][0] += 1e-3
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    second = load(folder)
    assert second.source_hash != first.source_hash
    assert hash_live_tensors(second.model) != hash_live_tensors(first.model)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 2e-06'))
    assert load(folder).source_hash != second.source_hash


def shard(folder: Path) -> list[str]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    return sorted(path.name for path in folder.glob("model-*.safetensors"))


def test_shards_load_and_a_missing_one_is_named(folder: Path) -> None:
    whole = hash_live_tensors(load(folder).model)
    shards = shard(folder)
    assert len(shards) > 1
    sharded = load(folder)
    assert hash_live_tensors(sharded.model) == whole
    with (folder / shards[1]).open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    assert load(folder).source_hash != sharded.source_hash
    (folder / shards[1]).unlink()
    with pytest.raises(UserError, match=shards[1]):
        load(folder)


def test_a_name_that_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"'no-such-org/no-such-model'.*neither an existing folder.*spelling"):
        load("no-such-org/no-such-model")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load(tmp_path)


def test_missing_weights_are_named(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors .* model\.layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="safetensors"):
        load(folder)


def test_broken_weights_are_a_user_error(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load(folder)


def edit(path: Path, **changes: object) -> None:
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


def test_a_tokenizer_without_eos_is_refused(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(UserError, match="end-of-sequence"):
        load(folder)


def test_a_missing_tokenizer_is_refused(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="tokenizer"):
        load(folder)


def test_a_tokenizer_larger_than_the_model_is_refused(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"extra{i}" for i in range(100)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="400 tokens in the tokenizer, 320 in the model"):
        load(folder)


@pytest.mark.parametrize("wrong", [{"quantization": "fp4"}, {"compute_dtype": "int8"}])
def test_unknown_choices_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="choose one of"):
        BaseSpec("tinyworld", **wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="only without a GPU")
def test_cuda_without_a_gpu(tiny_model: Tiny) -> None:
    with pytest.raises(UserError, match="no CUDA GPU"):
        load_base(BaseSpec(str(tiny_model("llama"))), "cuda")


@pytest.mark.slow
def test_loading_is_silent(tiny_model: Tiny) -> None:
    """In a process of its own, in which bitsandbytes has not been imported yet."""
    code = (
        "import sys; from lora_rlhf.model.base import BaseSpec, load_base\n"
        "from lora_rlhf.model.shared import LoraSettings, SharedModel\n"
        "model = SharedModel(load_base(BaseSpec(sys.argv[1]), 'cpu'))\n"
        "model.add_role('reward', LoraSettings(rank=2), head=True)\n"
        "model.enable_gradient_checkpointing()\n"
    )
    command = [sys.executable, "-c", code, str(tiny_model("llama"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert (done.stdout, done.stderr) == ("", "")


def test_noise_and_clamps_of_training_are_turned_off(tmp_path: Path) -> None:
    for name in ("mixtral", "gemma3n_text"):
        save_checkpoint(name, tmp_path / name)
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"router_jitter_noise": 0.3, "altup_coef_clip": 0.1}))
        model = load_base(BaseSpec(str(tmp_path / name)), "cpu").model
        before, ids = hash_live_tensors(model), torch.arange(2, 40)[None]
        with torch.no_grad():
            expected = model.eval()(input_ids=ids, use_cache=False).logits
            trained = model.train()(input_ids=ids, use_cache=False).logits
        assert torch.equal(trained, expected)
        assert hash_live_tensors(model) == before


def test_a_gpu_that_pytorch_does_not_see_is_named(
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "GPU_DEVICE_FILES", (str(tmp_path / "nvidia0"),))
    spec = BaseSpec(str(tiny_model("llama")), "none")
    assert devices.unused_gpu() == ""
    (tmp_path / "nvidia0").touch()
    load_base(spec, "auto")
    assert "that PyTorch does not see; `lora-rlhf doctor` says why" in caplog.text
    caplog.clear()
    load_base(spec, "cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    load_base(spec, "auto")
    assert "GPU" not in caplog.text
