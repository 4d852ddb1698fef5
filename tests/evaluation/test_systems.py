"""Which stages are compared, and that stages which do not belong together are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lora_rlhf.configs.catalogue import PPO, SFT
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.evaluation.systems import SystemSet, find_stages, find_systems, open_model
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError


def edit(manifest: Path, **changes: Any) -> None:
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))


def systems_of(run: Path, *others: Path, **changes: Any) -> SystemSet:
    names = tuple(str(other) for other in others)
    return find_systems(EvaluateConfig(run=str(run), other_runs=names, prompts="p.jsonl", **changes))


def test_what_is_there_is_used(make_run: Callable[..., Path]) -> None:
    whole = find_stages(str(make_run("whole")))
    assert whole.reward is not None and [stage for stage, _ in whole.writers] == [SFT, PPO]
    assert whole.read_setting(PPO, "kl_target") == 2.0 and list(whole.seconds_by_stage()) == ["sft", "reward", "ppo"]
    assert whole.reference_role(PPO) == whole.reference_role(SFT) == "sft"
    early = find_stages(str(make_run("early", policy=None, reward=False)))
    assert list(early.by_name) == ["sft"] and early.reward is None
    assert early.read_setting(PPO, "kl_target") is None and early.reference_role(SFT) is None


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


def record(run: Path, stage: str, folder: str) -> None:
    """Rewrites where the policy's manifest has a parent."""
    parents = json.loads((run / "ppo/manifest.json").read_text())["parents"]
    edit(run / "ppo/manifest.json", parents=parents | {stage: parents[stage] | {"folder": folder}})


