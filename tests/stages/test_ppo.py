"""Stage 3 as a whole: it starts where it should, learns what it is paid for, and leaves everything else as it was."""

import gc
import json
import re
import shutil
import statistics
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from lora_rlhf.configs.stages import PPOConfig, RewardConfig, SFTConfig
from lora_rlhf.model.adapters import read_adapter
from lora_rlhf.model.memory import adapter_bytes, count_quantized_storages
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stages import ppo, reward, sft
from lora_rlhf.system.errors import Stopped, UserError
from tests.support.stages import (
    DEMONSTRATIONS,
    LIMITS,
    Models,
    manifest,
    open_model,
    results,
    rows_of,
    same,
    write_rows,
)

Config = Callable[..., PPOConfig]

# With these, some responses end by themselves and some do not.
SOME_END: dict[str, Any] = {"batch_size": 64, "max_response_tokens": 24}


@pytest.fixture
def config(parents: Path, data: Path, tmp_path: Path) -> Config:
    """config(**changes) -> PPO in a run of its own, on the shared SFT and reward stages."""

    def make(name: str = "run", **changes: Any) -> PPOConfig:
        usual = {
            "run": str(tmp_path / name),
            "prompts": str(data / "prompts.jsonl"),
            "sft": str(parents / "sft"),
            "reward": str(parents / "reward"),
            "accept_chance_reward": True,  # of the few rankings here
            "iterations": 2,
            "batch_size": 8,
            "minibatch_size": 8,
            "policy_learning_rate": 1e-3,
            "warmup_iterations": 0,
            **LIMITS,
            "max_response_tokens": 6,
        }
        return PPOConfig(**(usual | changes))

    return make


def column(settings: PPOConfig, key: str) -> list[float]:
    return [row[key] for row in rows_of(settings.run, "ppo")]


# Where it starts


