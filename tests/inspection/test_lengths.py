from itertools import pairwise

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking, Text
from lora_rlhf.inspection.lengths import EvenSample, Lengths, TokenCounts, count_tokens, token_figures

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ m['role'] + ' ' + m['content'] + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A token is a word."""
    words = ["<end>", "<unk>", "user", "assistant", "one", "two"]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>", chat_template=TEMPLATE
    )


def test_quantiles_of_short_lengths_are_exact() -> None:
    summary = Lengths(range(100, 0, -1)).summary()
    assert {name: summary[name] for name in ("count", "mean", "p50", "p90", "p95", "p99", "max")} == {
        "count": 100,
        "mean": 50.5,
        "p50": 50,
        "p90": 90,
        "p95": 95,
        "p99": 99,
        "max": 100,
    }


def test_long_lengths_take_little_memory_and_stay_near() -> None:
    lengths = Lengths([1_000_003] * 9 + [5] + list(range(2000, 300_000, 7)))
    assert lengths.quantile(1.0) == pytest.approx(1_000_003, rel=2e-3)
    assert lengths.quantile(0.5) == pytest.approx(151_000, rel=1e-2)
    assert lengths.summary()["max"] == 1_000_003
    assert len(lengths._buckets) < 5000


def test_bars_hold_every_length() -> None:
    bars = Lengths([0, 1, 1, 3, 50, 50, 4000]).summary()["bars"]
    assert sum(count for _, _, count in bars) == 7
    assert all(end == pytest.approx(start) for (_, end, _), (start, _, _) in pairwise(bars))
    assert bars[-1][2] == 1


def test_no_lengths() -> None:
    assert Lengths().summary() == {"count": 0}


def test_small_stream_is_sampled_whole() -> None:
    sample: EvenSample[int] = EvenSample(10)
    for number in range(10):
        assert sample.is_sampled(number)
        sample.add(number, number, 1)
    assert sample.is_whole
    assert sample.items() == list(range(10))


def test_sample_is_even_over_the_stream_and_over_its_period() -> None:
    sample: EvenSample[int] = EvenSample(100)
    for number in range(10_000):
        if sample.is_sampled(number):
            sample.add(number, number, 1)
    items = sample.items()
    assert not sample.is_whole
    assert 50 <= len(items) <= 100
    assert all(2 <= sum(item // 1000 == tenth for item in items) <= 13 for tenth in range(10))
    assert 0.35 < sum(item % 2 for item in items) / len(items) < 0.65
    assert 0.1 < sum(item % 4 == 0 for item in items) / len(items) < 0.4


def test_merged_samples_are_even() -> None:
    whole: EvenSample[int] = EvenSample(100)
    part: EvenSample[int] = EvenSample(100)
    for number in range(5000):
        sample = part if number < 4000 else whole
        if sample.is_sampled(number):
            sample.add(number, number, 1)
    assert part.threshold < whole.threshold
    whole.merge(part)
    items = whole.items()
    assert 50 <= len(items) <= 100
    assert 4 <= sum(item >= 4000 for item in items) <= 26
    assert not whole.is_whole


def test_a_sample_of_large_items_stays_small() -> None:
    sample: EvenSample[int] = EvenSample(100, most_weight=1000)
    for number in range(1000):
        if sample.is_sampled(number):
            sample.add(number, number, 90)
    assert 4 <= len(sample.items()) <= 11
    sample.add(number, number, 5000)
    assert len(sample.items()) <= 11 and 999 not in sample.items()


def test_tokens_are_counted_with_the_template(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = Prompt.of("one two one")  # user one two one <end> assistant
    assert count_tokens(tokenizer, prompt) == TokenCounts(6)
    assert count_tokens(tokenizer, Demonstration(prompt, "two two")) == TokenCounts(6, (3,))
    assert count_tokens(tokenizer, Ranking(prompt, ("one", "one two one"), (1, 2))) == TokenCounts(6, (2, 4))


def test_long_text_is_estimated_from_its_beginning(tokenizer: PreTrainedTokenizerFast) -> None:
    assert count_tokens(tokenizer, Text("one two")) == TokenCounts(responses=(2,))
    assert count_tokens(tokenizer, Text("one " * 10_000)) == TokenCounts(responses=(10_000,))


def test_refusal_of_the_template_is_kept(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = Prompt((Message("system", "one"), Message("user", "two")))
    refused = count_tokens(tokenizer, prompt).refused
    assert refused is not None
    assert "template refuses" in refused


def test_limits() -> None:
    counted = [TokenCounts(10 * number, (number,)) for number in range(1, 101)]
    limits = token_figures(counted, True, 900, 97)["limits"]
    assert limits["max_prompt_tokens"] == {
        "limit": 900,
        "over": pytest.approx(0.1),
        "lost": 0.0,
        "keeps_95": 950,
        "keeps_99": 990,
    }
    assert limits["max_response_tokens"] == {
        "limit": 97,
        "over": pytest.approx(0.03),
        "lost": pytest.approx(0.03),
        "keeps_95": 95,
        "keeps_99": 99,
    }


def test_limit_is_inclusive_and_rankings_need_two_responses() -> None:
    counted = [
        TokenCounts(5, (10, 10, 99)),
        TokenCounts(5, (10, 99, 99)),
        TokenCounts(6, (10, 10)),
        TokenCounts(5, (11, 11)),
    ]
    limits = token_figures(counted, False, 5, 10)["limits"]
    assert limits["max_prompt_tokens"]["over"] == 0.25
    assert limits["max_response_tokens"]["over"] == 0.5
    assert limits["max_response_tokens"]["lost"] == 0.5


def test_refused_rows_are_left_out_of_lengths() -> None:
    figures = token_figures(
        [TokenCounts(3), TokenCounts(refused="no system"), TokenCounts(5), TokenCounts(refused="no system")], True, 9, 9
    )
    assert figures["rows"] == 4
    assert figures["prompt"]["count"] == 2
    assert figures["refused"] == {"no system": 0.5}
    assert "max_response_tokens" not in figures["limits"]
