"""Stage 2: the ranking loss on a real model, calibration, and what is told of the result."""

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lora_rlhf.configs.stages import RewardConfig, SFTConfig
from lora_rlhf.data.encode import EncodedRanking
from lora_rlhf.data.schema import Prompt, choose_split
from lora_rlhf.data.template import render_prompt, render_response
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stages import reward, reward_scores, sft
from lora_rlhf.stages.auto_batch import AutoBatch
from lora_rlhf.stages.reward_report import held_out_report
from lora_rlhf.stages.trainer import RoleOptimizer
from lora_rlhf.system.errors import UserError
from tests.support.stages import (
    DEMONSTRATIONS,
    LIMITS,
    RANKINGS,
    Models,
    gradients,
    manifest,
    open_model,
    random_rankings,
    results,
    rows_of,
    same,
    write_rows,
)

Make = Callable[..., SharedModel]
UPDATE = RewardConfig(run="unused", rankings="unused", max_grad_norm=1e9)  # for single updates: never clipped


def scores_alone(model: SharedModel, ranking: EncodedRanking) -> Tensor:
    """(K,) with a graph: each response by itself, unpadded, through plain transformers."""
    scores = []
    for response in ranking.response_ids:
        ids = torch.tensor([ranking.prompt_ids + response])
        out = model.causal(input_ids=ids, use_cache=False, output_hidden_states=True)
        scores.append(model.head(out.hidden_states[-1][0, -1]).squeeze())
    return torch.stack(scores)


def pairwise(scores: Tensor, ranks: list[int]) -> Tensor:
    """InstructGPT, eq. 1, for one prompt: log(1 + e^-(winner - loser)), mean over the pairs that are not ties."""
    order = itertools.permutations(range(len(ranks)), 2)
    losses = [functional.softplus(scores[b] - scores[a]) for a, b in order if ranks[a] < ranks[b]]
    return torch.stack(losses).mean()


def listwise(scores: Tensor, ranks: list[int]) -> Tensor:
    """Plackett-Luce: each is drawn from itself and those below; mean over draws that have a loser."""
    draws = []
    for score, rank in zip(scores, ranks, strict=True):
        below = [other for other, place in zip(scores, ranks, strict=True) if place > rank]
        if below:
            draws.append(torch.stack([score, *below]).logsumexp(0) - score)
    return torch.stack(draws).mean()


# Learning


def optimizer_of(model: SharedModel, rate: float, size: int = 8) -> RoleOptimizer:
    return RoleOptimizer(UPDATE, model, "reward", rate, AutoBatch("micro_batch_size", size, "advice"))


@pytest.mark.slow
def test_one_batch_is_learnt_by_heart(shared_model: Make) -> None:
    """99 % of the pairs of a batch of K = 4 to 9 random responses in random order."""
    model = shared_model()
    rankings = [ranking for size in (4, 6, 9) for ranking in random_rankings(2, size, seed=size)]
    optimizer = optimizer_of(model, 1e-2)
    first = reward.update(model, rankings, optimizer, UPDATE)
    assert first["reward/accuracy"] < 0.8
    for _ in range(40):
        last = reward.update(model, rankings, optimizer, UPDATE)
    assert last["reward/accuracy"] >= 0.99
    assert last["reward/loss"] < 0.1 < first["reward/loss"]
    with torch.no_grad(), model.role("reward"):
        for ranking in rankings:  # read back one response at a time: the best rank has the highest score
            order = scores_alone(model, ranking).argsort(descending=True)
            assert [ranking.ranks[index] for index in order] == sorted(ranking.ranks)