def elsewhere(run: Path, stage: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Moves a parent out of the folder that holds the run, as if it had always been there."""
    other = tmp_path_factory.mktemp("elsewhere") / "other"
    shutil.move(run / stage, other)
    record(run, stage, str(other))
    return other


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_a_manifest_leads_nowhere_outside_unless_it_is_named(
    make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, stage: str
) -> None:
    run = make_run()
    other = elsewhere(run, stage, tmp_path_factory)
    with pytest.raises(
        UserError, match=rf"recorded at '{other}', which is not followed outside {run.parent};.*--{stage}"
    ):
        find_stages(str(run))
    found = find_stages(str(run), {stage: str(other)})
    assert found.by_name[stage].folder == other
    shutil.copytree(other, run / stage)
    assert find_stages(str(run)).by_name[stage].folder == run / stage


def test_a_stage_that_is_named_must_be_the_policys_too(make_run: Callable[..., Path]) -> None:
    run, other = make_run(), make_run("other")
    with pytest.raises(UserError, match=r"other/sft: this sft stage .* was made after the policy"):
        find_stages(str(run), {"sft": str(other / "sft")})
    early = make_run("early", policy=None, reward=False)
    assert find_stages(str(early), {"reward": str(other / "reward")}).reward is not None


def test_dots_and_links_do_not_lead_outside(
    make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    run = make_run()
    other = elsewhere(run, "sft", tmp_path_factory)
    (tmp_path / "link").symlink_to(other)
    (run / "inside").symlink_to(other)
    for folder in (str(tmp_path / "link"), "inside", f"{run}/../../{other.parent.name}/other", "../run/sft"):
        record(run, "sft", folder)
        with pytest.raises(UserError, match="is not followed outside"):
            find_stages(str(run))


def test_parents_are_found_as_old_and_new_manifests_record_them(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    (run / "sft").rename(run / "mine")
    record(run, "sft", "mine")  # relative to the run
    assert find_stages(str(run)).sft.folder == run / "mine"
    record(run, "sft", f"../{run.name}/mine")
    with pytest.raises(UserError, match="is not followed outside"):
        find_stages(str(run))
    record(run, "sft", "mine")
    monkeypatch.chdir(tmp_path)
    assert find_stages("run").sft.folder == Path("run/mine")
    record(run, "sft", "run/mine")  # relative to the working folder
    assert find_stages("run").sft.folder == Path("run/mine")
    assert find_stages("./run/../run").sft.folder == Path("run/mine")


def test_a_run_that_is_a_link_stands_in_both_places(
    make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    first = make_run("first", policy=None, reward=False)
    run = make_run("second", sft=str(first / "sft"))
    far = tmp_path_factory.mktemp("far")
    (far / "linked").symlink_to(run)  # the run leads to where its parent is
    assert find_stages(str(far / "linked")).sft.folder == first / "sft"
    shutil.move(run, far / "moved")
    (tmp_path / "second").symlink_to(far / "moved")  # it is named where its parent is
    assert find_stages(str(tmp_path / "second")).sft.folder == first / "sft"


@pytest.mark.parametrize(("key", "value"), [("reference", "policy"), ("reference", [1]), ("kl_target", "high")])
def test_a_policys_configuration_is_checked_where_it_is_used(
    make_run: Callable[..., Path], key: str, value: Any
) -> None:
    run = make_run()
    place = run / "ppo/config.yaml"
    place.write_text(yaml.safe_dump(yaml.safe_load(place.read_text()) | {key: value}))
    with pytest.raises(UserError, match=rf"{place}: '{key}' is .*, expected"):
        find_stages(str(run)).read_setting(PPO, key)


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
        open_model(systems_of(run), "cpu", trained)


def test_a_model_is_opened_with_the_saved_adapters(make_run: Callable[..., Path], trained: SharedModel) -> None:
    model = open_model(systems_of(make_run()), "cpu", None)
    assert set(model.roles) == {"base", "sft", "reward", "policy"}
    for role in ("sft", "reward", "policy"):
        saved, loaded = trained.adapter_state(role), model.adapter_state(role)
        assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    assert open_model(systems_of(make_run()), "cpu", model) is model


def test_systems_of_one_run(make_run: Callable[..., Path]) -> None:
    whole, early = systems_of(make_run("whole")), systems_of(make_run("early", policy=None))
    assert whole.names == ("base", "sft", "policy") and (whole.candidate, whole.baseline) == ("policy", "sft")
    assert list(whole.pairs) == ["policy_vs_sft", "policy_vs_base", "sft_vs_base"]
    assert [system.reference for system in whole.systems] == ["sft", "sft", "sft"]
    assert early.names == ("base", "sft") and (early.candidate, early.baseline) == ("sft", "base")
    assert list(early.pairs) == ["sft_vs_base"] and early.pairs["sft_vs_base"] == ("sft", "base")
    assert [s.reference for s in systems_of(make_run("free", reference="base")).systems] == ["base"] * 3


def test_other_runs_bring_their_systems_under_their_names(make_run: Callable[..., Path]) -> None:
    first, second = make_run("first"), make_run("second")
    found = systems_of(first, second, candidate="second:policy", baseline="policy")
    assert found.names == ("base", "sft", "policy", "second:sft", "second:policy")
    assert {name: found.pairs[name] for name in found.pairs}["second:policy_vs_policy"] == ("second:policy", "policy")
    assert all(set(pair) & {"second:policy", "policy"} for pair in found.pairs.values()) and len(found.pairs) == 7
    roles = {system.name: (system.role, system.reference) for system in found.systems}
    assert roles["second:policy"] == ("other1_policy", "other1_sft") and roles["policy"] == ("policy", "sft")
    model = open_model(found, "cpu", None)
    assert {"policy", "other1_sft", "other1_policy"} <= set(model.roles)


def test_a_stage_that_two_runs_share_is_one_system(make_run: Callable[..., Path]) -> None:
    first = make_run("first")
    second = make_run("second", sft=str(first / "sft"))
    found = systems_of(first, second)
    assert found.names == ("base", "sft", "policy", "second:policy")
    assert found.systems[-1].reference == "sft", "its reference is the role that plays the shared stage"


def test_systems_that_cannot_be_compared_are_refused(make_run: Callable[..., Path], tmp_path: Path) -> None:
    first, second = make_run("first"), make_run("second")
    mistakes = [
        ({"candidate": "polices"}, "--candidate 'polices' is none of the systems: base, sft, policy"),
        ({"baseline": "policy"}, "candidate and baseline are both 'policy'"),
    ]
    for changes, message in mistakes:
        with pytest.raises(UserError, match=message):
            systems_of(first, **changes)
    (tmp_path / "else").mkdir()
    twin = shutil.copytree(second, tmp_path / "else/second")
    with pytest.raises(UserError, match="another of the runs is called 'second' too"):
        systems_of(first, second, twin)
    base = json.loads((second / "sft/manifest.json").read_text())["base"]
    for stage in ("sft", "reward", "ppo"):
        edit(second / stage / "manifest.json", base=base | {"source_hash": "f" * 64})
    with pytest.raises(UserError, match=f"not trained on the same base: source_hash '{base['source_hash']}' and 'ffff"):
        systems_of(first, second)
