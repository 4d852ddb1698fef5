"""Which stages are compared, and that stages which do not belong together are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_rlhf.errors import UserError
from lora_rlhf.evaluate.lineage import find_stages, open_model
from lora_rlhf.model.shared import SharedModel


def edit(manifest: Path, **changes: Any) -> None:
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))


def test_what_is_there_is_used(make_run: Callable[..., Path]) -> None:
    whole = find_stages(str(make_run("whole")))
    assert whole.writers == ("base", "sft", "policy") and whole.reward is not None
    assert whole.ppo_config["kl_target"] == 2.0 and set(whole.seconds()) == {"sft", "reward", "ppo"}
    early = find_stages(str(make_run("early", policy=None, reward=False)))
    assert early.writers == ("base", "sft") and early.reward is None and early.ppo_config == {}


def test_without_an_sft_stage_the_way_out_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sft stage there; run `lora-rlhf sft"):
        find_stages(str(tmp_path))


def test_the_policys_own_sft_stage_is_found_wherever_it_is(make_run: Callable[..., Path]) -> None:
    first = make_run("first", policy=None, reward=False)
    second = make_run("second", sft=str(first / "sft"))
    assert not (second / "sft").exists()
    assert find_stages(str(second)).sft.folder == first / "sft"


def test_a_stage_made_anew_since_the_policy_is_refused(make_run: Callable[..., Path]) -> None:
    run = make_run()
    edit(run / "sft/manifest.json", id="anew")
    with pytest.raises(UserError, match=r"sft stage \(id anew\) was made after the policy.*ppo --run .* --overwrite"):
        find_stages(str(run))


def test_a_run_that_was_moved_still_works(make_run: Callable[..., Path], tmp_path: Path) -> None:
    moved = shutil.move(make_run(), tmp_path / "moved")
    assert find_stages(str(moved)).sft.folder == tmp_path / "moved/sft"


def test_another_base_is_refused_with_what_differs(
    make_run: Callable[..., Path], trained: SharedModel, tmp_path: Path
) -> None:
    run = make_run(policy=None)
    base = json.loads((run / "reward/manifest.json").read_text())["base"]
    edit(run / "reward/manifest.json", base=base | {"quantization": "nf4"})
    with pytest.raises(UserError, match="not trained on the same base: quantization 'none' and 'nf4'"):
        find_stages(str(run))
    for stage in ("sft", "reward"):
        edit(run / stage / "manifest.json", base=base | {"source_hash": "0"})
    with pytest.raises(UserError, match="trained on another base"):
        open_model(find_stages(str(run)), "cpu", trained)


def test_a_model_is_opened_with_the_saved_adapters(make_run: Callable[..., Path], trained: SharedModel) -> None:
    model = open_model(find_stages(str(make_run())), "cpu", None)
    assert set(model.roles) == {"base", "sft", "reward", "policy"}
    for role in ("sft", "reward", "policy"):
        saved, loaded = trained.adapter_state(role), model.adapter_state(role)
        assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    assert open_model(find_stages(str(make_run())), "cpu", model) is model
