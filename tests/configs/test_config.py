"""Configurations: every fault at once, with the values and the way out; the same through YAML and back."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lora_rlhf
from lora_rlhf.configs.catalogue import STAGES
from lora_rlhf.configs.marks import (
    COMMON,
    SAFE_TO_CHANGE_ON_RESUME,
    fields_with_mark,
    former_names,
    mark_by_field,
    with_new_names,
)
from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.configs.stages import PPOConfig, RewardConfig, SFTConfig
from lora_rlhf.configs.values import check, from_dict, read_yaml, to_yaml
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.system.errors import UserError
from lora_rlhf.tinyworld.config import LabelConfig, TinyworldConfig

PACKAGE = Path(lora_rlhf.__file__).parent


def ppo(**values: Any) -> PPOConfig:
    return PPOConfig(**({"run": "runs/x", "prompts": "prompts.jsonl"} | values))


def faults_of(config: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        check(config)
    return str(caught.value).splitlines()


def test_defaults_are_without_fault() -> None:
    check(ppo())
    check(SFTConfig(run="runs/x", model="tinyworld", demonstrations="d.jsonl"))
    check(SampleConfig(run="runs/x", prompts="p.jsonl", to="c.jsonl"))
    check(EvaluateConfig(run="runs/x", prompts="p.jsonl"))


def test_all_faults_come_at_once_with_flag_and_value() -> None:
    faults = faults_of(ppo(batch_size=0, iterations=-3, temperature=0.0, gamma=1.5, advantage="rloo"))
    assert [fault.split(" is ")[0] for fault in faults] == [
        "ppo: iterations",
        "ppo: batch_size",
        "ppo: temperature",
        "ppo: gamma",
        "ppo: advantage rloo compares responses: samples_per_prompt must be at least 2",
    ]
    assert "-3" in faults[0] and "1.5" in faults[3]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_learning_rate_must_be_a_positive_number(value: float) -> None:
    assert faults_of(ppo(policy_learning_rate=value)) == [f"ppo: policy_learning_rate is {value}, must be above 0"]


def test_batch_size_that_does_not_divide_names_both_and_what_would() -> None:
    (fault,) = faults_of(ppo(batch_size=64, minibatch_size=24))
    assert fault == "ppo: batch_size is 64, must be a multiple of minibatch_size 24: try 48 or 72"


@given(value=st.integers(1, 500), unit=st.integers(1, 64))
def test_sizes_that_are_proposed_divide(value: int, unit: int) -> None:
    config = PPOConfig(run="r", prompts="p", batch_size=value, minibatch_size=unit)
    faults = config.faults()
    assert bool(faults) == (value % unit != 0)
    for fault in faults:
        low, _, high = fault.split("try ")[1].partition(" or ")
        for proposed in (int(low), int(high)):
            check(dataclasses.replace(config, batch_size=proposed))


def test_from_dict_reports_everything_that_does_not_fit() -> None:
    values = {"prompts": "p.jsonl", "iteration": 5, "batch_size": "many", "advantage": "best", "seed": True}
    with pytest.raises(UserError) as caught:
        from_dict(PPOConfig, values, "recipe.yaml: ppo")
    message = str(caught.value)
    for fault in (
        "unknown key 'iteration'",
        "run is missing",
        "batch_size is 'many'",
        "advantage is 'best'",
        "seed is True",
    ):
        assert f"recipe.yaml: ppo: {fault}" in message
    assert "iterations" in message.splitlines()[-1], "the known keys are listed"


@pytest.mark.parametrize(("written", "read"), [("2e-4", 2e-4), (1, 1.0), (0.5, 0.5)])
def test_from_dict_reads_numbers_as_yaml_writes_them(written: Any, read: float) -> None:
    config = from_dict(PPOConfig, {"run": "r", "prompts": "p", "policy_learning_rate": written}, "x")
    assert config.policy_learning_rate == read and isinstance(config.policy_learning_rate, float)


def test_from_dict_keeps_none_where_none_is_allowed() -> None:
    assert from_dict(PPOConfig, {"run": "r", "prompts": "p", "kl_target": None}, "x").kl_target is None
    with pytest.raises(UserError, match="kl_coef has no value"):
        from_dict(PPOConfig, {"run": "r", "prompts": "p", "kl_coef": None}, "x")


@pytest.mark.parametrize(
    "config",
    [
        ppo(policy_learning_rate=1.5e-5, kl_target=6.0, reference="base"),
        EvaluateConfig(run="runs/x", prompts="p.jsonl", temperatures=(0.0, 0.7)),
        SFTConfig(run="runs/x", model="tinyworld", demonstrations="d.jsonl", use_rslora=True),
    ],
)
def test_yaml_reproduces_the_configuration(config: Any, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert from_dict(type(config), read_yaml(path), "config.yaml") == config


def test_marks_are_where_recipes_and_resumed_runs_look_for_them() -> None:
    """Written out here, so that a field that is declared anew does not lose its marks unseen."""
    of_stages = "run seed device micro_batch_size generation_batch_size max_prompt_tokens max_response_tokens strict"
    of_stages += " long_responses trust_remote_code gradient_checkpointing dequantize attn_implementation fused_kernels"
    of_training = "resume allow_changes save_every keep_checkpoints report_to"
    common = {
        SFTConfig: f"{of_stages} {of_training} model quantization compute_dtype chat_template template_args system",
        SampleConfig: f"{of_stages} engine",
        RewardConfig: f"{of_stages} {of_training} model",
        PPOConfig: f"{of_stages} {of_training} model engine decode_weights",
        EvaluateConfig: of_stages,
        ExportConfig: "device trust_remote_code",
        TinyworldConfig: "seed",
        LabelConfig: "seed",
    }
    assert {kind: set(fields_with_mark(kind, COMMON)) for kind in common} == {
        kind: set(names.split()) for kind, names in common.items()
    }
    safe = "run device overwrite micro_batch_size generation_batch_size gradient_checkpointing dequantize strict"
    safe = f"{safe} trust_remote_code model {of_training} engine attn_implementation fused_kernels"
    judge = "key_variable price_in price_out budget concurrency retries timeout batch_size cache"
    safe = f"{safe} {' '.join(f'judge_{name}' for name in judge.split())}"
    assert set(fields_with_mark(PPOConfig, SAFE_TO_CHANGE_ON_RESUME)) == set(safe.split())
    assert {stage.name: list(stage.reads) for stage in STAGES} == {
        stage.name: list(mark_by_field(stage.config, "input_file")) for stage in STAGES
    }
    inputs = {
        SampleConfig: "prompts",
        EvaluateConfig: "prompts selection_prompts probes choices text tools grounded refusals judge_file compare",
        ExportConfig: "prompts",
        LabelConfig: "responses",
    }
    assert {kind: set(mark_by_field(kind, "input_file")) for kind in inputs} == {
        kind: set(names.split()) for kind, names in inputs.items()
    }


def test_former_names_are_read_with_one_line_of_warning(caplog: pytest.LogCaptureFixture) -> None:
    former = former_names(PPOConfig)
    assert with_new_names(former, {"rollout": "static", "seed": 1}, "x.yaml") == {"engine": "static", "seed": 1}
    assert caplog.messages == ["x.yaml: rollout is now called engine"]
    with pytest.raises(UserError, match=r"x\.yaml: rollout is the former name of engine; give engine alone"):
        with_new_names(former, {"rollout": "static", "engine": "plain"}, "x.yaml")
    assert with_new_names(former_names(LabelConfig), {"candidates": "c"}, None) == {"responses": "c"}
    assert len(caplog.messages) == 1, "quiet without a source"


def test_every_configuration_is_where_one_looks_for_it() -> None:
    """In configs/, or in config.py of the room whose command it is."""
    files = [*PACKAGE.rglob("*.py")]
    found = {path for path in files if re.search(r"^class \w+Config\b", path.read_text(), re.MULTILINE)}
    assert [path for path in found if path.name != "config.py" and path.parent.name != "configs"] == []


@pytest.mark.parametrize(("text", "fault"), [("seed: [", "not YAML"), ("- 1", "found list"), ("", "found NoneType")])
def test_files_that_are_no_configuration(text: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=fault) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot be read"):
        read_yaml("nowhere.yaml")


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"device": "foo"}, "device is 'foo', expected auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:one"}, "device is 'cuda:one', expected auto"),
        ({"seed": -1}, "seed is -1, must be from 0 to 9223372036854775807"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
    ],
)
def test_devices_and_seeds_are_checked_before_a_library_sees_them(values: dict[str, Any], fault: str) -> None:
    with pytest.raises(UserError, match=re.escape(fault)):
        check(SFTConfig(run="r", model="m", demonstrations="d", **values))
    assert SFTConfig(run="r", model="m", demonstrations="d", device="cuda:1", seed=2**63 - 1).faults() == []


def test_a_key_that_is_there_twice_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("run: r\nsft:\n  epochs: 2\n  batch_size: 8\n  epochs: 3\n")
    with pytest.raises(UserError, match=r"recipe\.yaml: .*line 5: the key 'epochs' is there twice"):
        read_yaml(path)


def test_a_key_without_a_value_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text("run: r\nmodel: m\ndemonstrations: d\nepochs:\n")
    with pytest.raises(UserError, match="epochs has no value, expected a whole number"):
        from_dict(SFTConfig, read_yaml(path), "sft.yaml")


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)),
        "a: &a [*a]\n",
        "a: &a\n  b: *a\n",
    ],
)
def test_anchors_that_stand_for_very_much_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bomb.yaml").write_text(text)
    with pytest.raises(UserError, match="anchors stand for over 100,000 values"):
        read_yaml(tmp_path / "bomb.yaml")
    (tmp_path / "bomb.yaml").write_text("common: &c {lr: 1}\nfirst: *c\nsecond: {<<: *c, seed: 2}\n")
    assert read_yaml(tmp_path / "bomb.yaml")["second"] == {"lr": 1, "seed": 2}


def test_a_file_of_settings_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_text("a: 1\n" + "#" * 2**20)
    with pytest.raises(UserError, match="more than the 1,048,576"):
        read_yaml(tmp_path / "large.yaml")
