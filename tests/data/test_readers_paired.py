"""Pairs: the prompt is found wherever it stands, and never guessed where it can not be known."""

import random

import pytest

from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Message, Prompt, Ranking
from tests.support.rows import read as read_rows

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
OTHER = {"role": "assistant", "content": "No"}
SYSTEM = {"role": "system", "content": "Be kind."}
BLANK = {"role": "system", "content": " "}
HI = Prompt.of("Hi")
DIALOGUE = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:"
DIALOGUE_PROMPT = Prompt((Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Why?")))
KIND_HI = Prompt((Message("system", "Be kind."), Message("user", "Hi")))


def read(row: dict) -> Ranking:
    (record,) = read_rows("rankings", row)
    return record


@pytest.mark.parametrize(
    ("row", "prompt", "responses"),
    [
        ({"prompt": "Hi", "chosen": "a", "rejected": "b"}, HI, ("a", "b")),
        ({"prompt": "Hi", "chosen": [ANSWER], "rejected": [OTHER]}, HI, ("Hello", "No")),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]}, HI, ("Hello", "No")),
        ({"prompt": [SYSTEM, USER], "chosen": "Hello", "rejected": "No"}, KIND_HI, ("Hello", "No")),
        ({"prompt": "Hi", "chosen": [ANSWER], "rejected": "No"}, HI, ("Hello", "No")),
        ({"prompt": "Hi", "chosen": ANSWER, "rejected": OTHER}, HI, ("Hello", "No")),
        ({"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, HI, ("Hello", "No")),
        ({"chosen": [BLANK, USER, ANSWER], "rejected": [USER, OTHER]}, HI, ("Hello", "No")),
        # the prompt twice, or its beginning only in the column
        ({"prompt": "Hi", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, HI, ("Hello", "No")),
        ({"prompt": [USER], "chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, HI, ("Hello", "No")),
        ({"prompt": [SYSTEM, USER], "chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, KIND_HI, ("Hello", "No")),
        (
            {"prompt": "Hi", "chosen": [SYSTEM, USER, ANSWER], "rejected": [SYSTEM, USER, OTHER]},
            KIND_HI,
            ("Hello", "No"),
        ),
        # dialogues
        ({"chosen": f"{DIALOGUE} a", "rejected": f"{DIALOGUE} b"}, DIALOGUE_PROMPT, ("a", "b")),
        ({"chosen": f"{DIALOGUE} a", "rejected": f"{DIALOGUE.replace('Hi', 'Hi ')} b"}, DIALOGUE_PROMPT, ("a", "b")),
        (
            {"prompt": "?", "chosen": f"{DIALOGUE} a\n\nb", "rejected": f"{DIALOGUE} b"},
            DIALOGUE_PROMPT,
            ("a\n\nb", "b"),
        ),
        ({"prompt": DIALOGUE, "chosen": " a", "rejected": " b"}, DIALOGUE_PROMPT, (" a", " b")),
        # texts that begin with the prompt
        ({"chosen": "Is it? A cat.", "rejected": "Is it? A car."}, Prompt.of("Is it? A"), ("cat.", "car.")),
        ({"chosen": "Is it? A", "rejected": "Is it? A car."}, Prompt.of("Is it?"), ("A", "A car.")),
        ({"instruction": "Hi", "input": "x", "chosen": "a", "rejected": "b"}, Prompt.of("Hi\n\nx"), ("a", "b")),
        ({"system": "Be kind.", "question": "Hi", "chosen": "a", "rejected": "b"}, KIND_HI, ("a", "b")),
    ],
)
def test_pairs(row: dict, prompt: Prompt, responses: tuple[str, ...]) -> None:
    assert read(row) == Ranking(prompt, responses, (1, 2))


def test_the_labeler_is_kept() -> None:
    assert read({"prompt": "Hi", "chosen": "a", "rejected": "b", "labeler": "Ada"}).labeler == "Ada"


@pytest.mark.parametrize(("scores", "ranks"), [((8.0, 5.5), (1, 2)), ((7, 7.0), (1, 1)), (("9", "8.5"), (1, 2))])
def test_equal_scores_are_a_tie(scores: tuple, ranks: tuple[int, int]) -> None:
    sides = {"prompt": "Hi", "chosen": [USER, ANSWER], "rejected": [USER, OTHER], "prompt_id": "x"}
    row = {**sides, "score_chosen": scores[0], "score_rejected": scores[1], "messages": [USER, ANSWER]}
    assert read(row) == Ranking(HI, ("Hello", "No"), ranks)


def test_the_shared_beginning_is_the_longest_one_of_whole_words() -> None:
    draw = random.Random(0)
    for _ in range(200):
        shared = " ".join(draw.choice(["aa", "ab", "b"]) for _ in range(draw.randint(1, 6)))
        endings = draw.sample(["x", "y y", "xx", "z a"], 2)
        row = {"chosen": f"{shared} {endings[0]}", "rejected": f"{shared} {endings[1]}"}
        assert read(row) == Ranking(Prompt.of(shared), tuple(endings), (1, 2))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "chosen": "x", "rejected": "x"}, "chosen and rejected are the same"),
        ({"prompt": "Hi", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "chosen and rejected are the same"),
        ({"prompt": "a", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, "prompt is not in the conversation"),
        ({"prompt": "a", "chosen": "x", "rejected": "x "}, "chosen and rejected are the same"),
        ({"prompt": "a", "chosen": "x", "rejected": ""}, r"a response of the ranking is empty \(response 2 of 2\)"),
        ({"chosen": DIALOGUE, "rejected": f"{DIALOGUE} a"}, r"a response of the ranking is empty \(response 1 of 2\)"),
        ({"chosen": "Yes", "rejected": "No"}, "share no prompt"),
        ({"chosen": [ANSWER], "rejected": [OTHER]}, "share no prompt"),
        ({"chosen": [], "rejected": []}, "chosen does not end with an assistant's message"),
        ({"chosen": [USER, ANSWER], "rejected": [USER]}, "rejected does not end with an assistant's message"),
        ({"chosen": [SYSTEM, USER, ANSWER], "rejected": [USER, OTHER]}, "differ before their last"),
        ({"chosen": f"{DIALOGUE} a", "rejected": "\n\nHuman: Ho\n\nAssistant: b"}, "differ before their last"),
        ({"chosen": f"{DIALOGUE} a", "rejected": "b"}, "rejected is not a dialogue of Human: and Assistant:"),
        (
            {"chosen": f"{DIALOGUE} a\n\nHuman: b", "rejected": f"{DIALOGUE} b"},
            "chosen does not end with an assistant's",
        ),
        ({"prompt": "a", "chosen": 3, "rejected": "b"}, "the chosen is not text"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "labeler": 7}, "the labeler is not text"),
        ({"prompt": " ", "chosen": "b", "rejected": "c"}, "the prompt is empty"),
        # the words that two answers share are not their prompt
        (
            {"query": "Why?", "chosen": "It is so.", "rejected": "It is not."},
            r"without a prompt column \(is it query\?",
        ),
        (
            {"chosen": '[{"role": "user"', "rejected": '[{"role": "assistant"'},
            "a list is written as text that cannot be read",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 2, "score_rejected": 8},
            r"the rejected response has the better score \(2 and 8\)",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": "x", "score_rejected": 8}, "are not numbers"),
        ({"question": ["a"], "chosen": "b", "rejected": "c"}, "message without role and content"),
    ],
)
def test_what_is_no_pair_says_why(row: dict, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        read(row)
