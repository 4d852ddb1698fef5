"""The stage dpo: TRL's losses on our batches against the papers' formulas, learning, and what is refused."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_rlhf.configs.stages import PAIR_LOSSES, DPOConfig
from lora_rlhf.data.encode import EncodedRanking
from lora_rlhf.data.preferences import choose_pairs, split_into_votes
from lora_rlhf.model import role_view
from lora_rlhf.model.adapters import read_adapter
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stages import dpo
from lora_rlhf.stages.trl_loss import TRLLoss
from lora_rlhf.system.errors import UserError
from tests.support import reference
from tests.support.models import randomize
from tests.support.stages import (
    DEMONSTRATIONS,
    LIMITS,
    RANKINGS,
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
CONFIG = DPOConfig(run="unused", rankings="unused", beta=0.7)
# another number of pairs in each: 6, 1 and, with a tie, 2
BATCH = [*random_rankings(1, 4, 1), *random_rankings(1, 2, 2), replace(random_rankings(1, 3, 3)[0], ranks=[2, 1, 2])]


def logprobs_alone(model: SharedModel, prompt_ids: list[int], response_ids: list[int]) -> Tensor:
    """The response's log-probability under the active role, by plain transformers, unpadded."""
    ids = torch.tensor([prompt_ids + response_ids])
    logits = model.causal(input_ids=ids, use_cache=False).logits[0, len(prompt_ids) - 1 : -1]
    return logits.log_softmax(dim=-1).gather(1, torch.tensor(response_ids)[:, None]).sum()


class Ratios:
    """log(policy / reference) of single answers, with a graph; forward passes are remembered."""

    def __init__(self, model: SharedModel) -> None:
        self.model = model
        self.policy: dict[str, Tensor] = {}

    def __call__(self, prompt_ids: list[int], response_ids: list[int]) -> Tensor:
        key = str((prompt_ids, response_ids))
        if key not in self.policy:
            with torch.no_grad(), self.model.role("reference"):
                held = logprobs_alone(self.model, prompt_ids, response_ids)
            self.policy[key] = logprobs_alone(self.model, prompt_ids, response_ids) - held
        return self.policy[key]


def surrogate(loss: Callable[..., float], ratios: list[Tensor]) -> tuple[float, Tensor]:
    """The loss of plain floats, and a tensor whose gradient is the loss's by central differences in float64."""
    values = [float(ratio.detach().double()) for ratio in ratios]
    step = 1e-5
    slopes = []
    for index in range(len(values)):
        up, down = ([*values[:index], values[index] + move, *values[index + 1 :]] for move in (step, -step))
        slopes.append((loss(*up) - loss(*down)) / (2 * step))
    return loss(*values), sum((slope * ratio for slope, ratio in zip(slopes, ratios, strict=True)), torch.zeros(()))


def with_roles(make: Make, architecture: str = "llama", quantization: str = "nf4") -> SharedModel:
    """A model with a policy that is another than its reference."""
    model = make(architecture, quantization)
    model.copy_role("policy", "dpo")
    randomize(model, "dpo", seed=7)
    return model


def step(
    model: SharedModel, config: DPOConfig, rows: list[EncodedRanking], folder: Path, size: int, is_wide: bool = False
) -> dict[str, float]:
    """One batch through TRL; the gradients stay. is_wide: in float64 from here on."""
    model_loss = TRLLoss(config, model, folder, dpo.batch_groups(config, rows)[0][1])
    if is_wide:
        model.peft.double()
    for _, parameter in model.named_parameters_of("dpo"):
        parameter.grad = None
    with model.role("dpo", training=True):
        return dpo.accumulate(config, model, model_loss, rows, size)


