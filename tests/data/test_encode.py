"""Length limits: prompts lose their oldest part, long responses are refused or cut as asked, and all is counted."""

from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_rlhf.data.batches import sft_batch
from lora_rlhf.data.encode import (
    EncodedExample,
    EncodedRanking,
    Limits,
    encode_demonstration,
    encode_prompt,
    encode_prompts,
    encode_ranking,
)
from lora_rlhf.data.refusals import RefusedRows
from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking
from lora_rlhf.data.template import decode_response, ensure_template, render_prompt, render_response, stop_ids
from lora_rlhf.system.errors import UserError

SYSTEM = Message("system", "You are a farmer.")
TURNS = tuple(
    message
    for number in ("one", "two", "three", "four")
    for message in (Message("user", f"Count to {number}."), Message("assistant", f"Here is {number}."))
)
QUESTION = Message("user", "Where do penguins live?")
WORDS = Prompt.of("zero " + " ".join(f"word{number} 你好" for number in range(60)) + " the end")


def encode_all(
    tokenizer, demonstrations: Iterable[Demonstration], limits: Limits
) -> tuple[list[EncodedExample], RefusedRows]:
    refused = RefusedRows()
    examples = [encode_demonstration(tokenizer, demonstration, limits, refused) for demonstration in demonstrations]
    return [example for example in examples if example is not None], refused