@pytest.mark.parametrize("loss", ["pairwise", "listwise"])
@pytest.mark.parametrize("ranks", [[[1, 2, 3, 4], [4, 1, 3, 1]], [[2, 1, 2, 2], [1, 1, 3, 3]]])
def test_loss_and_gradient_are_those_of_the_paper(shared_model: Make, loss: Any, ranks: list[list[int]]) -> None:
    model = shared_model()
    rankings = [
        dataclasses.replace(ranking, ranks=own)
        for ranking, own in zip(random_rankings(2, 4, seed=1), ranks, strict=True)
    ]
    before = model.adapter_state("reward")
    metrics = reward.update(model, rankings, optimizer_of(model, 1e-3), dataclasses.replace(UPDATE, loss=loss))
    found = gradients(model, "reward")
    assert not same(before, model.adapter_state("reward"))

    model.load_adapter_state("reward", before)
    for _, parameter in model.named_parameters_of("reward"):
        parameter.grad = None
    formula = pairwise if loss == "pairwise" else listwise
    with model.role("reward", training=True):
        scores = [scores_alone(model, ranking) for ranking in rankings]
        total = sum(formula(own, ranking.ranks) for own, ranking in zip(scores, rankings, strict=True)) / 2
        total.backward()
    assert metrics["reward/loss"] == pytest.approx(total.item(), rel=1e-4)
    for name, gradient in gradients(model, "reward").items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item())
    leads = [
        float(own.detach()[a] - own.detach()[b])
        for own, ranking in zip(scores, rankings, strict=True)
        for a, b in itertools.permutations(range(4), 2)
        if ranking.ranks[a] < ranking.ranks[b]
    ]
    assert metrics["reward/accuracy"] == pytest.approx(sum(lead > 0 for lead in leads) / len(leads))
    assert metrics["reward/margin"] == pytest.approx(sum(leads) / len(leads), rel=1e-3, abs=1e-4)


def test_micro_batches_add_up_to_the_whole(shared_model: Make) -> None:
    model = shared_model()
    rankings = [*random_rankings(3, 2, seed=3), *random_rankings(2, 5, seed=4)]
    before, found = model.adapter_state("reward"), []
    for size in (2, 7, 100):  # with 2, no ranking of 5 fits, and each is read twice
        metrics = reward.update(model, rankings, optimizer_of(model, 1e-3, size), UPDATE)
        found.append((metrics, gradients(model, "reward")))
        model.load_adapter_state("reward", before)
    metrics, whole = found[-1]
    scale = max(gradient.abs().max().item() for gradient in whole.values())
    for other_metrics, parts in found[:-1]:
        assert other_metrics == pytest.approx(metrics, rel=1e-5)
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, rtol=0, atol=1e-6 * max(scale, 1.0))


def test_a_ranking_in_which_all_are_tied_teaches_nothing(shared_model: Make) -> None:
    model = shared_model()
    (ranking,) = random_rankings(1, 3, seed=5)
    metrics = reward.update(model, [dataclasses.replace(ranking, ranks=[1, 1, 1])], optimizer_of(model, 1e-3), UPDATE)
    assert metrics["reward/loss"] == 0.0
    assert all(float(gradient.abs().max()) == 0.0 for gradient in gradients(model, "reward").values())


# The stage


@pytest.fixture
def config(parents: Path, data: Path, tmp_path: Path) -> Callable[..., RewardConfig]:
    """config(**changes) -> a reward stage in a run of its own, on the shared SFT stage."""

    def make(**changes: Any) -> RewardConfig:
        usual = {
            "run": str(tmp_path / "run"),
            "rankings": str(data / "rankings.jsonl"),
            "sft": str(parents / "sft"),
            "learning_rate": 2e-3,
            "batch_size": 8,
            "validation_fraction": 0.2,
            **LIMITS,
        }
        return RewardConfig(**(usual | changes))

    return make


def scores_of(model: SharedModel, role: str, pairs: list[tuple[str, str]]) -> list[float]:
    """One prompt and response at a time, from text."""
    scores = []
    with torch.no_grad(), model.role(role):
        for asked, answer in pairs:
            prompt = Prompt.of(asked)
            ids = render_prompt(model.tokenizer, prompt) + render_response(model.tokenizer, prompt, answer)
            out = model.causal(input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=True)
            scores.append(float(model.head(out.hidden_states[-1][0, -1])))
    return scores


PAIRS = [(row["prompt"], row["completion"]) for row in DEMONSTRATIONS]


