"""Length limits: prompts lose their oldest part, responses are refused and counted, never cut."""

import pytest

from lora_rlhf.data.encode import (
    EncodedExample,
    EncodedRanking,
    encode_demonstrations,
    encode_prompts,
    encode_ranking,
)
from lora_rlhf.data.refusals import RefusedRows
from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking
from lora_rlhf.data.template import render_prompt, render_response
from lora_rlhf.errors import UserError

SYSTEM = Message("system", "You are a farmer.")
TURNS = tuple(
    message
    for number in ("one", "two", "three", "four")
    for message in (Message("user", f"Count to {number}."), Message("assistant", f"Here is {number}."))
)
QUESTION = Message("user", "Where do penguins live?")
WORDS = Prompt.of("zero " + " ".join(f"word{number} 你好" for number in range(60)) + " the end")


def test_within_the_limits_nothing_changes(make_tokenizer, variant: str) -> None:
    tokenizer = make_tokenizer(variant)
    prompt = Prompt((*TURNS, QUESTION))
    length = len(render_prompt(tokenizer, prompt))
    (example,), refused = encode_demonstrations(tokenizer, [Demonstration(prompt, "In the south.")], length, 100)
    assert example == EncodedExample(
        render_prompt(tokenizer, prompt), render_response(tokenizer, prompt, "In the south.")
    )
    assert (refused.count, refused.truncated_prompts) == (0, 0)


@pytest.mark.parametrize("kept_pairs", [0, 1, 3])
def test_a_long_conversation_loses_its_oldest_turns_and_keeps_the_system(make_tokenizer, kept_pairs: int) -> None:
    tokenizer = make_tokenizer("chatml")
    kept = (SYSTEM, *TURNS[len(TURNS) - 2 * kept_pairs :], QUESTION)
    expected = render_prompt(tokenizer, Prompt(kept))
    whole = Prompt((SYSTEM, *TURNS, QUESTION))
    for slack in (0, 1):
        (encoded,), refused = encode_prompts(tokenizer, [whole], len(expected) + slack)
        assert encoded.prompt_ids == expected
        assert encoded.prompt is whole
        assert (refused.count, refused.truncated_prompts) == (0, 1)


@pytest.mark.parametrize("limit", [30, 31, 47, 100])
def test_a_long_message_loses_its_beginning_and_the_template_stays(make_tokenizer, variant: str, limit: int) -> None:
    tokenizer = make_tokenizer(variant)
    (encoded,), refused = encode_prompts(tokenizer, [WORDS], limit)
    assert limit - 4 <= len(encoded.prompt_ids) <= limit
    assert refused.truncated_prompts == 1
    content = WORDS.messages[0].content
    template_text = tokenizer.decode(render_prompt(tokenizer, WORDS))
    before, after = template_text.split(content)
    text = tokenizer.decode(encoded.prompt_ids)
    assert text.startswith(before)
    assert text.endswith(after)
    assert content.endswith(text[len(before) : len(text) - len(after)])


def test_the_system_message_stays_before_a_shortened_message(make_tokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    (encoded,), _ = encode_prompts(tokenizer, [Prompt((SYSTEM, *TURNS, *WORDS.messages))], 60)
    text = tokenizer.decode(encoded.prompt_ids)
    assert text.startswith("<|im_start|>system\nYou are a farmer.<|im_end|>\n<|im_start|>user\n")
    assert text.endswith(" the end<|im_end|>\n<|im_start|>assistant\n")
    assert len(encoded.prompt_ids) <= 60


def test_a_limit_below_the_template_is_refused(make_tokenizer) -> None:
    with pytest.raises(UserError, match=r"(?s)none of the 1 rows.*no room for the prompt.*raise max_prompt_tokens"):
        encode_prompts(make_tokenizer("chatml"), [WORDS], 3)


def test_a_response_over_the_limit_is_refused_and_at_the_limit_kept_whole(tokenizer) -> None:
    prompt = Prompt((QUESTION,), origin="demos.jsonl:4")
    demonstrations = [Demonstration(prompt, "In the cold south."), Demonstration(prompt, "Here.")]
    length = len(render_response(tokenizer, prompt, "In the cold south."))
    examples, refused = encode_demonstrations(tokenizer, demonstrations, 100, length)
    assert (len(examples), len(examples[0].response_ids), refused.count) == (2, length, 0)
    examples, refused = encode_demonstrations(tokenizer, demonstrations, 100, length - 1)
    assert [example.response_ids for example in examples] == [render_response(tokenizer, prompt, "Here.")]
    assert refused.summary() == (
        f"1 refused: the response has more than max_response_tokens={length - 1} tokens [demos.jsonl:4 has {length}]"
    )


def test_a_ranking_loses_its_long_responses_and_goes_when_fewer_than_two_are_left(tokenizer) -> None:
    long = "very " * 40
    three = Ranking(Prompt((QUESTION,), origin="r:1"), ("South.", long, "North."), (1, 3, 2))
    two = Ranking(Prompt((QUESTION,), origin="r:2"), ("South.", long), (1, 2))
    refused = RefusedRows()
    encoded = [encode_ranking(tokenizer, ranking, 100, 20, refused) for ranking in (three, two)]
    responses = [render_response(tokenizer, three.prompt, text) for text in ("South.", "North.")]
    assert encoded == [EncodedRanking(render_prompt(tokenizer, three.prompt), responses, [1, 2]), None]
    assert [(row.origin, row.reason.split()[0]) for row in refused] == [
        ("r:1", "the"),
        ("r:2", "the"),
        ("r:2", "fewer"),
    ]


def test_a_prompt_that_the_template_refuses_is_counted_once(make_tokenizer) -> None:
    tokenizer = make_tokenizer("inst_bos")
    refusing = Prompt((SYSTEM, QUESTION), origin="r:1")
    rankings = [Ranking(refusing, ("a", "b", "c"), (1, 2, 3)), Ranking(Prompt((QUESTION,)), ("a", "b"), (1, 2))]
    refused = RefusedRows()
    encoded = [encode_ranking(tokenizer, ranking, 100, 20, refused) for ranking in rankings]
    assert (encoded[0], encoded[1] is None, refused.count) == (None, False, 1)
    assert "System role not supported" in refused.summary()
    demonstrations = [Demonstration(ranking.prompt, "a") for ranking in rankings]
    assert encode_demonstrations(tokenizer, demonstrations, 100, 20)[1].count == 1
    assert encode_prompts(tokenizer, [ranking.prompt for ranking in rankings], 100)[1].count == 1


def test_nothing_left_and_no_eos_are_errors_but_no_rows_are_not(make_tokenizer, tokenizer) -> None:
    with pytest.raises(UserError, match=r"(?s)none of the 1 rows fits.*max_response_tokens=2"):
        encode_demonstrations(tokenizer, [Demonstration(WORDS, "A long answer.")], 100, 2)
    with pytest.raises(UserError, match="has no EOS token"):
        encode_prompts(make_tokenizer("no_eos"), [WORDS], 100)
    assert encode_prompts(tokenizer, [], 100)[0] == []
