"""Stage 1: what the model is trained on, that nothing else moves, and which epoch is kept."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lora_rlhf.configs.stages import RewardConfig, SFTConfig
from lora_rlhf.data.encode import EncodedExample, Limits, encode_demonstration
from lora_rlhf.data.refusals import RefusedRows
from lora_rlhf.data.schema import Demonstration, Prompt, choose_split
from lora_rlhf.data.template import render_prompt, stop_ids
from lora_rlhf.model.adapters import LoraSettings, read_adapter
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stages import reward, sft
from lora_rlhf.system.errors import UserError
from tests.support.stages import (
    DEMONSTRATIONS,
    LIMITS,
    RANKINGS,
    Models,
    manifest,
    open_model,
    results,
    rows_of,
    same,
    write_rows,
)

Config = Callable[..., SFTConfig]
VALIDATION = 0.2


@pytest.fixture
def config(tiny_model: Models, data: Path, tmp_path: Path) -> Config:
    """config(**changes) -> settings of a short run on a tiny Llama in 4 bits."""

    def make(name: str = "llama", **changes: Any) -> SFTConfig:
        usual = {
            "run": str(tmp_path / "run"),
            "model": str(tiny_model(name)),
            "demonstrations": str(data / "demonstrations.jsonl"),
            "learning_rate": 5e-3,
            "epochs": 1,
            "batch_size": 8,
            "lora_rank": 4,
            "validation_fraction": VALIDATION,
            **LIMITS,
        }
        return SFTConfig(**(usual | changes))

    return make


def is_held_out(row: dict[str, str], fraction: float = VALIDATION) -> bool:
    return choose_split(Prompt.of(row["prompt"]).key, fraction) == "validation"


# What is learned


def watch(model: SharedModel, seen: Callable[[dict[str, Any]], None]) -> None:
    """Calls `seen` with what each forward pass of the model under training is given; the first is the rehearsal."""

    def hook(_module: torch.nn.Module, _inputs: object, given: dict[str, Any]) -> None:
        if model.causal.training and torch.is_grad_enabled():
            seen(given)

    model.backbone.register_forward_pre_hook(hook, with_kwargs=True)


@pytest.mark.parametrize(
    "name", ["llama", "gemma", "qwen2", "gpt_neox"]
)  # own template or none; pad, pad = eos, no pad
def test_the_loss_is_on_the_answer_and_its_end_alone(
    config: Config, tiny_model: Models, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = open_model(tiny_model(name)), []
    compute = sft.counted_logprobs

    def record(model: SharedModel, labels: Tensor, counted: Tensor, **batch: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            batches.append({"labels": labels.where(counted, -100), **batch})
        return compute(model, labels, counted, **batch)

    monkeypatch.setattr(sft, "counted_logprobs", record)
    sft.train(config(name), model)
    batches = batches[1:]  # the first is the rehearsal of the largest step
    eos = model.tokenizer.eos_token_id
    learned, whole = [], []
    for batch in batches:
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            counted = labels != -100
            assert torch.equal(labels[counted], ids[counted])  # the model shifts them itself
            assert labels[counted].tolist().count(eos) == 1
            assert labels[counted][-1] == eos
            assert bool(mask[counted].all())
            learned.append(model.tokenizer.decode(labels[counted][:-1]).strip())
            whole.append(model.tokenizer.decode(ids[mask.bool()]))
    expected = [row for row in DEMONSTRATIONS if not is_held_out(row)]
    assert sorted(learned) == sorted(row["completion"] for row in expected)
    assert all(any(row["prompt"] in text and row["completion"] in text for text in whole) for row in expected)


def test_adapters_are_float32_and_untouched_before_the_first_step(config: Config, tiny_model: Models) -> None:
    settings = config()
    twin = open_model(tiny_model("llama"))
    torch.manual_seed(settings.seed)
    twin.add_role("sft", LoraSettings(rank=4, alpha=32.0))
    fresh = twin.adapter_state("sft")
    assert any(not torch.equal(value, value.bfloat16().float()) for value in fresh.values())

    model, states = open_model(tiny_model("llama")), []
    watch(model, lambda _given: states.append(model.adapter_state("sft")))
    sft.train(settings, model)
    assert all(value.dtype == torch.float32 for state in states for value in state.values())
    assert same(states[0], fresh) and same(states[1], fresh)  # the rehearsal left no trace
    assert not same(states[2], fresh)
    trained = model.adapter_state("sft")
    assert any(not torch.equal(value, value.bfloat16().float()) for value in trained.values())
    assert same(read_adapter(Path(settings.run) / "sft" / "adapter")[1], trained)


def test_only_the_sft_adapter_moves_and_the_loss_falls(config: Config, tiny_model: Models) -> None:
    model = open_model(tiny_model("llama"))
    digest = model.base_digest()
    for role, head in (("policy", False), ("reward", True)):
        model.add_role(role, LoraSettings(rank=2), head=head)
    others = {role: model.adapter_state(role) for role in ("policy", "reward")}
    settings = config(epochs=4, learning_rate=1e-2)
    sft.train(settings, model)
    assert all(same(state, model.adapter_state(role)) for role, state in others.items())
    assert model.base_digest() == digest
    assert model.active_role is None
    assert not any(parameter.requires_grad for parameter in model.causal.parameters())
    losses = [row["sft/loss"] for row in rows_of(settings.run, "sft") if "sft/loss" in row]
    assert len(losses) == 4 * -(-sum(not is_held_out(row) for row in DEMONSTRATIONS) // 8)
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    epochs = results(settings.run, "sft")["epochs"]
    assert epochs[-1]["loss"] < 0.9 * epochs[0]["loss"]


@pytest.mark.parametrize("changes", [{"micro_batch_size": 2}, {"gradient_checkpointing": True}])
def test_what_only_saves_memory_changes_no_result(config: Config, tmp_path: Path, changes: dict[str, Any]) -> None:
    """One step on the whole file; demonstrations of unlike lengths, so that a mean of means would show."""
    rows = [
        {**row, "completion": row["completion"] * (1 + number % 3)} for number, row in enumerate(DEMONSTRATIONS[:8])
    ]
    usual = {"demonstrations": write_rows(tmp_path / "uneven.jsonl", rows), "validation_fraction": 0.0}
    one = sft.train(config(run=str(tmp_path / "one"), **usual))
    other = sft.train(config(run=str(tmp_path / "other"), **usual, **changes))
    figures = [rows_of(tmp_path / run, "sft")[0] for run in ("one", "other")]
    assert figures[0]["sft/loss"] == pytest.approx(figures[1]["sft/loss"], rel=1e-5)
    assert figures[0]["sft/grad_norm"] == pytest.approx(figures[1]["sft/grad_norm"], rel=1e-4)
    state = other.adapter_state("sft")
    for name, value in one.adapter_state("sft").items():
        # Adam's first step is the gradient's sign: compare where it is not rounding that decides it
        assert (value - state[name]).abs().median() < 1e-6, name


def test_packing_gives_the_gradient_of_the_padded_batch(config: Config, tmp_path: Path) -> None:
    rows = [
        {**row, "completion": row["completion"] * (1 + number % 3)} for number, row in enumerate(DEMONSTRATIONS[:8])
    ]
    usual = {"demonstrations": write_rows(tmp_path / "uneven.jsonl", rows), "validation_fraction": 0.0}
    seen: list[dict[str, Any]] = []
    figures = []
    for name, packing in (("padded", False), ("packed", True)):
        model = open_model(Path(config().model))
        watch(model, lambda given: seen.append(given))
        sft.train(config(run=str(tmp_path / name), packing=packing, **usual), model)
        figures.append(rows_of(tmp_path / name, "sft")[0])
    _, padded, _, packed = seen
    assert packed["input_ids"].shape[0] == 1
    pad = model.tokenizer.pad_token_id  # padding stands after the text, without a mask
    assert packed["input_ids"].shape[1] == int((padded["input_ids"] != pad).sum()) < padded["input_ids"].numel()
    assert figures[0]["sft/loss"] == pytest.approx(figures[1]["sft/loss"], rel=1e-5)
    assert figures[0]["sft/grad_norm"] == pytest.approx(figures[1]["sft/grad_norm"], rel=1e-4)


def test_every_answer_of_a_conversation_is_learned_where_asked(config: Config, tmp_path: Path) -> None:
    turns = [
        message
        for row in DEMONSTRATIONS[:3]
        for message in ({"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]})
    ]
    path = write_rows(tmp_path / "talk.jsonl", [{"messages": turns}] * 4)
    for every_turn, count in ((False, 4), (True, 12)):
        settings = config(demonstrations=path, every_turn=every_turn, validation_fraction=0.0, overwrite=True)
        sft.train(settings)
        assert results(settings.run, "sft")["demonstrations"] == count


def test_conversations_that_continue_one_another_are_held_out_together(config: Config, tmp_path: Path) -> None:
    rows = []
    for row in DEMONSTRATIONS:
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        rows += [{"messages": turns}, {"messages": [*turns, {"role": "user", "content": "And?"}, turns[1]]}]
    settings = config(demonstrations=write_rows(tmp_path / "talks.jsonl", rows))
    sft.train(settings)
    held_out = sum(map(is_held_out, DEMONSTRATIONS))
    assert results(settings.run, "sft")["validation"] == 2 * held_out > 4


def test_long_responses_are_refused_or_cut_or_stop_the_stage(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{**row, "completion": row["completion"] * (20 if n < 2 else 1)} for n, row in enumerate(DEMONSTRATIONS)]
    usual = {"demonstrations": write_rows(tmp_path / "long.jsonl", rows), "validation_fraction": 0.0, "overwrite": True}
    sft.train(config(**usual))
    assert results(config().run, "sft")["demonstrations"] == len(rows) - 2
    assert "2 refused: the response has more than max_response_tokens=24 tokens" in caplog.text
    sft.train(config(**usual, long_responses="cut"))
    assert results(config().run, "sft")["demonstrations"] == len(rows)
    assert "2 responses cut at the limit" in caplog.text
    with pytest.raises(UserError, match=r"long\.jsonl:1: the response has more than .*--strict"):
        sft.train(config(**usual, strict=True))


# Which epoch is kept


def encoded(model: SharedModel, row: dict[str, str]) -> EncodedExample:
    demonstration = Demonstration(Prompt.of(row["prompt"]), row["completion"])
    example = encode_demonstration(model.tokenizer, demonstration, Limits(48, 24), RefusedRows())
    assert example is not None
    return example


def mean_loss(model: SharedModel, rows: list[dict[str, str]]) -> float:
    """Mean over answer tokens of -log p, one demonstration at a time."""
    total, count = 0.0, 0
    for row in rows:
        example = encoded(model, row)
        ids = torch.tensor([example.prompt_ids + example.response_ids])
        with torch.no_grad(), model.role("sft"):
            logits = model.causal(input_ids=ids, use_cache=False).logits[0]
        answer = slice(len(example.prompt_ids) - 1, -1)
        total += float(functional.cross_entropy(logits[answer], torch.tensor(example.response_ids), reduction="sum"))
        count += len(example.response_ids)
    return total / count


def test_the_best_epoch_is_kept_not_the_last(config: Config, tmp_path: Path) -> None:
    """Held-out answers are of letters that training never sees, so learning for long makes them ever less likely."""
    rows = [{**row, "completion": "zqxj zqxj"} if is_held_out(row) else row for row in DEMONSTRATIONS]
    settings = config(epochs=4, learning_rate=0.02, demonstrations=write_rows(tmp_path / "odd.jsonl", rows))
    model = sft.train(settings)
    found = results(settings.run, "sft")
    losses = [epoch["loss"] for epoch in found["epochs"]]
    assert losses[-1] > min(losses), "the last epoch was to be worse"
    assert found["selected_by"] == "loss"
    assert found["selected_epoch"] == 1 + losses.index(min(losses))
    held_out = [row for row in rows if is_held_out(row)]
    assert found["validation"] == len(held_out)
    assert mean_loss(model, held_out) == pytest.approx(min(losses), rel=1e-3)


def test_the_same_few_prompts_are_answered_after_each_epoch(config: Config) -> None:
    settings = config(epochs=3, learning_rate=1e-2)
    model = sft.train(settings)
    samples = rows_of(settings.run, "sft", "samples.jsonl")
    steps = sorted({row["step"] for row in samples})
    asked = [[row["prompt"] for row in samples if row["step"] == step] for step in steps]
    assert len(steps) == 3 and asked[0] == asked[1] == asked[2] and 0 < len(asked[0]) <= 8
    metrics = {row["step"]: row for row in rows_of(settings.run, "sft") if "samples/length" in row}
    assert sorted(metrics) == steps
    for step in steps:
        own = [row for row in samples if row["step"] == step]
        assert metrics[step]["samples/length"] == pytest.approx(sum(row["tokens"] for row in own) / len(own))
        assert all(row["tokens"] <= settings.max_response_tokens for row in own)
    texts = [[row["response"] for row in samples if row["step"] == step] for step in steps]
    assert texts[0] != texts[-1], "the model has changed"
    assert all(prompt in {model.tokenizer.decode(ids) for ids in _prompts(model)} for prompt in asked[0])


def _prompts(model: SharedModel) -> list[list[int]]:
    return [render_prompt(model.tokenizer, Prompt.of(row["prompt"])) for row in DEMONSTRATIONS]


@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_the_end_says_what_was_measured_and_that_few_steps_teach_little(
    config: Config, caplog: pytest.LogCaptureFixture, fraction: float
) -> None:
    settings = config(validation_fraction=fraction)
    with caplog.at_level("INFO", "lora_rlhf"):
        sft.train(settings)
    found = results(settings.run, "sft")
    measured = (
        f"validation loss {found['epochs'][-1]['loss']:.3f} nats a token (epoch {found['selected_epoch']} of"
        if fraction
        else f"loss {found['loss']:.3f} nats a token in the last one; no row was held out"
    )
    assert f"s: {found['steps']} step" in caplog.text and measured in caplog.text
    assert found["steps"] < 20 and f"only {found['steps']} step" in caplog.text


def test_without_validation_the_last_epoch_is_kept(config: Config) -> None:
    settings = config(validation_fraction=0.0)
    sft.train(settings)
    found = results(settings.run, "sft")
    assert (found["demonstrations"], found["validation"], found["selected_epoch"]) == (len(DEMONSTRATIONS), 0, None)


@pytest.mark.slow
def test_a_run_with_a_reward_model_selects_by_it(config: Config, data: Path) -> None:
    settings = config(epochs=3, learning_rate=0.05)
    sft.train(settings)
    rankings = str(data / "rankings.jsonl")
    reward_settings = RewardConfig(run=settings.run, rankings=rankings, learning_rate=5e-3, batch_size=8, **LIMITS)
    reward.train(reward_settings)
    judged = sft.train(config(epochs=3, learning_rate=0.05, overwrite=True, select_by="auto"))
    found = results(settings.run, "sft")
    scores = [epoch["reward"] for epoch in found["epochs"]]
    assert found["selected_by"] == "reward"
    assert len(set(scores)) > 1
    assert found["selected_epoch"] == 1 + scores.index(max(scores))
    offset = results(settings.run, "reward")["offset"]
    expected = judge_greedily(judged, Path(settings.run) / "reward" / "adapter") - offset
    assert max(scores) == pytest.approx(expected, abs=1e-4)
    # the reward model of the earlier round, which judged, does not stand in the way of this round's
    reward.train(RewardConfig(**(vars(reward_settings) | {"overwrite": True})), judged)


def judge_greedily(model: SharedModel, reward_adapter: Path) -> float:
    """Mean output of the head for greedy answers to the validation prompts, token by token with plain forwards."""
    if "again" not in model.roles:
        model.load_role("again", reward_adapter)
    scores = []
    for row in (row for row in DEMONSTRATIONS if is_held_out(row)):
        ids = list(encoded(model, row).prompt_ids)
        with torch.no_grad(), model.role("sft"):
            for _ in range(LIMITS["max_response_tokens"]):
                ids.append(int(model.causal(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
                if ids[-1] in stop_ids(model.tokenizer):
                    break
        with torch.no_grad(), model.role("again"):
            hidden = model.causal(input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=True)
            scores.append(float(model.head(hidden.hidden_states[-1][0, -1])))
    return sum(scores) / len(scores)


# Mistakes


def assert_refused(settings: SFTConfig, *parts: str) -> None:
    """One UserError that names all of these, and nothing written."""
    with pytest.raises(UserError) as error:
        sft.train(settings)
    for part in parts:
        assert part in str(error.value)
    assert not (Path(settings.run) / "sft").exists()


def test_selecting_by_a_reward_model_that_is_not_there(config: Config) -> None:
    settings = config(select_by="reward")
    assert_refused(settings, f"{settings.run}/reward: no reward stage there", "lora-rlhf reward")


def test_all_demonstrations_held_out(config: Config, tmp_path: Path) -> None:
    rows = [row for row in DEMONSTRATIONS if is_held_out(row)]
    path = write_rows(tmp_path / "few.jsonl", rows)
    assert_refused(config(demonstrations=path), "few.jsonl", f"none of its {len(rows)}", "validation_fraction 0.2")


def test_a_held_out_row_that_does_not_fit_is_left_out(config: Config, tmp_path: Path) -> None:
    long = next(row for row in DEMONSTRATIONS if is_held_out(row))
    rows = [{**row, "completion": row["completion"] * (20 if row is long else 1)} for row in DEMONSTRATIONS]
    settings = config(demonstrations=write_rows(tmp_path / "long.jsonl", rows))
    sft.train(settings)
    found = results(settings.run, "sft")
    held_out = sum(map(is_held_out, rows))
    assert held_out > 1
    assert (found["demonstrations"], found["validation"]) == (len(rows) - held_out, held_out - 1)


def test_a_split_that_would_be_empty_names_the_fraction_that_is_enough(config: Config, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "few.jsonl", [row for row in DEMONSTRATIONS if not is_held_out(row)][:6])
    with pytest.raises(UserError, match=r"few\.jsonl: validation_fraction 0\.2 holds out none of its 6 rows") as error:
        sft.train(config(demonstrations=path))
    enough = float(re.search(r"--validation_fraction ([\d.]+) would", str(error.value))[1])
    sft.train(config(demonstrations=path, validation_fraction=enough))
    sft.train(config(demonstrations=path, validation_fraction=0.0, overwrite=True))


def test_no_row_fits(config: Config) -> None:
    assert_refused(config(max_response_tokens=1), "none of its 30 rows is left", "max_response_tokens=1")


def test_the_chosen_layers_alone_have_adapters(config: Config) -> None:
    chosen = config(lora_targets=("attention", "up_proj"))
    names = dict(sft.train(chosen).named_parameters_of("sft"))
    assert {name.split(".")[-3] for name in names} == {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj"}
    with pytest.raises(UserError, match=r"'nothing' is no linear layer .*q_proj"):
        sft.train(config(lora_targets=("nothing",), overwrite=True))


def test_an_empty_file(config: Config, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "empty.jsonl", [])
    assert_refused(config(demonstrations=path), "empty.jsonl", "empty")


def test_more_tokens_than_the_context(config: Config) -> None:
    assert_refused(config(max_prompt_tokens=240), "max_prompt_tokens 240", "max_response_tokens 24", "264", "256")


def test_a_finished_stage_is_not_replaced_unasked(config: Config) -> None:
    settings = config()
    sft.train(settings)
    made = manifest(settings.run, "sft")
    with pytest.raises(UserError, match="overwrite"):
        sft.train(settings)
    assert manifest(settings.run, "sft") == made
    sft.train(config(overwrite=True))
    assert manifest(settings.run, "sft")["id"] != made["id"]


def test_the_manifest_says_what_was_done(config: Config, data: Path) -> None:
    settings = config()
    model = sft.train(settings)
    made = manifest(settings.run, "sft")
    assert (made["status"], made["stage"], made["parents"]) == ("finished", "sft", {})
    assert made["base"]["source_hash"] == model.base.source_hash
    assert (made["base"]["quantization"], made["base"]["name"]) == ("nf4", settings.model)
    assert made["base"]["chat_template"] == model.tokenizer.chat_template
    assert made["data"]["demonstrations"]["path"] == str(data / "demonstrations.jsonl")
    assert len(RANKINGS) == len(DEMONSTRATIONS) == made["results"]["demonstrations"] + made["results"]["validation"]
