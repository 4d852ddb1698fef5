"""--verify: an export speaks for itself in a process that knows neither peft nor this package."""

import json
import math
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lora_rlhf.exporting
from lora_rlhf.cli import main as cli
from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.exporting.export import export
from lora_rlhf.exporting.manifest import hash_folder

pytestmark = pytest.mark.slow

SCRIPT = Path(lora_rlhf.exporting.__file__).parent / "plain_check.py"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Path:
    """One export for all tests here; who changes it puts it back."""
    from tests.support.exports import write_run

    root = tmp_path_factory.mktemp("verify")
    run = write_run(root / "runs" / "one", tiny_model("llama"))
    config = ExportConfig(
        folder=str(run),
        role="sft",
        to=str(root / "out"),
        device="cpu",
        parity_prompts=3,
        parity_tokens=8,
        min_agreement=0.5,
    )
    export(config)
    return root / "out"


def test_verify_agrees_with_what_was_measured(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parity = json.loads((exported / "export.json").read_text())["parity"]["export"]
    assert cli.main(["export", str(exported), "--verify", "--device", "cpu", "--min_agreement", "0.5"]) == 0
    found = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert float(found["top1_agreement"]) == pytest.approx(parity["top1_agreement"], abs=1e-5)
    assert 0 < float(found["kl_per_token"]) <= parity["kl_per_token"] * 1.01


def test_a_changed_file_is_found_without_loading_it(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = exported / "chat_template.jinja"
    text = path.read_text()
    path.write_text(text + " ")
    assert cli.main(["export", str(exported), "--verify"]) == 2
    assert "chat_template.jinja has sha256" in capsys.readouterr().err
    path.write_text(text)


def test_another_model_is_found_by_its_words(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights that were changed, and a manifest that was changed along with them."""
    path, manifest = exported / "model.safetensors", exported / "export.json"
    before = path.read_bytes(), manifest.read_text()
    torch.manual_seed(0)
    moved = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in load_file(path).items()}
    save_file(moved, path, metadata={"format": "pt"})
    facts = json.loads(before[1])
    manifest.write_text(json.dumps(facts | {"files": hash_folder(exported, {})}))
    assert cli.main(["export", str(exported), "--verify", "--device", "cpu"]) == 1
    assert "not the model that was exported: KL per token" in capsys.readouterr().err
    path.write_bytes(before[0])
    manifest.write_text(before[1])


@pytest.mark.parametrize("module", ["peft", "lora_rlhf", "bitsandbytes"])
def test_the_check_runs_without_these(module: str) -> None:
    """Run as --verify runs it, the script's first lines keep them out."""
    kept_out = SCRIPT.read_text().partition("import torch")[0] + f"import {module}"
    done = subprocess.run([sys.executable, "-I", "-c", kept_out], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "ModuleNotFoundError" in done.stderr


def test_recorded_kl_is_that_of_the_known_tokens_and_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lora_rlhf", "peft", "bitsandbytes", "trl"):
        monkeypatch.setitem(sys.modules, name, sys.modules.get(name))  # which the script puts out, put back after it
    recorded_kl = runpy.run_path(str(SCRIPT))["recorded_kl"]
    p, q = [0.5, 0.3, 0.15, 0.05], [0.4, 0.35, 0.05, 0.2]
    expected = 0.5 * math.log(0.5 / 0.4) + 0.3 * math.log(0.3 / 0.35) + 0.2 * math.log(0.2 / 0.25)
    one, other = (torch.tensor([values[:2]], dtype=torch.float64).log() for values in (p, q))
    assert recorded_kl(other, one) == pytest.approx(expected, rel=1e-12)