def mean_and_sd(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def test_demonstrations_score_mean_0_and_sd_1_also_after_a_reload(
    config: Callable[..., RewardConfig], tiny_model: Models, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config(epochs=2)
    with caplog.at_level("INFO", "lora_rlhf"):
        model = reward.train(settings)
    found = results(settings.run, "reward")
    accuracy = found["accuracy"]
    assert f"{found['steps']} steps, held-out accuracy {accuracy['rate']:.3f} (95 % interval" in caplog.text
    mean, sd = mean_and_sd([score - found["offset"] for score in scores_of(model, "reward", PAIRS)])
    assert mean == pytest.approx(0.0, abs=1e-4)
    assert sd == pytest.approx(1.0, abs=1e-4)
    fresh = open_model(tiny_model("llama"))
    fresh.load_role("reward", Path(settings.run) / "reward" / "adapter")
    assert scores_of(fresh, "reward", PAIRS) == scores_of(model, "reward", PAIRS)


def test_the_scale_can_be_given(config: Callable[..., RewardConfig]) -> None:
    usual, fixed = config(), config(run=config().run + "-fixed", scale=0.25)
    models = [reward.train(settings) for settings in (usual, fixed)]
    first, second = (results(settings.run, "reward") for settings in (usual, fixed))
    assert second["scale_divided"] == 0.25
    own, given = (scores_of(model, "reward", PAIRS[:5]) for model in models)
    assert given == pytest.approx([score * first["scale_divided"] / 0.25 for score in own], rel=1e-4)
    calibrated = [score - second["offset"] for score in scores_of(models[1], "reward", PAIRS)]
    assert mean_and_sd(calibrated)[0] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.slow
def test_what_is_ranked_first_scores_highest_on_prompts_held_out(
    config: Callable[..., RewardConfig], tiny_model: Models, parents: Path
) -> None:
    settings = config(epochs=6, learning_rate=5e-3)
    model = open_model(tiny_model("llama"))
    digest = model.base_digest()
    reward.train(settings, model)
    found = results(settings.run, "reward")
    assert found["prompts"] + found["held_out_prompts"] == len(RANKINGS)
    assert found["held_out_pairs"] == 5 * found["held_out_prompts"]  # of six pairs one is a tie
    assert found["accuracy"]["rate"] > 0.9
    assert found["accuracy"]["low"] <= found["accuracy"]["rate"] <= found["accuracy"]["high"]
    assert sum(row["n"] for row in found["accuracy_by_margin"]) == found["held_out_pairs"]
    assert model.base_digest() == digest
    saved = open_model(tiny_model("llama"))
    saved.load_role("sft", parents / "sft" / "adapter")
    assert same(saved.adapter_state("sft"), model.adapter_state("sft"))
    steps = rows_of(settings.run, "reward")
    assert {"step", "reward/loss", "reward/accuracy", "reward/margin"} <= steps[0].keys()
    assert steps[-1]["reward/loss"] < 0.5 * steps[0]["reward/loss"]
    assert len(steps) == 6 * math.ceil(found["prompts"] / 8)
    quick = [row for row in steps if "samples/accuracy" in row]
    assert len(quick) == len(steps) // (len(steps) // 8)
    last = quick[-1]
    assert last["step"] == len(steps), "here the held-out rankings are few, and all of them are scored over time"
    assert last["samples/accuracy"] == pytest.approx(found["accuracy"]["rate"])
    assert last["samples/length_correlation"] == pytest.approx(found["length_correlation"], abs=1e-3)


@pytest.mark.slow
def test_shuffled_labels_stay_at_chance_on_prompts_held_out(
    config: Callable[..., RewardConfig], tmp_path: Path
) -> None:
    """Labels that carry no information. The number of right pairs of a random order of 3 has variance 11/12 (Kendall's
    n (n - 1) (2n + 5) / 72); independent between prompts, so the rate must be 0.5 within 4 sd of that."""
    rng = random.Random(0)
    words = [row["completion"] for row in DEMONSTRATIONS]
    rows = []
    for row in DEMONSTRATIONS:
        for number in "one two three four".split():
            responses = rng.sample(words, 3)
            ranks = rng.sample([1, 2, 3], 3)
            rows.append({"prompt": f"{row['prompt']} {number}", "responses": responses, "ranks": ranks})
    settings = config(rankings=write_rows(tmp_path / "shuffled.jsonl", rows), validation_fraction=0.5, epochs=2)
    reward.train(settings)
    found = results(settings.run, "reward")
    prompts = found["held_out_prompts"]
    assert prompts > 40
    assert abs(found["accuracy"]["rate"] - 0.5) < 4 * math.sqrt(11 / 12) / 3 / math.sqrt(prompts)


@pytest.mark.slow
def test_listwise_learns_as_well(config: Callable[..., RewardConfig]) -> None:
    settings = config(loss="listwise", epochs=6, learning_rate=5e-3)
    reward.train(settings)
    assert results(settings.run, "reward")["accuracy"]["rate"] > 0.9


def test_all_tied_rankings_are_left_out_of_training(config: Callable[..., RewardConfig], tmp_path: Path) -> None:
    tied = [{**row, "ranks": [1, 1, 1, 1]} for row in RANKINGS[:10]]
    settings = config(rankings=write_rows(tmp_path / "some.jsonl", tied + RANKINGS[10:]), validation_fraction=0.0)
    reward.train(settings)
    found = results(settings.run, "reward")
    assert (found["prompts"], found["pairs"]) == (20, 100)
    assert "accuracy" not in found


def test_agreement_of_several_labelers(config: Callable[..., RewardConfig], tmp_path: Path) -> None:
    """Two people on one prompt who order 2 of 3 pairs alike."""
    rows = [
        {"prompt": "Say it", "responses": ["a", "b", "c"], "ranks": ranks, "labeler": name}
        for name, ranks in (("one", [1, 2, 3]), ("two", [2, 1, 3]))
    ]
    settings = config(agreement=write_rows(tmp_path / "twice.jsonl", rows))
    reward.train(settings)
    found = results(settings.run, "reward")
    assert (found["label_agreement"], found["label_agreement_pairs"]) == (pytest.approx(2 / 3), 3)


def test_the_report_by_hand() -> None:
    """Scores 3, 1, 0 ranked 1, 2, 3 and 0, 2 ranked 1, 2: leads 2, 3, 1 and -2, so three of four pairs are right."""
    rankings = [EncodedRanking([1], [[5], [5, 6], [5, 6, 7]], [1, 2, 3]), EncodedRanking([1], [[5], [6]], [1, 2])]
    report = held_out_report(rankings, [torch.tensor([3.0, 1.0, 0.0]), torch.tensor([0.0, 2.0])])
    assert (report["held_out_prompts"], report["held_out_pairs"]) == (2, 4)
    assert report["accuracy"]["rate"] == 0.75
    buckets = {row["from"]: (row["rate"], row["n"]) for row in report["accuracy_by_margin"]}
    assert buckets == {1.0: (1.0, 1), 2.0: (2 / 3, 3)}
    confident = [1 / (1 + math.exp(-lead)) for lead in (1.0, 2.0, 2.0, 3.0)]
    bins = [[confident[0]], confident[1:3], [confident[3]]]  # 0.73, 0.88 twice, 0.95: each in a tenth of its own
    gaps = [abs(right / len(own) - sum(own) / len(own)) for own, right in zip(bins, (1, 1, 1), strict=True)]
    expected = sum(gap * len(own) for gap, own in zip(gaps, bins, strict=True)) / 4
    assert report["ece"] == pytest.approx(expected, abs=1e-6)
    assert held_out_report([EncodedRanking([1], [[5], [6]], [1, 1])], [torch.zeros(2)]) == {
        "held_out_prompts": 1,
        "held_out_pairs": 0,
    }


# Mistakes


def assert_refused(settings: RewardConfig, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        reward.train(settings)
    for part in parts:
        assert part in str(error.value)
    assert not (Path(settings.run) / "reward").exists()


def test_unusable_rankings(config: Callable[..., RewardConfig], tmp_path: Path) -> None:
    empty = write_rows(tmp_path / "empty.jsonl", [])
    assert_refused(config(rankings=empty), "empty.jsonl", "empty")
    single = write_rows(tmp_path / "single.jsonl", [{"prompt": "a", "responses": ["b"], "ranks": [1]}])
    assert_refused(config(rankings=single), "single.jsonl", "at least 2 responses", "got 1")
    twins = write_rows(tmp_path / "twins.jsonl", [{"prompt": "a", "responses": ["b", "b "], "ranks": [1, 1]}])
    assert_refused(config(rankings=twins), "twins.jsonl", "none of its 1", "all responses of the ranking are the same")
    tied = write_rows(tmp_path / "tied.jsonl", [{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 1]}])
    assert_refused(config(rankings=tied, validation_fraction=0.0), "tied.jsonl", "none of its 1", "1 are all tied")


def test_a_ranking_with_one_response_is_refused_alone(config: Callable[..., RewardConfig], tmp_path: Path) -> None:
    rows = [{"prompt": "a", "responses": ["b"], "ranks": [1]}, *RANKINGS]
    settings = config(rankings=write_rows(tmp_path / "mixed.jsonl", rows), validation_fraction=0.0)
    reward.train(settings)
    assert results(settings.run, "reward")["prompts"] == len(RANKINGS)


def test_a_parent_that_is_not_there_or_not_finished(config: Callable[..., RewardConfig], tmp_path: Path) -> None:
    assert_refused(config(sft=str(tmp_path / "nowhere")), "nowhere: no sft stage there", "lora-rlhf sft")
    made = json.loads((Path(str(config().sft)) / "manifest.json").read_text())
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "manifest.json").write_text(json.dumps({**made, "status": "running"}))
    assert_refused(config(sft=str(tmp_path / "half")), "did not finish", "'running'")


def test_another_base_than_the_parents(config: Callable[..., RewardConfig], tiny_model: Models, parents: Path) -> None:
    assert_refused(config(model=str(tiny_model("gemma"))), "gemma", "llama", str(parents / "sft"))


def test_a_base_in_memory_that_is_not_the_parents(config: Callable[..., RewardConfig], tiny_model: Models) -> None:
    for model, key in (
        (open_model(tiny_model("gpt_neox")), "source_hash"),
        (open_model(tiny_model("llama"), "none"), "quantization"),
    ):
        with pytest.raises(UserError, match=key):
            reward.train(config(), model)


def test_an_adapter_in_memory_that_is_not_the_parents(
    config: Callable[..., RewardConfig], tiny_model: Models, parents: Path
) -> None:
    model = open_model(tiny_model("llama"))
    model.load_role("sft", parents / "sft" / "adapter")
    model.named_parameters_of("sft")[0][1].data[0, 0] += 1e-3
    with pytest.raises(UserError, match="not the sft adapter in memory"):
        reward.train(config(), model)


def test_demonstrations_are_read_before_anything_is_trained(
    config: Callable[..., RewardConfig], tmp_path: Path
) -> None:
    assert_refused(config(demonstrations=str(tmp_path / "gone.jsonl")), "gone.jsonl: no such file")


def test_conversations_that_continue_one_another_are_held_out_together(
    config: Callable[..., RewardConfig], tmp_path: Path
) -> None:
    rows = []
    for row in RANKINGS:
        turns = [{"role": "user", "content": row["prompt"]}]
        for reply in ("Hm", "Oh"):
            rows.append({**row, "prompt": turns})
            turns = [*turns, {"role": "assistant", "content": reply}, {"role": "user", "content": "And then?"}]
    settings = config(rankings=write_rows(tmp_path / "talks.jsonl", rows), max_prompt_tokens=64)
    reward.train(settings)
    opened = [choose_split(Prompt.of(row["prompt"]).key, 0.2) == "validation" for row in RANKINGS]
    found = results(settings.run, "reward")
    assert (found["held_out_prompts"], found["prompts"]) == (2 * sum(opened), 2 * (len(opened) - sum(opened)))
    assert sum(opened) > 2


def test_demonstrations_are_read_as_the_sft_stage_read_them(
    config: Callable[..., RewardConfig], tiny_model: Models, tmp_path: Path
) -> None:
    """Rows that fit two formats: the SFT stage was told which, and the reward stage is not asked again."""
    rows = [{**row, "response": "no"} for row in DEMONSTRATIONS]
    path = write_rows(tmp_path / "both.jsonl", rows)
    common = {"run": str(tmp_path / "run"), "model": str(tiny_model("llama")), "lora_rank": 4, **LIMITS}
    with pytest.raises(UserError, match="--format prompt-response"):
        sft.train(SFTConfig(demonstrations=path, **common))
    sft.train(SFTConfig(demonstrations=path, format="prompt-completion", validation_fraction=0.0, epochs=1, **common))
    settings = config(sft=str(tmp_path / "run" / "sft"))
    reward.train(settings)
    assert manifest(settings.run, "reward")["status"] == "finished"


def test_a_head_that_is_lost_on_disk_is_found(
    config: Callable[..., RewardConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = reward_scores.read_adapter

    def lossy(folder: Path) -> Any:
        settings, state = read(folder)
        return settings, {name: value * 0.5 if "score" in name else value for name, value in state.items()}

    monkeypatch.setattr(reward_scores, "read_adapter", lossy)
    with pytest.raises(RuntimeError, match="the saved reward model scores differently"):
        reward.train(config())


def test_less_memory_at_the_reload_is_no_lost_head(
    config: Callable[..., RewardConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 16 bits the scores hang on how many responses are scored together."""
    score, sizes = reward.score_rankings, list[int]()

    def rounded(model: SharedModel, rankings: Any, batch: AutoBatch) -> list[Tensor]:
        sizes.append(batch.size)
        if len(sizes) == 3:  # for the report, before the reload, after it: memory ran out
            batch.size //= 2
        return [scores + batch.size * 1e-3 for scores in score(model, rankings, batch)]

    monkeypatch.setattr(reward, "score_rankings", rounded)
    reward.train(config())
    assert sizes == [8, 8, 8, 4, 4]