def test_within_the_limits_nothing_changes(make_tokenizer, variant: str) -> None:
    tokenizer = make_tokenizer(variant)
    prompt = Prompt((*TURNS, QUESTION))
    length = len(render_prompt(tokenizer, prompt))
    (example,), refused = encode_all(tokenizer, [Demonstration(prompt, "In the south.")], Limits(length, 100))
    assert example.prompt_ids == render_prompt(tokenizer, prompt)
    assert example.context_ids + example.response_ids == example.prompt_ids + render_response(
        tokenizer, prompt, "In the south."
    )
    assert tokenizer.decode(example.context_ids[len(example.prompt_ids) :]) == (
        "<think>\n\n</think>\n\n" if variant == "thinking" else ""
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


def test_a_long_conversation_is_not_rendered_once_per_turn(make_tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer("chatml")
    rendered: list[int] = []
    apply = tokenizer.apply_chat_template

    def counted(messages, **options):
        rendered.append(len(messages))
        return apply(messages, **options)

    monkeypatch.setattr(tokenizer, "apply_chat_template", counted)
    (encoded,), _ = encode_prompts(tokenizer, [Prompt((*TURNS * 50, QUESTION))], 60)
    assert len(encoded.prompt_ids) <= 60 and tokenizer.decode(encoded.prompt_ids).count("<|im_start|>user") == 2
    assert sum(rendered) < 2 * len(TURNS) * 50


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
    with pytest.raises(UserError, match=r"(?s)no row of 1 fits.*no room for the prompt.*raise max_prompt_tokens"):
        encode_prompts(make_tokenizer("chatml"), [WORDS], 3)


def test_a_response_over_the_limit_is_refused_and_at_the_limit_kept_whole(tokenizer) -> None:
    prompt = Prompt((QUESTION,), origin="demos.jsonl:4")
    demonstrations = [Demonstration(prompt, "In the cold south."), Demonstration(prompt, "Here.")]
    length = len(render_response(tokenizer, prompt, "In the cold south."))
    examples, refused = encode_all(tokenizer, demonstrations, Limits(100, length))
    assert (len(examples), len(examples[0].response_ids), refused.count) == (2, length, 0)
    examples, refused = encode_all(tokenizer, demonstrations, Limits(100, length - 1))
    assert [example.response_ids for example in examples] == [render_response(tokenizer, prompt, "Here.")]
    assert refused.summary() == (
        f"1 refused: the response has more than max_response_tokens={length - 1} tokens (has {length}) [demos.jsonl:4]"
    )


def test_a_ranking_loses_its_long_responses_and_goes_when_fewer_than_two_are_left(tokenizer) -> None:
    long = "very " * 40
    three = Ranking(Prompt((QUESTION,), origin="r:1"), ("South.", long, "North."), (1, 3, 2))
    two = Ranking(Prompt((QUESTION,), origin="r:2"), ("South.", long), (1, 2))
    refused = RefusedRows()
    encoded = [encode_ranking(tokenizer, ranking, Limits(100, 20), refused) for ranking in (three, two)]
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
    encoded = [encode_ranking(tokenizer, ranking, Limits(100, 20), refused) for ranking in rankings]
    assert (encoded[0], encoded[1] is None, refused.count) == (None, False, 1)
    assert "System role not supported" in refused.summary()
    demonstrations = [Demonstration(ranking.prompt, "a") for ranking in rankings]
    assert encode_all(tokenizer, demonstrations, Limits(100, 20))[1].count == 1
    assert encode_prompts(tokenizer, [ranking.prompt for ranking in rankings], 100)[1].count == 1


def test_a_tokenizer_without_eos_is_an_error_and_no_rows_are_none(make_tokenizer, tokenizer) -> None:
    with pytest.raises(UserError, match="has no EOS token"):
        encode_prompts(make_tokenizer("no_eos"), [WORDS], 100)
    assert encode_prompts(tokenizer, [], 100)[0] == []


def test_a_cut_response_keeps_its_first_tokens_and_teaches_no_stop(make_tokenizer, variant: str) -> None:
    tokenizer = make_tokenizer(variant)
    prompt = Prompt((QUESTION,), origin="demos.jsonl:4")
    whole = render_response(tokenizer, prompt, "In the cold south, near the sea.")
    demonstration = Demonstration(prompt, "In the cold south, near the sea.")
    num_empty = len(tokenizer("<think>\n\n</think>\n\n")["input_ids"]) if variant == "thinking" else 0
    for limit in (num_empty + 1, len(whole) - 1):
        (example,), refused = encode_all(tokenizer, [demonstration], Limits(100, limit, "cut"))
        assert example.response_ids == whole[num_empty:limit]
        assert not set(stop_ids(tokenizer)) & set(example.response_ids)
        assert (refused.count, refused.cut_responses) == (0, 1)
    (example,), refused = encode_all(tokenizer, [demonstration], Limits(100, len(whole), "cut"))
    assert (example.response_ids, refused.cut_responses, refused.summary()) == (whole[num_empty:], 0, "")


def test_a_ranking_keeps_every_response_that_is_cut_also_two_that_become_equal(tokenizer) -> None:
    ranking = Ranking(Prompt((QUESTION,)), ("very very very long", "South.", "very very very short"), (3, 1, 2))
    refused = RefusedRows()
    encoded = encode_ranking(tokenizer, ranking, Limits(100, 3, "cut"), refused)
    cut = render_response(tokenizer, ranking.prompt, "very very very long")[:3]
    south = render_response(tokenizer, ranking.prompt, "South.")[:3]
    assert encoded is not None
    assert (encoded.response_ids, encoded.ranks) == ([cut, south, cut], [3, 1, 2])
    assert (refused.count, refused.cut_responses) == (0, 3)
    assert refused.summary() == "3 responses cut at the limit"


def test_a_response_that_did_not_end_has_no_stop_token_and_is_cut_at_the_limit(tokenizer) -> None:
    ranking = Ranking(Prompt((QUESTION,)), ("South.", "North is", "very " * 40), (1, 2, 3), None, (True, False, False))
    refused = RefusedRows()
    encoded = encode_ranking(tokenizer, ranking, Limits(100, 20), refused)
    whole = [render_response(tokenizer, ranking.prompt, text) for text in ranking.responses]
    assert encoded is not None
    assert encoded.response_ids == [whole[0], whole[1][:-1], whole[2][:20]]
    assert (refused.count, refused.cut_responses) == (0, 1)


def test_any_iterable_will_do_and_is_read_a_row_at_a_time(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def rows() -> Iterator[Demonstration]:
        for answer in ("South.", "North."):
            seen.append(f"read {answer}")
            yield Demonstration(Prompt((QUESTION,)), answer)

    def watched(*arguments, **options):
        seen.append("encode")
        return apply(*arguments, **options)

    stop_ids(tokenizer)  # asks the template once, before any row
    limits, apply = Limits(100, 20), tokenizer.apply_chat_template
    monkeypatch.setattr(tokenizer, "apply_chat_template", watched)
    examples, _ = encode_all(tokenizer, rows(), limits)
    assert [decode_response(tokenizer, example.response_ids) for example in examples] == ["South.", "North."]
    assert [event for event, before in zip(seen, ["", *seen], strict=False) if event != before] == [
        "read South.",
        "encode",
        "read North.",
        "encode",
    ]
    with pytest.raises(UserError, match="no row of 3 fits"):
        encode_prompts(tokenizer, (Prompt((QUESTION,)) for _ in range(3)), 2)


def test_prompts_that_hold_the_template_already_are_one_reason(make_tokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    wrapped = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    prompts = [Prompt((Message("user", wrapped.format(text)),), origin=f"p:{text}") for text in ("Hi", "Bye")]
    encoded, refused = encode_prompts(tokenizer, [*prompts, Prompt((QUESTION,))], 100)
    assert [item.prompt.messages for item in encoded] == [(QUESTION,)]
    (reason,) = refused.reasons_by_count().items()
    assert (reason[0], reason[1].count) == ("the chat template seems to be applied already", 2)


CONTENT = st.lists(st.sampled_from(["cat ", "</s>", "\n", "ü🐴", "  two", "<|im_end|>"]), min_size=1, max_size=12).map(
    lambda pieces: "".join(pieces) + "?"
)


@settings(max_examples=25, deadline=None)
@given(
    contents=st.lists(CONTENT, min_size=1, max_size=7).filter(lambda contents: len(contents) % 2 == 1),
    with_system=st.booleans(),
    limit=st.integers(20, 150),
)
def test_a_truncated_prompt_is_the_longest_end_of_the_conversation_that_fits(
    make_tokenizer, variant: str, contents: list[str], with_system: bool, limit: int
) -> None:
    tokenizer = make_tokenizer(variant)
    ensure_template(tokenizer)
    system = [SYSTEM] if with_system and variant != "inst_bos" else []
    turns = [Message("user" if place % 2 == 0 else "assistant", text) for place, text in enumerate(contents)]

    def rendered(start: int) -> list[int]:
        """What the library makes of the conversation from a turn on."""
        messages = [{"role": message.role, "content": message.content} for message in (*system, *turns[start:])]
        options = {"add_generation_prompt": True, "sanitize_control_tokens": True, "return_dict": False}
        return tokenizer.apply_chat_template(messages, **options)

    refused = RefusedRows()
    ids = encode_prompt(tokenizer, Prompt((*system, *turns)), limit, refused)
    ends = [rendered(start) for start in range(0, len(turns), 2)]
    fitting = [end for end in ends if len(end) <= limit]
    if fitting:
        assert ids == fitting[0]
    elif ids is not None:  # the beginning of the last message went too
        before, _, after = tokenizer.decode(ends[-1]).rpartition(contents[-1])
        text = tokenizer.decode(ids)
        assert len(ids) <= limit and text.startswith(before) and text.endswith("?" + after)
        assert contents[-1].endswith(text[len(before) : len(text) - len(after)])
    assert (refused.count, refused.truncated_prompts) == (ids is None, ids is not None and ids != ends[0])


def test_an_empty_thought_is_read_and_not_learned_unless_asked(make_tokenizer) -> None:
    tokenizer = make_tokenizer("thinking")
    demonstration, empty = Demonstration(Prompt((*TURNS, QUESTION)), "South."), "<think>\n\n</think>\n\n"
    end = "<|im_end|>"
    wide = Limits(200, 40)
    (example,), _ = encode_all(tokenizer, [demonstration], wide)
    assert tokenizer.decode(example.response_ids) == "South." + end
    assert tokenizer.decode(example.context_ids) == tokenizer.decode(example.prompt_ids) + empty
    batch = sft_batch([example], 0)
    assert tokenizer.decode(batch["labels"][batch["labels"] >= 0]) == "South." + end
    asked = encode_demonstration(tokenizer, demonstration, wide, RefusedRows(), learns_empty_thoughts=True)
    assert asked is not None
    assert tokenizer.decode(asked.response_ids) == empty + "South." + end
    assert asked.context_ids == asked.prompt_ids == example.prompt_ids
    # a truncated prompt has it too, and both limits hold
    num_empty = len(example.context_ids) - len(example.prompt_ids)
    num_response = num_empty + len(example.response_ids)
    (short,), refused = encode_all(tokenizer, [demonstration], Limits(len(example.prompt_ids) - 1, num_response))
    assert refused.truncated_prompts == 1
    assert len(short.prompt_ids) < len(example.prompt_ids)
    assert tokenizer.decode(short.context_ids) == tokenizer.decode(short.prompt_ids) + empty
    assert short.response_ids == example.response_ids
    _, refused = encode_all(tokenizer, [demonstration], Limits(200, num_response - 1))
    assert f"has {num_response}" in refused.summary()
