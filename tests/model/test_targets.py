"""Which layers carry adapters, on the architectures where names alone would find others."""

from collections.abc import Collection

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from lora_rlhf.model.architecture import build_on_meta, find_training_fault, text_backbone
from lora_rlhf.model.skeleton import count_model
from lora_rlhf.model.targets import find_targets, note_without_adapter
from lora_rlhf.system.errors import UserError
from tests.zoo.checkpoints import CHECKPOINTS

ALL = ("all-linear",)
QKV = {"k_proj", "o_proj", "q_proj", "v_proj"}
DENSE = {"down_proj", "gate_proj", "up_proj"}


def model_of(name: str) -> PreTrainedModel:
    return build_on_meta(CHECKPOINTS[name].make_config(), torch.float32)


def adapted_by_peft(causal: PreTrainedModel, names: Collection[str]) -> set[str]:
    """The paths of the layers that PEFT itself wraps for these names."""
    config = LoraConfig(r=2, target_modules=list(names), task_type="CAUSAL_LM")
    with torch.device("meta"):
        peft = PeftModel(causal, config)
    paths = (path for path, _ in peft.named_modules() if path.endswith(".lora_A"))
    return {path.removeprefix("base_model.model.").removesuffix(".lora_A") for path in paths}


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "phi3"])
def test_usual_models_are_named_by_the_last_part(name: str) -> None:
    names = find_targets(model_of(name)).peft_names(ALL)
    assert all("." not in part for part in names)
    assert "lm_head" not in names


@pytest.mark.parametrize("name", sorted(CHECKPOINTS))
def test_peft_adapts_the_chosen_layers_and_no_others(name: str) -> None:
    causal = model_of(name)
    if find_training_fault(causal):
        return
    targets = find_targets(causal)
    assert adapted_by_peft(causal, targets.peft_names(ALL)) == set(targets.layers)


@pytest.mark.parametrize("name", [name for name, checkpoint in CHECKPOINTS.items() if checkpoint.text is not None])
def test_towers_of_wrappers_get_none(name: str) -> None:
    causal = model_of(name)
    backbone = text_backbone(causal)
    root = next(path for path, module in causal.named_modules() if module is backbone)
    layers = find_targets(causal).layers
    assert layers
    assert all(layer.startswith(f"{root}.") for layer in layers)


def test_routers_get_none_and_neither_do_layers_that_peft_takes_for_experts() -> None:
    for name in ("dbrx", "afmoe", "gemma4_moe", "jetmoe", "phimoe", "longcat_flash", "qwen2_moe", "llama4"):
        layers = find_targets(model_of(name)).layers
        assert not {"router", "gate", "shared_expert_gate"} & {part for layer in layers for part in layer.split(".")}
    assert set(find_targets(model_of("qwen3_moe")).peft_names(ALL)) == QKV
    assert set(find_targets(model_of("granitemoehybrid")).peft_names(ALL)) >= QKV | {"input_linear", "output_linear"}


def test_a_weight_that_a_state_space_kernel_reads_gets_none() -> None:
    for name in ("bamba", "falcon_h1", "granitemoehybrid", "nemotron_h", "zamba2"):
        assert not any(layer.endswith("out_proj") for layer in find_targets(model_of(name)).layers)
    for name in ("jamba", "lfm2", "qwen3_5_text", "opt"):  # these call the layer
        assert any(layer.endswith("out_proj") for layer in find_targets(model_of(name)).layers)


def test_groups_and_names() -> None:
    targets = find_targets(model_of("llama"))
    assert set(targets.peft_names(["attention"])) == QKV
    assert set(targets.peft_names(["mlp"])) == DENSE
    assert set(targets.peft_names(["mlp", "q_proj"])) == DENSE | {"q_proj"}
    assert targets.peft_names(["layers.1.self_attn.v_proj"]) == ["1.self_attn.v_proj"]
    hybrid = find_targets(model_of("qwen3_5"))
    assert all("language_model" in name for name in hybrid.peft_names(["mlp"]) if name not in DENSE)


def test_weights_without_an_adapter_are_told() -> None:
    for name, least, most in (("llama", 0, 0), ("gemma3", 0, 0), ("qwen3_moe", 0.5, 0.9), ("gpt_oss", 0.3, 0.9)):
        targets = find_targets(model_of(name))
        share = targets.share_without(ALL)
        assert least <= share <= most, (name, share)
        note = note_without_adapter(share, ALL)
        assert note is None if most == 0 else f"{100 * share:.0f} % of the text" in str(note)
    assert note_without_adapter(0.9, ("attention",)) is None
    llama = find_targets(model_of("llama"))
    assert llama.share_without(["attention"]) + llama.share_without(["mlp"]) == pytest.approx(1)


def test_the_plan_counts_the_chosen_layers() -> None:
    config = CHECKPOINTS["gemma3"].make_config()
    for chosen in (ALL, ("attention",), ("q_proj",)):
        adapted = sum(linear.adapted for linear in count_model(config, "nf4", torch.float32, chosen).linears)
        assert adapted == len(find_targets(model_of("gemma3")).find(chosen)) > 0


@pytest.mark.parametrize("target", ["lm_head", "vision_tower", "proj", "experts"])
def test_a_target_that_finds_nothing_is_refused_with_what_there_is(target: str) -> None:
    with pytest.raises(UserError, match=rf"'{target}' is no linear layer .*mlp, or names of: down_proj, .*v_proj"):
        find_targets(model_of("gemma3")).peft_names([target])
