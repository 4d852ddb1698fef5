"""Distance from the reference, entropy and what texts tell: against passes one response at a time, and by hand."""

import math
import statistics
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import pytest
import torch

from lora_rlhf.data.encode import EncodedPrompt, encode_prompts
from lora_rlhf.data.schema import Prompt
from lora_rlhf.data.template import render_response
from lora_rlhf.evaluation.columns import Column, Columns
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.evaluation.figures import CATALOGUE, Figure, Paired
from lora_rlhf.evaluation.generation import generate_responses
from lora_rlhf.evaluation.policy_figures import answer_columns, distance_columns, measure_distances
from lora_rlhf.evaluation.refusals import refusal_scores
from lora_rlhf.model.drawing import Response
from lora_rlhf.model.shared import SharedModel
from tests.support.evaluation import QUESTIONS

ROLES = {"base": "base", "sft": "sft", "policy": "policy"}


def figures(columns: Columns) -> dict[str, Figure]:
    return {name: column.figure() for name, column in columns.items()}


@pytest.fixture
def prompts(trained: SharedModel) -> list[EncodedPrompt]:
    return encode_prompts(trained.tokenizer, [Prompt.of(text) for text in (*QUESTIONS[:6], "Why?")], 100)[0]


def rows_alone(model: SharedModel, role: str, prompt: list[int], response: list[int]) -> torch.Tensor:
    """log softmax (R, V) at each token of the response, from a pass of its own in float64."""
    with model.role(role), torch.no_grad():
        logits = model.causal(torch.tensor([prompt + response]), use_cache=False).logits[0].double()
    return logits.log_softmax(-1)[len(prompt) - 1 : -1]


@pytest.mark.parametrize("reference", ["sft", "base"])
def test_distances_equal_the_definition_one_response_at_a_time(
    trained: SharedModel, prompts: list[EncodedPrompt], settings: Callable[..., EvaluateConfig], reference: str
) -> None:
    answers = dict(
        zip(ROLES, generate_responses(settings(Path("unused")), trained, [*ROLES], prompts, [1.0] * 3), strict=True)
    )
    found = measure_distances(trained, ROLES, reference, prompts, answers, batch_size=3)
    for role in ROLES:
        gaps, entropies = [], []
        for prompt, answer in zip(prompts, answers[role], strict=True):
            own = rows_alone(trained, role, prompt.prompt_ids, answer.ids)
            other = rows_alone(trained, reference, prompt.prompt_ids, answer.ids)
            at = (torch.arange(len(answer.ids)), torch.tensor(answer.ids))
            gaps.append((own[at] - other[at]).tolist())
            entropies += (-(own.exp() * own).sum(-1)).tolist()
        figure = figures(found[role])
        terms = [math.exp(-gap) - 1 + gap for row in gaps for gap in row]
        assert figure["kl_per_token"].value == pytest.approx(statistics.fmean(terms), rel=1e-4, abs=1e-9)
        assert figure["kl_per_response"].value == pytest.approx(
            statistics.fmean(sum(row) for row in gaps), rel=1e-4, abs=1e-3
        )
        assert figure["entropy"].value == pytest.approx(statistics.fmean(entropies), rel=1e-4)
        assert figure["kl_per_token"].n == 7
    assert figures(found[reference])["kl_per_token"].interval == (0.0, 0.0, 0.0)
    assert (figures(found["policy"])["kl_per_response"].low or 0) > 5, "the policy is far from its reference"
    gap = found["policy"]["kl_per_response"].paired_difference(found["sft"]["kl_per_response"])
    assert gap.p is not None and gap.p < 0.01 and gap.n == 7


def test_a_refusal_s_score_is_its_log_probability_under_the_asked_role(
    trained: SharedModel, prompts: list[EncodedPrompt]
) -> None:
    """One response at a time; batches of 3 hold padding."""
    refusal = "I cannot say."
    for role in ("base", "policy"):
        expected = []
        for prompt in prompts:
            ids = render_response(trained.tokenizer, prompt.prompt, refusal)
            logprobs = rows_alone(trained, role, prompt.prompt_ids, ids)
            expected.append(logprobs[torch.arange(len(ids)), torch.tensor(ids)].sum().item())
        assert refusal_scores(trained, role, prompts, refusal, 3) == pytest.approx(expected, abs=1e-3)


def test_padding_counts_for_nothing() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    own, reference = torch.full((2, 3), math.nan), torch.full((2, 3), math.nan)
    own[mask], reference[mask] = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.5, -1.0, -0.5])
    found = distance_columns(own, reference, torch.where(mask, 2.0, math.nan), mask)
    assert list(found["kl_per_response"].values) == pytest.approx([0.5 - 1.0, 0.0])
    terms = [math.exp(-0.5) - 1 + 0.5, math.exp(1.0) - 1 - 1.0, 0.0]
    assert found["kl_per_token"].figure().value == pytest.approx(sum(terms) / 3, abs=1e-9)
    assert found["entropy"].figure().interval == pytest.approx((2.0, 2.0, 2.0))


def test_columns_of_answers_have_a_figure_each_and_compare_pair_by_pair() -> None:
    asked = [f"Say hello to {name}." for name in ("Ann", "Bob", "Cid", "Dan", "Eve", "Fay")]
    long = [Response([5] * 12, False, "Thank you and thank you and thank you and thank you")] * 6
    short = [Response([5] * (i + 2), True, f"Hello {ask.split()[-1]} of {i}") for i, ask in enumerate(asked)]
    one, other = answer_columns(asked, long), answer_columns(asked, short)
    assert set(one) <= set(CATALOGUE)
    found, theirs = figures(one), figures(other)
    assert found["length"].value == 12 and theirs["length"].value == pytest.approx(4.5)
    assert found["words"].value == 11 and found["repetition"].value == 0.5  # four of eight 4-grams are new
    assert astuple(found["eos_rate"]) == pytest.approx((0.0, 0.0, 0.3903, 6), abs=5e-5)  # Wilson: z^2 / (n + z^2)
    assert found["template_collapse"].value == found["opening_collapse"].value == 1.0
    assert found["self_bleu"].value == pytest.approx(1.0) and (theirs["self_bleu"].value or 0) < 0.7
    assert theirs["template_collapse"].value == 0.0 and theirs["same_template"].value == 0.0
    assert found["distinct_1"].value == pytest.approx(4 / 66)
    change = {name: column.paired_difference(other[name]) for name, column in one.items()}
    assert change["length"].difference == pytest.approx(7.5) and (change["length"].p or 1) < 0.01
    assert change["eos_rate"].difference == -1.0 and change["eos_rate"].p == pytest.approx(2 / 2**6)
    assert change["refusal_rate"].difference == 0.0 and change["refusal_rate"].p == 1.0
    declined = answer_columns(asked, short, detects_refusal=lambda text: "of 1" in text)
    assert figures(declined)["refusal_rate"].value == pytest.approx(1 / 6)


def test_a_column_over_some_prompts_and_what_has_no_value() -> None:
    column = Column("ratio", [1.0, 2.0, 3.0], [1.0, 4.0, 5.0])
    assert column.select([0, 2]).figure().value == pytest.approx(4 / 6)
    flags = Column("share", [True, None, False, None])
    assert flags.figure().n == 2 and flags.figure().value == 0.5
    assert Column("mean", [None, None]).figure() == Figure(None, None, None, 0)
    assert Column("mean", [2.0]).figure() == Figure(2.0, None, None, 1)
    nothing = Column("mean", [2.0]).paired_difference(Column("mean", [None]))
    assert nothing == Paired(None, None, None, None, 0)
