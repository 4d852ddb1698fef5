"""Perplexity and multiple choice against whole passes of one text or option at a time, in plain Python."""

import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import scipy.stats
import torch

from lora_rlhf.data.encode import Limits
from lora_rlhf.data.schema import Prompt, Text
from lora_rlhf.data.stream import TextStream
from lora_rlhf.data.template import render_prompt, render_response
from lora_rlhf.evaluation.columns import Column
from lora_rlhf.evaluation.tax import (
    block_tokens,
    choice_column,
    encode_choices,
    guessing_accuracy,
    measure_tax,
    pack_text,
    perplexity_column,
)
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.probes.sets import Choice
from lora_rlhf.system.errors import UserError

TEXTS = [Text(f"The river is wide; the boat number {place} is small." * (1 + place % 3)) for place in range(9)]


QUESTIONS = [
    Choice(Prompt.of("Say the answer."), ("aaaa", "the boat is small and wide", "ship"), 0),
    Choice(Prompt.of("What is it?"), ("aaaa", "the river"), 1),
    Choice(Prompt.of("Count the ships."), ("one", "two", "three", "aaaa"), 3),
]


def logprobs_alone(model: SharedModel, role: str, ids: list[int]) -> list[float]:
    with model.role(role), torch.no_grad():
        logits = model.causal(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
    return [logits[t, token].item() for t, token in enumerate(ids[1:])]


@pytest.mark.parametrize("role", ["sft", "policy"])
def test_perplexity_equals_the_definition_block_by_block(trained: SharedModel, role: str) -> None:
    window = 40
    tokenizer = trained.tokenizer
    stream = [
        (token, place)
        for place, text in enumerate(TEXTS)
        for token in [*tokenizer.encode(text.text, add_special_tokens=False), tokenizer.eos_token_id]
    ]
    losses, tokens = [0.0] * len(TEXTS), [0] * len(TEXTS)
    for start in range(0, len(stream), window):
        block = stream[start : start + window]
        for (_, place), logprob in zip(
            block[1:], logprobs_alone(trained, role, [token for token, _ in block]), strict=True
        ):
            losses[place] -= logprob
            tokens[place] += 1
    assert len(stream) % window, "the last block is shorter, and is read too"
    found = perplexity_column(trained, role, pack_text(tokenizer, TEXTS, window), batch_size=2)
    assert list(found.weights) == tokens
    assert list(found.values) == pytest.approx(losses, rel=1e-4)
    assert found.figure().value == pytest.approx(math.exp(sum(losses) / sum(tokens)), rel=1e-4)
    assert found.figure().n == len(TEXTS)


def test_blocks_are_those_that_training_reads(trained: SharedModel) -> None:
    stream = TextStream(lambda: TEXTS, trained.tokenizer, 16, seed=0)
    packed = pack_text(trained.tokenizer, TEXTS, 16)
    whole = [row.tolist() for row, mask in zip(packed.ids, packed.mask, strict=True) if mask.all()]
    assert sorted(whole) == sorted(next(stream).tolist() for _ in whole)
    assert block_tokens(trained) == 256
    few = pack_text(trained.tokenizer, TEXTS, 16, most_tokens=40)
    assert few.mask.sum() == 40 and few.num_documents < len(TEXTS)
    with pytest.raises(UserError, match="too few"):
        pack_text(trained.tokenizer, TEXTS, 16, most_tokens=1)


def test_the_interval_of_a_perplexity_is_scipys_bootstrap_of_documents() -> None:
    rng = random.Random(0)
    tokens = [rng.randint(20, 200) for _ in range(120)]
    sums = [n * rng.gauss(2.0, 0.3) for n in tokens]
    others = [value + n * rng.gauss(0.1, 0.05) for n, value in zip(tokens, sums, strict=True)]
    one, other = Column("perplexity", others, tokens), Column("perplexity", sums, tokens)

    def perplexity(above, below, axis):
        return numpy.exp(above.sum(axis) / below.sum(axis))

    def difference(above, below, other_above, axis):
        return perplexity(above, below, axis) - perplexity(other_above, below, axis)

    columns = tuple(map(numpy.array, (others, tokens, sums)))
    theirs = scipy.stats.bootstrap(columns[:2], perplexity, paired=True, method="percentile", rng=0)
    found, ends = one.figure(), theirs.confidence_interval
    assert found.value == pytest.approx(math.exp(sum(others) / sum(tokens)), abs=1e-9)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), rel=0.01)
    gap = one.paired_difference(other)
    ends = scipy.stats.bootstrap(columns, difference, paired=True, method="percentile", rng=0).confidence_interval
    assert (gap.low, gap.high) == pytest.approx((ends.low, ends.high), rel=0.01)
    of_other = other.figure().value
    assert found.value is not None and of_other is not None
    assert gap.difference == pytest.approx(found.value - of_other, abs=1e-9)
    assert gap.p == pytest.approx(2 / 4001)


@pytest.mark.parametrize("role", ["base", "policy"])
def test_the_chosen_option_is_the_one_of_the_highest_mean_log_probability(trained: SharedModel, role: str) -> None:
    expected = []
    for question in QUESTIONS:
        prompt = render_prompt(trained.tokenizer, question.prompt)
        means = []
        for option in question.options:
            response = render_response(trained.tokenizer, question.prompt, option)
            own = logprobs_alone(trained, role, prompt + response)[-len(response) :]
            means.append(sum(own) / len(own))
        expected.append(means.index(max(means)) == question.answer)
    encoded, refused = encode_choices(trained.tokenizer, QUESTIONS, Limits(100, 50))
    assert choice_column(trained, role, encoded, batch_size=2).values == expected
    assert not refused.count and guessing_accuracy(encoded) == pytest.approx((1 / 3 + 1 / 2 + 1 / 4) / 3)
    if role == "policy":
        assert expected == [True, False, True], "it learned to say aaaa"


def test_a_question_goes_whole_with_an_option_that_is_too_long(trained: SharedModel) -> None:
    encoded, refused = encode_choices(trained.tokenizer, QUESTIONS, Limits(100, 10))
    assert len(encoded) == 2 and [len(row.ranks) for row in encoded] == [2, 4]
    assert "left out" in refused.summary()


def test_every_system_is_measured_on_the_same(trained: SharedModel, tiny_model: Callable[[str], Path]) -> None:
    text = pack_text(trained.tokenizer, TEXTS, block_tokens(trained))
    encoded, _ = encode_choices(trained.tokenizer, QUESTIONS, Limits(100, 50))
    found = measure_tax(trained, {"base": "base", "mine": "policy"}, text, encoded, batch_size=4)
    assert set(found["mine"]) == {"perplexity", "choice_accuracy"}
    gap = found["mine"]["perplexity"].paired_difference(found["base"]["perplexity"])
    assert gap.low is not None and gap.low > 0, "a policy that only says aaaa has lost the language"
    assert measure_tax(trained, {"base": "base"}, None, [], batch_size=4) == {"base": {}}
