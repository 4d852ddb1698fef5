"""Roles on one base: gradients, isolation, restoring, copying, files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.forward import Sequences, response_logprobs, response_scores, response_values
from lora_rlhf.model.heads import attach_score_head
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError
from tests.support.batches import random_batch, random_lists

Make = Callable[..., SharedModel]
TRAINABLE = ("sft", "reward", "policy", "value")


def role_loss(model: SharedModel, role: str, batch: Sequences) -> Tensor:
    if role.startswith("reward"):
        return response_scores(model, batch).square().sum()
    if role.startswith("value"):
        return response_values(model, batch).square().sum()
    return response_logprobs(model, batch)[0].sum()


def gradients(model: SharedModel, role: str, batch: Sequences) -> dict[str, Tensor]:
    with model.role(role, training=True):
        role_loss(model, role, batch).backward()
        model.check_gradients(role)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters_of(role)}


def standalone_gradients(folder: Path, base: Path, role: str) -> dict[str, Tensor]:
    """The same loss on a base of its own with plain PEFT and plain transformers, one unpadded sequence at a time."""
    causal = load_base(BaseSpec(str(base)), "cpu").model
    attach_score_head(causal)
    peft = PeftModel.from_pretrained(causal, str(folder), is_trainable=True)
    for prompt, response in zip(*random_lists(), strict=True):
        ids = torch.tensor([prompt + response])
        out = peft(input_ids=ids, output_hidden_states=True, use_cache=False)
        hidden, start = out.hidden_states[-1][0], len(prompt)
        if role == "reward":
            loss = causal.score(hidden[-1]).square().sum()
        elif role == "value":
            loss = causal.score(hidden[start - 1 : -1]).square().sum()
        else:
            loss = out.logits[0, start - 1 : -1].log_softmax(-1).gather(-1, ids[0, start:, None]).sum()
        loss.backward()
    named = {name.replace(".default", ""): p.grad for name, p in peft.named_parameters() if p.grad is not None}
    return {name.replace("modules_to_save.", ""): grad for name, grad in named.items()}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("role", TRAINABLE)
def test_gradient_equals_that_role_alone(
    shared_model: Make, tiny_model: Callable[[str], Path], tmp_path: Path, role: str, checkpointing: bool
) -> None:
    model = shared_model()
    if checkpointing:
        model.enable_gradient_checkpointing()
    model.save_role(role, tmp_path / role)
    grads = gradients(model, role, random_batch())
    expected = standalone_gradients(tmp_path / role, tiny_model("llama"), role)
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        assert grad.abs().max() > 0, name
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-5 * expected[name].abs().max().item())
    for other in set(TRAINABLE) - {role}:
        assert all(parameter.grad is None for _, parameter in model.named_parameters_of(other))


def test_checkpointing_recomputes_layers_in_training_only(shared_model: Make) -> None:
    model = shared_model()
    calls = 0

    def count(_module: torch.nn.Module, _inputs: object) -> None:
        nonlocal calls
        calls += 1

    model.backbone.layers[0].self_attn.q_proj.register_forward_pre_hook(count)
    gradients(model, "policy", random_batch())
    assert calls == 1
    model.enable_gradient_checkpointing()
    gradients(model, "policy", random_batch())
    assert calls == 3
    with model.role("policy"):
        assert not response_logprobs(model, random_batch())[0].requires_grad
    assert calls == 4


def train_step(model: SharedModel, role: str) -> None:
    optimizer = torch.optim.AdamW([p for _, p in model.named_parameters_of(role)], lr=1e-3)
    gradients(model, role, random_batch())
    optimizer.step()


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_training_every_role_leaves_the_base_as_it_was(shared_model: Make, quantization: str) -> None:
    model = shared_model(quantization=quantization)
    before = model.base_digest()
    for role in TRAINABLE:
        train_step(model, role)
    with model.role("base"), torch.no_grad():
        response_logprobs(model, random_batch())
    assert model.base_digest() == before
    weight = next(p for name, p in model.causal.named_parameters() if name.endswith("q_proj.base_layer.weight"))
    weight.data.view(torch.uint8)[0, 0] ^= 1
    assert model.base_digest() != before, "the digest must see a single bit"


def test_digest_does_not_see_adapters(tiny_model: Callable[[str], Path]) -> None:
    model = SharedModel(load_base(BaseSpec(str(tiny_model("llama"))), "cpu"))
    before = model.base_digest()
    model.add_role("reward", LoraSettings(rank=2), head=True)
    assert model.base_digest() == before


def test_reference_is_bit_equal_while_the_policy_trains(shared_model: Make) -> None:
    model, batch = shared_model(), random_batch()

    def reference() -> Tensor:
        with model.role("reference"), torch.no_grad():
            return response_logprobs(model, batch)[0]

    def others() -> list[dict[str, Tensor]]:
        return [model.adapter_state(role) for role in ("sft", "reward", "value")]

    before, states, policy = reference(), others(), model.adapter_state("policy")
    train_step(model, "policy")
    assert torch.equal(reference(), before)
    for old, new in zip(states, others(), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)
    assert all(not torch.equal(policy[name], value) for name, value in model.adapter_state("policy").items())


def test_reference_may_be_the_bare_base(shared_model: Make) -> None:
    model, batch = shared_model(), random_batch()
    with model.role("base"), torch.no_grad():
        base = response_logprobs(model, batch)[0]
    with model.role("reference"), torch.no_grad():
        assert not torch.equal(response_logprobs(model, batch)[0], base)
    model.alias("reference", "base")
    with model.role("reference"), torch.no_grad():
        assert torch.equal(response_logprobs(model, batch)[0], base)


def flags(model: SharedModel) -> tuple[str | None, bool, list[str]]:
    modes = {module.training for module in model.causal.modules()}
    assert len(modes) == 1, "train and eval mode are mixed"
    return model.active_role, modes.pop(), [n for n, p in model.causal.named_parameters() if p.requires_grad]


def test_only_the_trained_role_is_trainable_and_everything_comes_back(shared_model: Make) -> None:
    model = shared_model()
    idle: tuple[None, bool, list[str]] = (None, False, [])
    assert flags(model) == idle
    for role in TRAINABLE:
        with model.role(role, training=True):
            inside = flags(model)
            assert inside[:2] == (role, True)
            assert len(inside[2]) == len(model.named_parameters_of(role))
            assert all(f".{role}." in name for name in inside[2])
            with model.role("reference"):
                assert flags(model) == ("reference", False, [])
                with model.role("value", training=True):
                    assert flags(model)[:2] == ("value", True)
                assert flags(model) == ("reference", False, [])
            assert flags(model) == inside
            with model.role(role):
                assert flags(model) == (role, False, [])
            assert flags(model) == inside
        assert flags(model) == idle


def test_state_comes_back_after_an_exception(shared_model: Make) -> None:
    model, batch = shared_model(), random_batch()
    with model.role("policy"), torch.no_grad():
        before = response_logprobs(model, batch)[0]
    with pytest.raises(ZeroDivisionError), model.role("value", training=True), model.role("base"):
        raise ZeroDivisionError
    assert flags(model) == (None, False, [])
    with model.role("policy"), torch.no_grad():
        assert torch.equal(response_logprobs(model, batch)[0], before)


def test_a_forward_outside_any_role_raises(shared_model: Make) -> None:
    model = shared_model()
    with pytest.raises(RuntimeError, match="outside any role"):
        response_logprobs(model, random_batch())
    with pytest.raises(RuntimeError, match="outside any role"):
        model.causal(input_ids=torch.ones(1, 2, dtype=torch.long))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_switching_between_forward_and_backward_raises(shared_model: Make, checkpointing: bool) -> None:
    model, batch = shared_model(), random_batch()
    if checkpointing:
        model.enable_gradient_checkpointing()
    with model.role("policy", training=True):
        loss = role_loss(model, "policy", batch)
        with model.role("value", training=True), pytest.raises(RuntimeError, match="silently wrong"):
            loss.backward()
    with model.role("policy", training=True):
        loss = role_loss(model, "policy", batch)
        with model.role("policy"), pytest.raises(RuntimeError, match="silently wrong"):
            loss.backward()
    with model.role("policy", training=True):
        loss = role_loss(model, "policy", batch)
    with pytest.raises(RuntimeError, match="silently wrong"):
        loss.backward()
    for role in TRAINABLE:
        assert all(parameter.grad is None for _, parameter in model.named_parameters_of(role))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_nested_role_before_backward_does_no_harm(shared_model: Make, checkpointing: bool) -> None:
    model, batch = shared_model(), random_batch()
    if checkpointing:
        model.enable_gradient_checkpointing()
    expected = gradients(model, "policy", batch)
    for _, parameter in model.named_parameters_of("policy"):
        parameter.grad = None
    with model.role("policy", training=True):
        loss = role_loss(model, "policy", batch)
        with model.role("reference"), torch.no_grad():
            response_logprobs(model, batch)
        gradients(model, "value", batch)
        loss.backward()
    assert all(
        p.grad is not None and torch.equal(p.grad, expected[name]) for name, p in model.named_parameters_of("policy")
    )


def test_check_gradients_names_a_parameter_without_one(shared_model: Make) -> None:
    model = shared_model()
    gradients(model, "value", random_batch())
    name, parameter = model.named_parameters_of("value")[3]
    parameter.grad = None
    with pytest.raises(RuntimeError, match=name.replace(".", r"\.")):
        model.check_gradients("value")


def test_adapters_and_heads_are_float32_on_a_bfloat16_base(tiny_model: Callable[[str], Path]) -> None:
    base = load_base(BaseSpec(str(tiny_model("llama")), compute_dtype="bfloat16"), "cpu")
    assert base.model.get_input_embeddings().weight.dtype == torch.bfloat16
    model = SharedModel(base)
    model.add_role("reward", LoraSettings(rank=2), head=True)
    model.copy_role("reward", "value", head="copy")
    assert {p.dtype for role in ("reward", "value") for _, p in model.named_parameters_of(role)} == {torch.float32}
    with model.role("reward"):
        assert response_scores(model, random_batch()).dtype == torch.float32
    with model.role("base"):
        assert response_logprobs(model, random_batch())[0].dtype == torch.float32


def test_a_new_adapter_changes_nothing_and_skips_the_heads(tiny_model: Callable[[str], Path]) -> None:
    model, batch = SharedModel(load_base(BaseSpec(str(tiny_model("gpt_neox"))), "cpu")), random_batch()
    model.add_role("sft", LoraSettings(rank=2))
    model.add_role("reward", LoraSettings(rank=2), head=True)
    layers = {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
    for role, heads in (("sft", set()), ("reward", {"score"})):
        names = {name.split(".lora_")[0].removesuffix(".weight") for name, _ in model.named_parameters_of(role)}
        assert {name.rpartition(".")[2] for name in names} == layers | heads
    with model.role("base"), torch.no_grad():
        base = response_logprobs(model, batch)[0]
    with model.role("sft"), torch.no_grad():
        assert torch.equal(response_logprobs(model, batch)[0], base)


def test_copies_are_bit_exact_and_separate(shared_model: Make) -> None:
    model, batch = shared_model(), random_batch()
    model.copy_role("sft", "policy2")
    model.copy_role("reward", "value2", head="copy")
    model.copy_role("reward", "value3", head="new")
    model.copy_role("reward", "headless")
    source, copy = model.adapter_state("reward"), model.adapter_state("value2")
    assert source.keys() == copy.keys()
    assert all(torch.equal(source[name], copy[name]) for name in source)
    different = [n for n, t in model.adapter_state("value3").items() if not torch.equal(t, source[n])]
    assert different == ["base_model.model.score.weight"]
    assert source.keys() - model.adapter_state("headless").keys() == {"base_model.model.score.weight"}
    with torch.no_grad():
        outputs = {}
        for role in ("sft", "policy2"):
            with model.role(role):
                outputs[role] = response_logprobs(model, batch)[0]
    assert torch.equal(outputs["sft"], outputs["policy2"])
    train_step(model, "policy2")
    train_step(model, "value2")
    assert all(torch.equal(source[name], tensor) for name, tensor in model.adapter_state("reward").items())


def test_a_head_is_copied_from_where_there_is_one(shared_model: Make) -> None:
    model = shared_model()
    with pytest.raises(ValueError, match="no score head"):
        model.copy_role("sft", "value2", head="copy")
    with model.role("policy"), pytest.raises(ValueError, match="no score head"):
        response_scores(model, random_batch())


@pytest.mark.parametrize("role", ["base", "reference", "nobody"])
def test_a_role_without_parameters_cannot_be_trained(shared_model: Make, role: str) -> None:
    model = shared_model()
    with pytest.raises(ValueError, match=role), model.role(role, training=True):
        pass
    assert flags(model) == (None, False, [])


@pytest.mark.parametrize("name", ["base", "reference", "sft", "", "a.b"])
def test_names_that_cannot_be_added(shared_model: Make, name: str) -> None:
    with pytest.raises(ValueError, match="reserved, taken or not a name"):
        shared_model().add_role(name, LoraSettings())


def test_roles_are_not_added_inside_a_block(shared_model: Make) -> None:
    model = shared_model()
    with model.role("policy"), pytest.raises(RuntimeError, match="inside the block"):
        model.add_role("extra", LoraSettings())


@pytest.mark.parametrize("init", ["pissa", "olora", "loftq", "corda", "eva", "pissa_niter_4", "lora_ga"])
def test_inits_that_could_write_to_the_base_are_refused(init: str) -> None:
    with pytest.raises(UserError, match=init):
        LoraSettings(init=init)


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": "q_proj"}, {"targets": ()}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        LoraSettings(**wrong)


@pytest.mark.parametrize("target", ["lm_head", "score", "embed_tokens"])
def test_targets_must_be_linear_layers_of_the_backbone(shared_model: Make, target: str) -> None:
    with pytest.raises(UserError, match="q_proj"):
        shared_model().add_role("extra", LoraSettings(targets=("q_proj", target)))


# Files


def test_saved_names_are_those_of_peft(shared_model: Make) -> None:
    model = shared_model()
    for role in TRAINABLE:
        ours, theirs = model.adapter_state(role), get_peft_model_state_dict(model.peft, adapter_name=role)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_saved_policy_loads_with_plain_peft(
    shared_model: Make, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    model = shared_model()
    model.save_role("policy", tmp_path / "policy")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["adapter_config.json", "adapter_model.safetensors", "policy"]
    plain = PeftModel.from_pretrained(load_base(BaseSpec(str(tiny_model("llama"))), "cpu").model, tmp_path / "policy")
    ids = torch.tensor([[7, 8, 9, 10]])
    with model.role("policy"), torch.no_grad():
        logits = plain(ids, use_cache=False).logits
        # PEFT adds the adapter's product to the base's, this package the base's to the adapter's
        torch.testing.assert_close(model.causal(ids, use_cache=False).logits, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
def test_a_saved_reward_model_is_a_plain_sequence_classifier(
    shared_model: Make, tiny_model: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    model = shared_model(name)
    model.save_role("reward", tmp_path / "reward")
    classifier = AutoModelForSequenceClassification.from_pretrained(
        tiny_model(name),
        num_labels=1,
        pad_token_id=1,
        dtype=torch.float32,
        device_map={"": "cpu"},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
    )
    for module in classifier.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    plain = PeftModel.from_pretrained(classifier, tmp_path / "reward").eval()
    prompts, responses = random_lists()
    with torch.no_grad(), model.role("reward"):
        ours = response_scores(model, random_batch())
        theirs = [plain(torch.tensor([p + r])).logits.item() for p, r in zip(prompts, responses, strict=True)]
    torch.testing.assert_close(ours, torch.tensor(theirs), rtol=1e-4, atol=1e-5)


def test_reward_scores_are_the_same_after_a_reload(shared_model: Make, tmp_path: Path) -> None:
    model, batch = shared_model(), random_batch()
    with model.role("reward"), torch.no_grad():
        before = response_scores(model, batch)
    model.save_role("reward", tmp_path / "adapter")
    fresh = shared_model()
    fresh.load_role("reward2", tmp_path / "adapter")
    with fresh.role("reward2"), torch.no_grad():
        assert torch.equal(response_scores(fresh, batch), before)
    assert flags(fresh) == (None, False, [])
    fresh.copy_role("reward2", "value2", head="copy")
    train_step(fresh, "value2")


def test_saving_again_replaces_the_folder(shared_model: Make, tmp_path: Path) -> None:
    model = shared_model()
    (tmp_path / "a").mkdir()
    model.save_role("policy", tmp_path / "a" / "adapter")
    train_step(model, "policy")
    model.save_role("policy", tmp_path / "a" / "adapter")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["adapter"]
    saved = load_file(tmp_path / "a" / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.adapter_state("policy").items())


def test_a_failed_save_leaves_the_old_folder(
    shared_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shared_model()
    model.save_role("policy", tmp_path / "adapter")
    before = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("lora_rlhf.model.adapters.save_file", fail)
    with pytest.raises(OSError, match="no space"):
        model.save_role("policy", tmp_path / "adapter")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == before


def test_adapter_state_round_trip(shared_model: Make) -> None:
    model = shared_model()
    before = model.adapter_state("policy")
    train_step(model, "policy")
    model.load_adapter_state("policy", before)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.adapter_state("policy").items())
    with pytest.raises(ValueError, match="1 unknown"):
        model.load_adapter_state("policy", before | {"other": torch.zeros(1)})


def damage(folder: Path, how: str) -> None:
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    state, fields = load_file(weights), json.loads(config.read_text())
    name = next(iter(state))
    if how == "missing":
        del state[name]
    elif how == "unknown":
        state["base_model.model.lm_head.weight"] = torch.zeros(2)
    elif how == "shape":
        state[name] = state[name][:1].clone()
    elif how == "target":
        fields["target_modules"] = ["c_attn"]
    elif how == "init":
        fields["init_lora_weights"] = "pissa"
    elif how == "dora":
        fields["use_dora"] = True
    elif how == "kind":
        fields["peft_type"] = "IA3"
    save_file(state, weights)
    config.write_text(json.dumps(fields))
    if how == "no weights":
        weights.unlink()
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:100])


@pytest.mark.parametrize(
    ("how", "first"),
    [
        ("missing", False),
        ("missing", True),
        ("unknown", False),
        ("shape", True),
        ("target", False),
        ("target", True),
        ("init", False),
        ("dora", False),
        ("kind", False),
        ("no weights", False),
        ("truncated", True),
    ],
)
def test_a_damaged_adapter_is_refused_and_leaves_no_trace(
    shared_model: Make, tiny_model: Callable[[str], Path], tmp_path: Path, how: str, first: bool
) -> None:
    model = shared_model()
    model.save_role("policy", tmp_path / "good")
    model.save_role("policy", tmp_path / "bad")
    damage(tmp_path / "bad", how)
    if first:
        model = SharedModel(load_base(BaseSpec(str(tiny_model("llama"))), "cpu"))
    before = model.base_digest(), model.roles
    with pytest.raises(UserError, match="bad"):
        model.load_role("loaded", tmp_path / "bad")
    assert (model.base_digest(), model.roles) == before
    model.load_role("loaded", tmp_path / "good")
    train_step(model, "loaded")


def test_an_adapter_of_another_base_is_refused(shared_model: Make, tmp_path: Path) -> None:
    shared_model("gpt_neox").save_role("policy", tmp_path / "adapter")
    with pytest.raises(UserError, match="does not fit the base"):
        shared_model().load_role("loaded", tmp_path / "adapter")


def test_a_folder_that_is_not_there_is_refused(shared_model: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no adapter_config"):
        shared_model().load_role("loaded", tmp_path / "nowhere")
