"""An exported folder: the model that was trained, complete, measured, refused where it is not, whole or absent."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lora_rlhf.cli import main as cli
from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.exporting.export import export
from lora_rlhf.exporting.source import open_source
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import Stopped, UserError
from tests.support.exports import write_run

pytestmark = pytest.mark.slow

Run = Callable[..., Path]
PROMPTS = ["The boat is small.", "Say thank you, baker!", "Who counts the ships?"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))


def exported(run: Path, **settings: Any) -> tuple[Path, dict]:
    to = Path("out")
    facts = export(ExportConfig(folder=str(run), to=str(to), device="cpu", prompts="prompts.jsonl", **settings))
    return to, facts


def trained(run: Path, role: str = "policy") -> SharedModel:
    """The live model: the base in 4 bits with one adapter."""
    stage = {"policy": "ppo", "sft": "sft"}[role]
    record = json.loads((run / stage / "manifest.json").read_text())["base"]
    spec = BaseSpec(record["name"], record["quantization"], record["compute_dtype"])
    model = SharedModel(load_base(spec, "cpu"))
    model.load_role(role, run / stage / "adapter")
    return model


@torch.no_grad()
def test_float32_export_is_the_trained_model(tiny_run: Run, architecture: str) -> None:
    """Its logits to 1e-5, and 128 greedy tokens that plain transformers writes just as the trained model did."""
    run = tiny_run(architecture)
    to, facts = exported(run, dtype="float32", parity_prompts=2)
    live, plain = trained(run), AutoModelForCausalLM.from_pretrained(to, dtype=torch.float32).eval()
    row = json.loads((to / "parity.json").read_text())["prompts"][0]
    prompt = torch.tensor([row["prompt_ids"]])
    ids = torch.cat([prompt, torch.tensor([row["greedy_ids"]])], dim=1)
    with live.role("policy"):
        before = live.causal(input_ids=ids, use_cache=False).logits
    with live.role("base"):
        effect = (before - live.causal(input_ids=ids, use_cache=False).logits).abs().max().item()
    after = plain(input_ids=ids, use_cache=False).logits
    assert (before - after).abs().max().item() <= 1e-5 * max(1.0, before.abs().max().item())
    assert effect > 0.1
    written = plain.generate(input_ids=prompt, max_new_tokens=128, min_new_tokens=128, do_sample=False)
    assert torch.equal(written, ids)
    parity = facts["parity"]
    assert parity["export"]["greedy_identical"] == parity["export"]["top1_agreement"] == 1
    assert parity["export"]["kl_per_token"] < 1e-9
    assert parity["alternative"]["kl_per_token"] > 0.1 * parity["adapter_effect"]["kl_per_token"]


def test_bfloat16_export_is_close(tiny_run: Run) -> None:
    _, facts = exported(tiny_run(), role="sft", parity_tokens=32, min_agreement=0.9)
    parity = facts["parity"]
    assert parity["passed"] and parity["export"]["kl_per_token"] < 0.05 * parity["adapter_effect"]["kl_per_token"]
    assert 0 < parity["export"]["rms_logit_error"] < 0.1 * parity["alternative"]["rms_logit_error"]


@torch.no_grad()
def test_an_int8_base_exports_what_was_trained(tiny_run: Run) -> None:
    """On a CPU the trained model computes with the weights read out of 8 bits and rounds no activation."""
    run = tiny_run(quantization="int8")
    to, facts = exported(run, dtype="float32", parity_tokens=32)
    assert facts["parity"]["export"]["kl_per_token"] < 1e-6 < facts["parity"]["adapter_effect"]["kl_per_token"]
    assert facts["parity"]["export"]["kl_per_token"] < facts["parity"]["alternative"]["kl_per_token"]
    live, plain = trained(run), AutoModelForCausalLM.from_pretrained(to, dtype=torch.float32).eval()
    ids = torch.tensor([[5, 9, 41, 300, 7, 7, 12]])
    expected = plain(input_ids=ids).logits
    with live.role("policy"):
        assert (live.causal(input_ids=ids).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
def test_figures_are_those_of_the_two_models(tiny_run: Run) -> None:
    """KL, top-1 and logit error again, from the models themselves, in float64."""
    run = tiny_run()
    to, facts = exported(run, force=True, base="original", parity_tokens=12)
    live, plain = trained(run), AutoModelForCausalLM.from_pretrained(to, dtype=torch.float32).eval()
    recorded = json.loads((to / "parity.json").read_text())["prompts"]
    kl, same, errors = [], [], []
    for row in recorded:
        ids = torch.tensor([row["prompt_ids"] + row["greedy_ids"][: row["counted"]]])
        with live.role("policy"):
            one = live.causal(input_ids=ids).logits[0, len(row["prompt_ids"]) - 1 : -1].double()
        other = plain(input_ids=ids).logits[0, len(row["prompt_ids"]) - 1 : -1].double()
        p, q = one.softmax(-1), other.softmax(-1)
        kl += (p * (p / q).log()).sum(-1).tolist()
        same += (one.argmax(-1) == other.argmax(-1)).tolist()
        errors += (one - other).flatten().tolist()
    found = facts["parity"]["export"]
    assert found["kl_per_token"] == pytest.approx(sum(kl) / len(kl), rel=1e-3)
    assert found["top1_agreement"] == sum(same) / len(same)
    assert found["max_logit_error"] == pytest.approx(max(map(abs, errors)), rel=1e-3)
    assert found["rms_logit_error"] == pytest.approx((sum(e * e for e in errors) / len(errors)) ** 0.5, rel=1e-3)
    assert facts["parity"]["positions"] == len(kl)


def test_the_folder_is_complete(tiny_run: Run, tiny_model: Callable[[str], Path]) -> None:
    run = tiny_run("qwen2")
    to, facts = exported(run, max_shard_size="200KB", parity_tokens=4, force=True)
    config = json.loads((to / "config.json").read_text())
    assert "quantization_config" not in config and config["torch_dtype"] == "bfloat16"
    index = json.loads((to / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 1 and all((to / shard).stat().st_size < 250_000 for shard in shards)
    for shard in shards:
        with safe_open(to / shard, "pt") as file:
            assert {index["weight_map"][name] for name in file.keys()} == {shard}  # noqa: SIM118
    tokenizer = AutoTokenizer.from_pretrained(to)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_model("qwen2")).chat_template
    settings = GenerationConfig.from_pretrained(to)
    assert settings.eos_token_id == tokenizer.eos_token_id and settings.pad_token_id == tokenizer.pad_token_id
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in to.iterdir()}
    files.pop("export.json")
    assert files == facts["files"] == json.loads((to / "export.json").read_text())["files"]
    assert {"README.md", "parity.json", "chat_template.jinja"} <= files.keys()
    assert facts["source"]["id"] == "ppo0" and facts["mode"] == "rounded"
    AutoModelForCausalLM.from_pretrained(to)


def test_licence_of_the_base_goes_along(tiny_run: Run, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    base = tmp_path / "licensed"
    shutil.copytree(tiny_model("llama"), base)
    (base / "LICENSE.txt").write_text("Do as you like.")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    to, facts = exported(write_run(tmp_path / "runs" / "licensed", base), parity="none")
    assert (to / "LICENSE.txt").read_text() == "Do as you like."
    assert facts["licence"] == {"name": "apache-2.0", "files": ["LICENSE.txt"]}
    assert facts["parity"] == {"measured": False, "why": "--parity none"}


def test_an_export_that_is_too_far_away_is_refused(tiny_run: Run) -> None:
    run = tiny_run()
    with pytest.raises(Stopped, match=r"(?s)max_kl_share .*--force") as stopped:
        exported(run, base="original", parity_tokens=16)
    assert stopped.value.status == 1
    assert sorted(path.name for path in Path().iterdir()) == ["prompts.jsonl", "runs"]
    _, facts = exported(run, base="original", parity_tokens=16, force=True)
    assert facts["parity"]["forced"] and facts["mode"] == "original" and "original" in facts["meaning"]


def test_what_is_wrong_is_said_before_any_work(
    tiny_run: Run, tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "own"
    shutil.copytree(tiny_model("llama"), base)
    run = write_run(tmp_path / "runs" / "own", base)

    def refused(match: str, **settings: Any) -> None:
        with pytest.raises(UserError, match=match):
            exported(run, **settings)
        assert not Path("out").exists()

    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=100))
        refused(r"takes 0\.\d+ GiB, and 0\.00 GiB are free")
    with monkeypatch.context() as patch:
        patch.setattr("lora_rlhf.exporting.folder.free_bytes", lambda _device: 1000)
        refused(r"takes 0\.0 GiB on cpu, and 0\.0 GiB are free; .* --parity none")
    shutil.move(run / "ppo" / "adapter", tmp_path / "kept")
    shutil.copytree(tiny_run("gpt2") / "ppo" / "adapter", run / "ppo" / "adapter")
    refused("adapter does not fit this base")
    shutil.rmtree(run / "ppo" / "adapter")
    shutil.move(tmp_path / "kept", run / "ppo" / "adapter")
    config = base / "config.json"
    config.write_text(config.read_text() + "\n")
    was = json.loads((run / "ppo" / "manifest.json").read_text())["base"]["source_hash"][:16]
    refused(rf"have changed since .* \(sha256 [0-9a-f]{{16}} now, {was} then\)")
    Path("out").mkdir()
    with pytest.raises(UserError, match="exists already"):
        exported(run)
    with pytest.raises(UserError, match=r"prompts.jsonl cannot be made \(File exists\); give another --to"):
        export(ExportConfig(folder=str(run), to="prompts.jsonl/out"))


def test_a_run_is_read_before_its_base(tiny_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_late(*_: Any) -> None:
        raise AssertionError("a file of the run was still to be read")

    run = tiny_run("llama")
    (run / "sft" / "config.yaml").write_text("a: [")
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"sft/config.yaml"):
        patch.setattr("lora_rlhf.exporting.export.prepare_merged", too_late)
        exported(run)
    (run / "ppo" / "adapter" / "adapter_config.json").write_text("[]")
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"adapter_config.json"):
        patch.setattr("lora_rlhf.exporting.source.hash_files", too_late)
        exported(run)


def test_a_missing_shard_is_named(tiny_run: Run, tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    base = tmp_path / "shards"
    AutoModelForCausalLM.from_pretrained(tiny_model("llama")).save_pretrained(base, max_shard_size="200KB")
    AutoTokenizer.from_pretrained(tiny_model("llama")).save_pretrained(base)
    run = write_run(tmp_path / "runs" / "shards", base)
    _, facts = exported(run, dtype="float32", parity_tokens=8)
    assert facts["parity"]["export"]["kl_per_token"] < 1e-9
    shutil.rmtree("out")
    gone = sorted(base.glob("model-0000*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(UserError, match=f"shard {gone.name}"):
        exported(run)


def test_command_line(tiny_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny_run("mistral")
    words = ["export", str(run), "--role", "sft", "--to", "out", "--dtype", "float32"]
    words += ["--parity_tokens", "8", "--device", "cpu"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "KL per token" in printed and "neutral prompts" in printed
    assert cli.main(words) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["export", str(run), "--max_shard_size", "many"]) == 2
    assert "give --to" in (said := capsys.readouterr().err) and "'many' is no size" in said


def test_the_base_is_read_out_as_it_was_in_training(tiny_run: Run) -> None:
    """What "auto" came to on a GPU is followed here too; older manifests do not say."""
    run = tiny_run(compute_dtype="auto")
    assert open_source(str(run), "sft", "cpu").compute_dtype == torch.float32
    manifest = json.loads((run / "sft" / "manifest.json").read_text())
    assert manifest["base"]["computed_in"] == "float32"
    for computed, expected in (("bfloat16", torch.bfloat16), (None, torch.float32)):
        manifest["base"]["computed_in"] = computed
        if computed is None:
            del manifest["base"]["computed_in"]
        (run / "sft" / "manifest.json").write_text(json.dumps(manifest))
        assert open_source(str(run), "sft", "cpu").compute_dtype == expected
    manifest["base"]["computed_in"] = ["float32"]
    (run / "sft" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="computed_in"):
        open_source(str(run), "sft", "cpu")