class WideHead:
    """In place of TRL's LM head, which sums in float32 whatever it is given: the same in the dtype of its input."""

    @staticmethod
    def apply(hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        logits = nn.functional.linear(hidden, weight, bias)
        logprobs = logits.log_softmax(dim=-1)
        chosen = logprobs.gather(1, ids[:, None]).squeeze(1)
        return chosen, -(logprobs.exp() * logprobs).sum(dim=1), None, logits.mean(dim=1), logits.argmax(dim=1) == ids


@pytest.fixture
def wide_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of TRL only the head computes in float32; `test_trls_head_reads_what_the_model_itself_says` is about that one."""
    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", WideHead)


WIDE = ("gpt_neox", "none")  # its norms compute in the dtype of their input; Llama's are float32 in float64 too


def require_same(model: SharedModel, expected: tuple[float, Tensor], loss: float, found: dict[str, Tensor]) -> None:
    """Loss and gradient in float64, to 1e-8: the slopes of plain floats are central differences."""
    assert loss == pytest.approx(expected[0], abs=1e-8)
    for _, parameter in model.named_parameters_of("dpo"):
        parameter.grad = None
    model.backward(expected[1])
    wanted = gradients(model, "dpo")
    assert max(float(gradient.abs().max()) for gradient in wanted.values()) > 1e-2
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-8, rtol=1e-6, msg=name)


@pytest.mark.parametrize("size", [2, 100])
@pytest.mark.parametrize(
    ("name", "loss", "is_mean"),
    [
        ("sigmoid", reference.dpo_loss, False),
        ("hinge", reference.hinge_loss, False),
        ("ipo", reference.ipo_loss, True),
    ],
)
@pytest.mark.usefixtures("wide_head")
def test_pairs_have_the_papers_loss_and_gradient(
    shared_model: Make, tmp_path: Path, name: str, loss: Callable[..., float], is_mean: bool, size: int
) -> None:
    """Every prompt counts once, and the micro-batches' size changes nothing."""
    model, config = with_roles(shared_model, *WIDE), replace(CONFIG, loss_type=(name,))
    totals = step(model, config, BATCH, tmp_path, size, is_wide=True)
    found = gradients(model, "dpo")
    with model.role("dpo", training=True):
        ratios, total, tensor = Ratios(model), 0.0, torch.zeros(())
        for ranking in BATCH:
            pairs = reference.ranking_pairs(ranking.ranks)
            for pair in pairs:
                answers = [ranking.response_ids[index] for index in pair]
                both = [ratios(ranking.prompt_ids, answer) / (len(answer) if is_mean else 1) for answer in answers]
                value, part = surrogate(lambda chosen, rejected: loss(chosen, rejected, 0.7), both)
                total, tensor = total + value / len(pairs) / len(BATCH), tensor + part / len(pairs) / len(BATCH)
        require_same(model, (total, tensor), totals["loss"], found)


@pytest.mark.parametrize("size", [3, 100])
@pytest.mark.usefixtures("wide_head")
def test_votes_have_the_papers_loss_and_gradient(shared_model: Make, tmp_path: Path, size: int) -> None:
    model = with_roles(shared_model, *WIDE)
    config = replace(CONFIG, method="kto", desirable_weight=1.3)
    votes = [vote for ranking in BATCH for vote in split_into_votes(ranking)]
    totals = step(model, config, votes, tmp_path, size, is_wide=True)
    found = gradients(model, "dpo")
    with model.role("dpo", training=True):
        ratios = Ratios(model)
        answers = [vote.response_ids[0] for vote in votes]
        mismatched = [float(ratios(vote.prompt_ids, answers[index - 1]).detach()) for index, vote in enumerate(votes)]
        own = [ratios(vote.prompt_ids, answer) for vote, answer in zip(votes, answers, strict=True)]

        def loss(*values: float) -> float:
            good = [value for value, vote in zip(values, votes, strict=True) if vote.ranks[0] == 1]
            bad = [value for value, vote in zip(values, votes, strict=True) if vote.ranks[0] == 2]
            return reference.kto_loss(good, bad, mismatched, 0.7, (1.3, 1.0))

        require_same(model, surrogate(loss, own), totals["loss"], found)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gemma2", "gpt2", "phi"])
def test_trls_head_reads_what_the_model_itself_says(shared_model: Make, tmp_path: Path, architecture: str) -> None:
    """A cap on logits, learned positions, a head with a bias."""
    model = with_roles(shared_model, architecture)
    found = step(model, CONFIG, BATCH[1:2], tmp_path, 2)["margin"]
    ranking, ratios = BATCH[1], Ratios(model)
    chosen, rejected = ranking.ranks.index(1), ranking.ranks.index(2)
    with torch.no_grad(), model.role("dpo"):
        values = [float(ratios(ranking.prompt_ids, ranking.response_ids[index])) for index in (chosen, rejected)]
    assert found == pytest.approx(0.7 * (values[0] - values[1]), abs=1e-4)


def test_a_model_whose_head_trl_reads_otherwise_is_refused(shared_model: Make, tmp_path: Path) -> None:
    model = with_roles(shared_model, "gemma2")
    config = model.causal.config
    assert config.final_logit_softcapping == 3.0
    step(model, CONFIG, BATCH[1:2], tmp_path, 2)
    view = role_view.deepcopy
    with pytest.MonkeyPatch.context() as patch:  # a cap under a name that TRL does not know
        patch.setattr(role_view, "deepcopy", lambda config: without_cap(view(config)))
        with pytest.raises(UserError, match="TRL reads the LM head"):
            step(model, CONFIG, BATCH[1:2], tmp_path, 2)


def without_cap(config: Any) -> Any:
    config.final_logit_softcapping = None
    return config


@pytest.mark.parametrize(
    ("choice", "pairs"),
    [
        ("all", {(1, 0), (1, 2), (1, 3), (3, 0), (3, 2)}),
        ("best-worst", {(1, 0), (1, 2)}),
        ("adjacent", {(1, 3), (3, 0), (3, 2)}),
    ],
)
def test_pairs_of_a_ranking_with_a_tie(choice: Any, pairs: set[tuple[int, int]]) -> None:
    chosen = choose_pairs([3, 1, 3, 2], choice)
    assert set(chosen) == pairs and len(chosen) == len(pairs)
    assert choose_pairs([1, 1], choice) == []


# The stage


def config_of(run: Path, data: Path, **settings: Any) -> DPOConfig:
    values = {"learning_rate": 2e-3, "batch_size": 8, "epochs": 2, "rankings": str(data / "rankings.jsonl")}
    return DPOConfig(run=str(run), **{**values, **LIMITS, **settings})


@pytest.fixture
def run(parents: Path, tmp_path: Path) -> Path:
    """A run with the finished SFT stage."""
    shutil.copytree(parents / "sft", tmp_path / "run" / "sft")
    return tmp_path / "run"


@pytest.mark.slow
def test_the_stage_prefers_what_labelers_chose_and_leaves_everything_else(
    run: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = open_model(Path(manifest(run, "sft")["base"]["name"]))
    before = model.base_digest()
    with caplog.at_level(logging.WARNING):
        dpo.train(config_of(run, data), model)
    assert model.base_digest() == before
    assert same(model.adapter_state("sft"), read_adapter(run / "sft" / "adapter")[1])
    assert {tensor.dtype for tensor in read_adapter(run / "dpo" / "adapter")[1].values()} == {torch.float32}
    rows = rows_of(run, "dpo")
    assert rows[0]["dpo/loss"] == pytest.approx(0.693147, abs=1e-5)  # policy and reference are the same
    assert rows[0]["dpo/margin"] == 0
    assert rows[-1]["dpo/loss"] < 0.65 and rows[-1]["dpo/margin"] > 0.1
    found = results(run, "dpo")
    assert found["pairs"] == 5 * found["prompts"] and found["accuracy"]["rate"] > 0.7
    assert {path.name for path in (run / "dpo").iterdir()} == {
        *("manifest.json", "config.yaml", "metrics.jsonl", "curves.svg", "adapter")
    }
    assert "may have learned nothing" in caplog.text  # of 3 held-out prompts nobody can tell


@pytest.mark.slow
def test_votes_train_without_another_answer_to_the_prompt(run: Path, data: Path, tmp_path: Path) -> None:
    """Each prompt has one answer, every other one good: as rankings they could not be read at all."""
    answers = {True: lambda row: row["completion"], False: lambda row: "What?"}
    votes = [
        {"prompt": row["prompt"], "completion": answers[index % 2 == 0](row), "label": index % 2 == 0}
        for index, row in enumerate(DEMONSTRATIONS)
    ]
    path = write_rows(tmp_path / "votes.jsonl", votes)
    dpo.train(config_of(run, data, rankings=path, method="kto", epochs=4, batch_size=6))
    found, rows = results(run, "dpo"), rows_of(run, "dpo")
    assert found["votes"] + 2 * found["held_out_prompts"] <= len(votes)
    assert 0 < found["good_votes"] < found["votes"]
    assert rows[0]["dpo/loss"] == pytest.approx(0.5, abs=1e-5)
    assert rows[-1]["dpo/loss"] < 0.47


@pytest.mark.slow
def test_every_loss_of_pairs_trains(shared_model: Make, tmp_path: Path) -> None:
    model, losses = with_roles(shared_model), {}
    for name in PAIR_LOSSES:
        smoothing = 1e-3 if name == "exo_pair" else 0.0
        config = replace(CONFIG, loss_type=(name, "sft"), loss_weights=(1.0, 0.1), label_smoothing=smoothing)
        assert config.faults() == []
        losses[name] = step(model, config, BATCH, tmp_path, 4)["loss"]
        assert all(float(gradient.abs().max()) > 0 for gradient in gradients(model, "dpo").values()), name
    assert len({round(loss, 4) for loss in losses.values()}) >= len(losses) - 2  # robust without smoothing is sigmoid


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"loss_type": ("simpo",)},
            "'simpo' is not known here; it has no reference, and TRL has it in its experimental part alone; dpo has: ",
        ),
        ({"loss_type": ("kto",)}, "it is one of --method kto"),
        ({"loss_type": ("sft",), "reference": "base"}, "sft alone has no reference"),
        ({"loss_type": ("exo_pair",)}, "exo_pair needs a label_smoothing"),
        ({"label_smoothing": 0.1}, "label_smoothing is for robust"),
        ({"loss_weights": (1.0, 2.0)}, "2 numbers for 1 losses"),
        ({"method": "kto", "batch_size": 1}, "at least 2"),
        ({"method": "kto", "pairs": "adjacent"}, "pairs is for dpo"),
        ({"desirable_weight": 2.0}, "are for kto"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_read(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        dpo.train(DPOConfig(run="nowhere", rankings="nothing.jsonl", **settings))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{**row, "ranks": [1, 1, 1, 1]} for row in RANKINGS], {}, "30 are all tied"),
        (
            [{"prompt": row["prompt"], "completion": row["completion"], "label": True} for row in DEMONSTRATIONS],
            {"method": "kto"},
            "votes are good: kto needs both",
        ),
    ],
)
def test_data_that_teaches_nothing_is_refused(
    run: Path, data: Path, tmp_path: Path, rows: list[dict[str, Any]], settings: dict[str, Any], message: str
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=message):
        dpo.train(config_of(run, data, rankings=path, **settings))
    assert not (run / "dpo").exists()


def test_several_processes_are_refused(run: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process"):
        dpo.train(config_of(run, data))