def test_policy_and_value_begin_as_exact_copies(
    config: Config, tiny_model: Models, parents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(tiny_model("llama"))
    seen: list[dict[str, dict[str, Tensor]]] = []
    roles = ("sft", "reward", "policy", "value")
    act = ppo.PPO.act

    def watched(self, *given):
        seen.append({role: model.adapter_state(role) for role in roles})
        return act(self, *given)

    monkeypatch.setattr(ppo.PPO, "act", watched)
    settings = config()
    ppo.train(settings, model)
    start, second = seen[0], seen[2]  # between them the samples, which are judged too
    assert same(start["sft"], read_adapter(parents / "sft" / "adapter")[1])
    assert same(start["reward"], read_adapter(parents / "reward" / "adapter")[1])
    assert same(start["policy"], start["sft"])
    assert same(start["value"], start["reward"])
    for role in roles:
        frozen = role in ("sft", "reward")
        assert same(second[role], start[role]) == frozen
        assert same(model.adapter_state(role), start[role]) == frozen
    saved = {"policy": "adapter", "value": "value_adapter"}
    for role, folder in saved.items():
        assert same(read_adapter(Path(settings.run) / "ppo" / folder)[1], model.adapter_state(role))


def test_before_the_first_update_the_kl_is_exactly_0_and_the_ratio_1(config: Config) -> None:
    settings = config(reference="sft", iterations=1)
    ppo.train(settings)
    (first,) = rows_of(settings.run, "ppo")
    assert (first["rollout/kl"], first["rollout/kl_k3"]) == (0.0, 0.0)
    assert first["ppo/ratio_deviation"] < 1e-5


def test_the_bare_base_as_reference(config: Config) -> None:
    settings = config(reference="base", iterations=1)
    ppo.train(settings)
    (first,) = rows_of(settings.run, "ppo")
    assert abs(first["rollout/kl"]) > 0.01
    assert first["rollout/kl_k3"] > 0.01
    assert first["ppo/ratio_deviation"] < 1e-5
    assert results(settings.run, "ppo")["reference"] == "base"


def test_values_start_in_units_of_the_score(config: Config) -> None:
    """At the last token, before EOS, the value model is the reward model: it predicts scores, offset taken off."""
    settings = config(iterations=1, missing_eos_score=None, kl_coef=0.0, lam=1.0)
    ppo.train(settings)
    (first,) = rows_of(settings.run, "ppo")
    assert first["ppo/value_loss"] < 5 * (1 + first["rollout/score_sd"] ** 2)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(config: Config) -> None:
    one, again, other = config("one"), config("again"), config("other", seed=1)
    models = [ppo.train(settings) for settings in (one, again, other)]
    states = [model.adapter_state("policy") for model in models]
    assert same(states[0], states[1])
    assert not same(states[0], states[2])
    assert column(one, "rollout/score") == column(again, "rollout/score")


# What it learns


LEARNING = {
    "reward_model_weight": 0.0,
    "iterations": 15,
    "batch_size": 64,
    "minibatch_size": 32,
    "micro_batch_size": 32,
    "generation_batch_size": 64,
    "policy_learning_rate": 2e-2,
    "value_learning_rate": 1e-2,
    "max_response_tokens": 4,
    "missing_eos_score": None,
    "kl_coef": 0.0,
    "stop_at_approx_kl": None,
    "sample_every": 100,
}


@pytest.mark.slow
@pytest.mark.parametrize("advantage", ["gae", pytest.param("rloo", marks=pytest.mark.long)])
def test_a_countable_reward_rises_and_its_sign_flip_falls(config: Config, advantage: str) -> None:
    """The share of ASCII characters, about 0.55 at the start, with a standard error of 0.03 in each iteration."""
    usual = LEARNING | {"advantage": advantage, "samples_per_prompt": 1 if advantage == "gae" else 4}
    up = config("up", reward_function="tests.support.rewards:ascii_share", **usual)
    down = config("down", reward_function="tests.support.rewards:minus_ascii_share", **usual)
    for settings in (up, down):
        ppo.train(settings)
    risen, fallen = column(up, "rollout/score"), [-score for score in column(down, "rollout/score")]
    assert risen[0] == fallen[0]
    assert sum(risen[-3:]) / 3 > risen[0] + 0.15
    assert sum(fallen[-3:]) / 3 < fallen[0] - 0.15


@pytest.mark.slow
def test_a_price_on_kl_keeps_the_policy_near(config: Config) -> None:
    usual = LEARNING | {
        "advantage": "rloo",
        "samples_per_prompt": 4,
        "reward_function": "tests.support.rewards:ascii_share",
        "iterations": 12,
    }
    free, held = config("free", **usual), config("held", **usual | {"kl_coef": 1.0})
    for settings in (free, held):
        ppo.train(settings)
    near, far = (sum(column(settings, "rollout/kl")[-3:]) / 3 for settings in (held, free))
    assert near < 0.85 * far


@pytest.mark.slow
def test_adaptive_kl_follows_the_measured_kl(config: Config) -> None:
    """Ziegler et al.: times 1 + clip(KL / target - 1, -0.2, 0.2) * batch / horizon, from what the rollout measured."""
    settings = config(
        **LEARNING | {"iterations": 6, "kl_coef": 0.1, "kl_target": 0.5, "kl_horizon": 128.0},
        reward_function="tests.support.rewards:ascii_share",
    )
    ppo.train(settings)
    coefs, kls = column(settings, "ppo/kl_coef"), column(settings, "rollout/kl")
    expected = [0.1]
    for kl in kls:
        expected.append(expected[-1] * (1 + min(max(kl / 0.5 - 1, -0.2), 0.2) * 64 / 128))
    assert coefs == pytest.approx(expected[:-1])
    assert coefs[1] == pytest.approx(0.09)  # the first KL is 0
    assert kls[-1] > 0.5
    assert coefs[-1] > min(coefs)
    found = results(settings.run, "ppo")
    assert found["kl_coef"] == pytest.approx(expected[-1])
    assert found["kl"] == pytest.approx(sum(kls) / len(kls))


@pytest.mark.parametrize(
    ("changes", "horizon"),
    [
        ({"iterations": 60, "batch_size": 64}, 640.0),
        ({"iterations": 2, "batch_size": 64}, 64.0),  # at least a batch
        ({"iterations": 10_000, "batch_size": 64}, 10_000.0),
        ({"iterations": 60, "batch_size": 64, "kl_horizon": 128.0}, 128.0),
    ],
)
def test_the_horizon_follows_the_length_of_the_run(config: Config, changes: dict[str, Any], horizon: float) -> None:
    assert config(**changes).horizon == horizon


def test_the_end_says_how_score_and_kl_stand_to_their_target(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "lora_rlhf"):
        ppo.train(config(kl_target=50.0))
    found = re.search(
        r"ppo: finished in \d+ s: score (\S+) in the first.*; KL (\S+) nats a response \(target 50\)", caplog.text
    )
    assert found is not None
    assert f"KL ended at {float(found[2]) / 50:.2f} times its target" in caplog.text


@pytest.mark.parametrize("advantage", ["rloo", "grpo", "dr_grpo", "reinforce"])
def test_critic_free_variants_have_no_value_role(config: Config, advantage: str) -> None:
    settings = config(advantage=advantage, samples_per_prompt=2, missing_eos_score=None)
    model = ppo.train(settings)
    assert "value" not in model.roles
    assert not (Path(settings.run) / "ppo" / "value_adapter").exists()
    assert not any("value" in key for key in rows_of(settings.run, "ppo")[0])


def test_the_choices_work_together(config: Config) -> None:
    """DAPO's: clip-higher, token-level loss, equal groups skipped, overlong masked; and the KL as a loss."""
    choices: dict[str, Any] = {
        "clip_range_high": 0.28,
        "kl_in": "loss",
        "skip_equal_groups": True,
        "mask_overlong": True,
    }
    settings = config(advantage="grpo", samples_per_prompt=4, loss_level="sequence", **choices, **SOME_END)
    ppo.train(settings)
    first, second = rows_of(settings.run, "ppo")
    assert first["ppo/masked_overlong"] == pytest.approx(64 * (1 - first["rollout/eos_rate"]))
    assert first["ppo/masked_overlong"] > 0
    assert first["ppo/skipped_groups"] >= 0 and first["ppo/updates"] > 0
    assert second["ppo/kl_loss"] > 0


def test_siblings_that_are_all_worth_the_same_teach_nothing_and_say_so(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with a verifiable reward that no response earns yet."""
    settings = config(
        reward_model_weight=0.0,
        reward_function="tests.support.rewards:nothing",
        advantage="rloo",
        samples_per_prompt=2,
        missing_eos_score=None,
    )
    with pytest.raises(Stopped, match="nothing was learned in 2 iterations: the policy is what it began as"):
        ppo.train(settings)
    assert "iteration 1: all responses to a prompt are worth the same (mean score 0)" in capsys.readouterr().out
    assert manifest(settings.run, "ppo")["status"] == "running"


@pytest.mark.parametrize("reference", ["sft", "init"])
def test_goes_on_from_an_earlier_policy_held_to_either(config: Config, parents: Path, reference: str) -> None:
    first = config("first")
    ppo.train(first)
    trained = read_adapter(Path(first.run) / "ppo" / "adapter")[1]
    settings = config("second", init=f"{first.run}/ppo", reference=reference)
    model = ppo.train(settings)
    assert same(model.adapter_state("init"), trained)
    assert not same(model.adapter_state("policy"), trained)
    own = {"sft": read_adapter(parents / "sft" / "adapter")[1], "init": trained}
    assert same(model.adapter_state(reference), own[reference])
    # against the SFT model the second run begins where the first one has come to
    assert (column(settings, "rollout/kl")[0] == pytest.approx(0, abs=1e-6)) == (reference == "init")
    assert manifest(settings.run, "ppo")["parents"]["init"]["id"] == manifest(first.run, "ppo")["id"]


def test_a_policy_to_go_on_from_must_be_one(config: Config, parents: Path) -> None:
    for changes, message in [
        ({"init": str(parents / "reward")}, "holds no stage with a policy"),
        ({"init": str(parents)}, "holds no stage with a policy"),
        ({"reference": "init"}, "reference is init, but init names no policy"),
    ]:
        with pytest.raises(UserError, match=message):
            ppo.train(config(**changes))


def test_without_a_reward_model_none_is_asked_for(config: Config, tmp_path: Path) -> None:
    settings = config(
        reward_model_weight=0.0, reward_function="tests.support.rewards:lengths", reward=str(tmp_path / "nowhere")
    )
    model = ppo.train(settings)
    assert "reward" not in model.roles
    assert "value" in model.roles
    assert manifest(settings.run, "ppo")["parents"].keys() == {"sft"}


@pytest.mark.slow
def test_a_response_that_does_not_end_gets_the_fixed_score(config: Config) -> None:
    """A function that pays nothing, so that the mean score is -7 times the share that did not end."""
    usual = {
        "reward_model_weight": 0.0,
        "reward_function": "tests.support.rewards:nothing",
        "iterations": 1,
        **SOME_END,
    }
    settings, left = config("fixed", missing_eos_score=-7.0, **usual), config("left", missing_eos_score=None, **usual)
    for one in (settings, left):
        ppo.train(one)
    (first,) = rows_of(settings.run, "ppo")
    assert 0.0 < first["rollout/eos_rate"] < 1.0
    assert first["rollout/score"] == pytest.approx(-7.0 * (1 - first["rollout/eos_rate"]))
    assert column(left, "rollout/score") == [0.0]


@pytest.mark.slow
def test_pretraining_text_is_mixed_in(config: Config, data: Path) -> None:
    """With a large coefficient the policy learns the text, and its loss on it falls."""
    settings = config(pretraining_text=str(data / "text.jsonl"), ptx_batch_size=4, ptx_block_tokens=16, iterations=12)
    ppo.train(settings)
    losses = column(settings, "ppo/ptx_loss")
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])


def test_learning_rates_warm_up(config: Config) -> None:
    """From a tenth of the peak: Adam's first step moves an entry by the learning rate."""
    settings = config(iterations=1, num_epochs=1, warmup_iterations=10)
    model = ppo.train(settings)
    start = model.adapter_state("sft")
    moved = max(float((value - start[name]).abs().max()) for name, value in model.adapter_state("policy").items())
    assert moved == pytest.approx(1e-4, rel=0.01)


# What it leaves behind


def test_metrics_and_samples(config: Config) -> None:
    settings = config(iterations=5, sample_every=2, missing_eos_score=None)
    model = ppo.train(settings)
    rows = rows_of(settings.run, "ppo")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    parts = {
        "rollout": "score kl length eos_rate",
        "ppo": "policy_loss value_loss clip_fraction approx_kl entropy explained_variance kl_coef grad_norm",
        "time": "rollout_s score_s update_s tokens_per_s",
        "memory": "peak_gib",
    }
    for row in rows:
        assert {f"{part}/{name}" for part, names in parts.items() for name in names.split()} <= row.keys()
        seconds = row["time/rollout_s"] + row["time/score_s"] + row["time/update_s"]
        assert row["time/tokens_per_s"] == pytest.approx(row["rollout/length"] * 8 / seconds)
        assert 0.05 < row["memory/peak_gib"] < 100
    total = results(settings.run, "ppo")["seconds"]
    assert total["update_s"] == pytest.approx(sum(row["time/update_s"] for row in rows), abs=0.01)  # rounded to 0.01
    samples = rows_of(settings.run, "ppo", "samples.jsonl")
    asked = [row["prompt"] for row in samples if row["step"] == 1]
    assert len(asked) == 8
    assert set(asked) <= {row["prompt"] for row in DEMONSTRATIONS}
    for step in (3, 5):
        assert [row["prompt"] for row in samples if row["step"] == step] == asked
    assert {row["step"] for row in samples} == {1, 3, 5}
    for row in rows:
        quick = {name: value for name, value in row.items() if name.startswith("samples/")}
        assert bool(quick) is (row["step"] in (1, 3, 5))
        mine = [one for one in samples if one["step"] == row["step"]]
        if mine:
            answers = [one["response"] for one in mine]
            pairs = [pair for text in answers for pair in pairwise(text.split())]
            assert quick["samples/length"] == pytest.approx(statistics.fmean(one["tokens"] for one in mine))
            assert quick["samples/kl"] == pytest.approx(statistics.fmean(one["kl"] for one in mine), abs=1e-6)
            assert quick["samples/distinct_2"] == pytest.approx(len(set(pairs)) / len(pairs))
            assert 0 <= quick["samples/eos_rate"] <= 1 and quick["samples/entropy"] > 0
            assert quick["samples/score"] == pytest.approx(statistics.fmean(one["score"] for one in mine), abs=1e-6)
            assert all(
                len(model.tokenizer.encode(one["response"].replace("\ufffd", ""))) <= one["tokens"] for one in mine
            )
    assert abs(rows[0]["samples/kl"]) > 1e-4, "after the first update"


def storage_bytes(model: SharedModel) -> int:
    """Bytes of every distinct storage under the model."""
    tensors = [*model.causal.parameters(), *model.causal.buffers()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.slow
def test_three_stages_share_one_base_and_leave_it_as_it_was(
    config: Config, tiny_model: Models, data: Path, tmp_path: Path
) -> None:
    gc.collect()
    before = count_quantized_storages()
    model = open_model(tiny_model("llama"))
    digest, alone = model.base_digest(), storage_bytes(model)
    run = str(tmp_path / "run")
    demonstrations, rankings = str(data / "demonstrations.jsonl"), str(data / "rankings.jsonl")
    common = {"run": run, "batch_size": 8, **LIMITS}
    sft.train(SFTConfig(model=str(tiny_model("llama")), demonstrations=demonstrations, epochs=1, **common), model)
    reward.train(RewardConfig(rankings=rankings, **common), model)
    ppo.train(config(sft=None, reward=None), model)
    gc.collect()
    assert model.base_digest() == digest
    assert count_quantized_storages() - before == 2 * 7  # layers x linear layers in each
    assert set(model.roles) == {"base", "sft", "reward", "policy", "value", "reference"}
    adapters = sum(adapter_bytes(model, role) for role in ("sft", "reward", "policy", "value"))
    assert storage_bytes(model) == alone + adapters  # so the reference adds nothing
    parents = manifest(run, "ppo")["parents"]
    assert {name: parent["id"] for name, parent in parents.items()} == {
        name: manifest(run, name)["id"] for name in ("sft", "reward")
    }


def test_dropout_is_for_sft_alone(config: Config, tiny_model: Models, data: Path, tmp_path: Path) -> None:
    """In PPO it would move the ratio off 1 before anything was learnt."""
    run = str(tmp_path / "dropout")
    common = {"run": run, "batch_size": 8, **LIMITS}
    demonstrations = str(data / "demonstrations.jsonl")
    settings = SFTConfig(
        model=str(tiny_model("llama")), demonstrations=demonstrations, epochs=1, lora_dropout=0.3, **common
    )
    model = sft.train(settings)
    reward.train(RewardConfig(rankings=str(data / "rankings.jsonl"), **common), model)
    own = config(sft=f"{run}/sft", reward=f"{run}/reward", iterations=1)
    ppo.train(own)
    assert column(own, "ppo/ratio_deviation")[0] < 1e-5


# A run that teaches nothing, or something unwanted, says so


def test_a_reward_model_by_chance_is_used_only_if_asked_for(config: Config, parents: Path, tmp_path: Path) -> None:
    for rate, low, fits in ((0.6, 0.45, False), (0.7, 0.55, True)):
        copy = tmp_path / f"reward{rate}"
        shutil.copytree(parents / "reward", copy)
        found = json.loads((copy / "manifest.json").read_text())
        found["results"] |= {"accuracy": {"rate": rate, "low": low, "high": 0.8}, "held_out_pairs": 12}
        (copy / "manifest.json").write_text(json.dumps(found))
        settings = config(f"run{rate}", reward=str(copy), iterations=1, accept_chance_reward=False)
        if fits:
            ppo.train(settings)
            continue
        message = (
            r"no better than chance: held-out accuracy 0.600 \(95 % interval 0.450 to 0.800\) on 12 pairs.*--accept"
        )
        with pytest.raises(UserError, match=message):
            ppo.train(settings)
        assert not Path(settings.run).exists()


@pytest.mark.parametrize("is_measured", [True, False])
def test_a_reward_model_that_was_not_measured_is_named(
    config: Config, parents: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, is_measured: bool
) -> None:
    copy = tmp_path / "reward"
    shutil.copytree(parents / "reward", copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    measured = {"accuracy": {"rate": 0.7, "low": 0.55, "high": 0.8}, "held_out_pairs": 12}
    manifest["results"] |= measured if is_measured else {"accuracy": None}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    ppo.train(config("run", reward=str(copy), iterations=1, accept_chance_reward=False))
    assert ("better than chance is not known" in caplog.text) is not is_measured


@pytest.mark.parametrize(("fixed", "warns"), [(5.0, True), (-50.0, False)])
def test_never_ending_must_not_pay(
    config: Config, capsys: pytest.CaptureFixture[str], fixed: float, warns: bool
) -> None:
    ppo.train(config(missing_eos_score=fixed, iterations=1, **SOME_END))
    assert ("never ending pays; lower missing_eos_score" in capsys.readouterr().out) is warns


def test_responses_none_of_which_ends_are_named(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    ppo.train(config(iterations=1, max_response_tokens=2))
    assert "none of 8 responses ended within max_response_tokens 2; raise it" in capsys.readouterr().out


def test_the_fixed_score_is_in_units_of_what_it_stands_in_for(config: Config) -> None:
    """A function that pays 3 times nothing: a response that does not end gets 3 times the fixed score."""
    usual = {"reward_model_weight": 0.0, "reward_function": "tests.support.rewards:nothing", "iterations": 1}
    settings = config(**usual, **SOME_END, reward_function_weight=3.0, missing_eos_score=-7.0)
    ppo.train(settings)
    (row,) = rows_of(settings.run, "ppo")
    assert 0.0 < row["rollout/eos_rate"] < 1.0
    assert row["rollout/score"] == pytest.approx(-21.0 * (1 - row["rollout/eos_rate"]))


@pytest.mark.parametrize(("rate", "words"), [(1e-6, "will hardly move"), (0.5, "may destroy")])
def test_an_odd_learning_rate_gets_a_line(
    config: Config, caplog: pytest.LogCaptureFixture, rate: float, words: str
) -> None:
    with caplog.at_level("WARNING"):
        ppo.train(config(iterations=1, value_learning_rate=rate, max_kl=None, max_ratio=None))
    assert (
        f"learning rate of value: {rate:g} is outside the usual 1e-05 to 0.01 for LoRA; training {words}" in caplog.text
    )


# Mistakes


def assert_refused(settings: PPOConfig, *parts: str) -> None:
    """One UserError that names all of these, before anything is written."""
    with pytest.raises(UserError) as error:
        ppo.train(settings)
    for part in parts:
        assert part in str(error.value), str(error.value)
    assert not (Path(settings.run) / "ppo").exists()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"batch_size": 12}, ("batch_size is 12", "minibatch_size 8", "8 or 16")),
        ({"samples_per_prompt": 3}, ("batch_size is 8", "samples_per_prompt 3", "6 or 9")),
        ({"advantage": "rloo"}, ("rloo", "samples_per_prompt must be at least 2")),
        ({"advantage": "dr_grpo"}, ("dr_grpo", "samples_per_prompt must be at least 2")),
        ({"skip_equal_groups": True}, ("skip_equal_groups is for rloo, grpo and dr_grpo; with gae",)),
        ({"clip_range_high": 0.0}, ("clip_range_high is 0.0, must be above 0",)),
        ({"reward_model_weight": 0.0}, ("no reward_function",)),
        ({"reward_function": "no where"}, ("'no where=1.0' is not of the form NAME, NAME=WEIGHT",)),
        ({"reward_function": "nowhere"}, ("no reward function is called 'nowhere'", "numeric_answer", "think_format")),
        ({"reward_functions": ("numeric_answer",)}, ("needs the column 'answer'", "their other columns are: none")),
        ({"reward_functions": ("regex(patern='x')",)}, ("has no parameter 'patern'; it has text, pattern",)),
        ({"reward_functions": ("tests.support.rewards:later",)}, ("'tests.support.rewards:later' is async",)),
        ({"reward_function": "nowhere:f"}, ("'nowhere:f' cannot be imported", "PYTHONPATH")),
        ({"reward_function": "tests.support.rewards:gone"}, ("'tests.support.rewards:gone' cannot be imported",)),
        ({"reward_function": "tests.support.rewards:NOT_A_FUNCTION"}, ("is a int, not a function",)),
        ({"max_prompt_tokens": 251}, ("max_prompt_tokens 251", "257 tokens", "context", "256")),
        ({"max_prompt_tokens": 2}, ("none of its 30 prompts is left", "raise max_prompt_tokens")),
        ({"kl_target": 1.0, "kl_horizon": 4.0}, ("kl_horizon 4 is below batch_size 8",)),
        ({"gamma": 1.5, "lam": -1.0}, ("gamma is 1.5", "lam is -1")),
    ],
)
def test_settings_that_can_not_work(config: Config, changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    assert_refused(config(**changes), *parts)


def test_missing_parents(config: Config, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    assert_refused(config(sft=None), f"{run}/sft: no sft stage there", f"run `lora-rlhf sft --run {run}` first")
    assert_refused(config(reward=None), f"{run}/reward: no reward stage there", "run `lora-rlhf reward")


def test_empty_prompts(config: Config, tmp_path: Path) -> None:
    assert_refused(config(prompts=write_rows(tmp_path / "empty.jsonl", [])), "empty.jsonl", "empty")


def test_parents_on_different_bases(config: Config, parents: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    made = manifest(parents, "reward")
    made["base"]["quantization"] = "int8"
    (other / "manifest.json").write_text(json.dumps(made))
    assert_refused(config(reward=str(other)), "quantization", "'int8'", "'nf4'", str(other), "one base")


def test_a_reward_model_of_another_sft_model_is_said(
    config: Config, parents: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "other"
    shutil.copytree(parents / "sft", other)
    made = manifest(parents, "sft") | {"id": "0123456789abcdef"}
    (other / "manifest.json").write_text(json.dumps(made))
    ppo.train(config(iterations=1))
    assert "another SFT model" not in caplog.text
    ppo.train(config("again", sft=str(other), iterations=1))
    assert f"{parents / 'reward'} was trained from another SFT model than {other}" in caplog.text


def test_another_base_than_the_parents(config: Config, tiny_model: Models) -> None:
    assert_refused(config(model=str(tiny_model("gemma"))), "gemma", "llama")


def test_a_base_whose_files_have_changed(config: Config, parents: Path, tmp_path: Path) -> None:
    changed = tmp_path / "sft"
    changed.mkdir()
    made = manifest(parents, "sft")
    made["base"]["source_hash"] = "0" * 64
    (changed / "manifest.json").write_text(json.dumps(made))
    settings = config(sft=str(changed), reward_model_weight=0.0, reward_function="tests.support.rewards:nothing")
    assert_refused(settings, "files have changed", "0" * 16)


@pytest.mark.parametrize("name", ["too_few", "not_a_number", "words", "one_number", "a_column", "none", "endless"])
def test_a_reward_function_that_returns_something_else(config: Config, name: str) -> None:
    assert_refused(
        config(reward_function=f"tests.support.rewards:{name}"), name, "called once to try it: it", "returned"
    )


@pytest.mark.parametrize("role", ["policy", "value"])
def test_a_role_that_does_not_move_is_an_error(config: Config, role: str) -> None:
    with pytest.raises(Stopped, match=f"the {role} adapter did not move: nothing is learned"):
        ppo.train(config(**{f"{role}_learning_rate": 1e-30}))


def test_prompts_longer_than_the_limit_lose_their_beginning(config: Config, tmp_path: Path) -> None:
    rows = [{"prompt": f"{'Count the ships. ' * 20}Say the {word}?"} for word in ("boat", "river")]
    settings = config(prompts=write_rows(tmp_path / "long.jsonl", rows))
    ppo.train(settings)
    assert results(settings.run, "ppo")["prompts"] == 2
