"""Labels of steps: each form of them is read, faults name their place, and steps end at the right tokens."""

from dataclasses import replace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from lora_rlhf.data.encode import EncodedSteps, Limits, encode_steps
from lora_rlhf.data.refusals import BadRow, RefusedRows
from lora_rlhf.data.schema import Prompt, StepLabels
from lora_rlhf.data.steps import find_step_ends
from lora_rlhf.model.base import load_tokenizer
from tests.support.rows import read

HI = Prompt.of("Hi")
SHEPHERD = "Hi Step 1: a ки\nStep 2: b ки"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("tinyworld")


def rated(text: str, rating: Any) -> dict[str, Any]:
    return {"text": text, "rating": rating}


def prm800k(*steps: tuple[list[dict[str, Any]], int | None]) -> dict[str, Any]:
    rows = [{"completions": found, "chosen_completion": chosen, "human_completion": None} for found, chosen in steps]
    return {"question": {"problem": "Hi"}, "label": {"steps": rows, "finish_reason": "found_error"}}


def test_prm800k_gives_its_path_and_each_other_completion() -> None:
    row = prm800k(
        ([rated("a", 1), rated("b", -1)], 0), ([rated("c", None)], 0), ([rated("d", 0), rated("e", -1)], None)
    )
    assert read("steps", row) == [
        StepLabels(HI, ("b",), (False,), False),
        StepLabels(HI, ("a", "c", "d"), (None, None, True), False),
        StepLabels(HI, ("a", "c", "e"), (None, None, False), False),
        StepLabels(HI, ("a", "c"), (True, None), False),
    ]


def test_a_step_that_a_person_wrote_is_good() -> None:
    row = prm800k(([rated("a", -1)], None))
    row["label"]["steps"][0]["human_completion"] = {"text": "b # Answer 1", "rating": None}
    assert read("steps", row)[-1] == StepLabels(HI, ("b # Answer 1",), (True,), True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Hi", "completions": ["a"], "labels": [True, False]}, "2 labels and 1 steps"),
        ({"prompt": "Hi", "completions": ["a", "b"], "labels": [1, 0.5]}, "step 2: 0.5"),
        ({"prompt": "Hi", "completions": ["a", " "], "labels": [1, 0]}, "step 2 of 2"),
        ({"prompt": "Hi", "completions": ["a"], "labels": [None]}, "no step has a label"),
        ({"prompt": "Hi", "completions": ["a", "b"], "labels": [1, 0], "response": "a c"}, "response \\(step 2: 'b'"),
        ({"prompt": "Hi", "completions": ["a"], "labels": [1], "response": "a b"}, "no step holds its end: 'b'"),
        (prm800k(([rated("a", 2)], 0)), "step 1: 2"),
        (prm800k(([rated("a", 1)], 3)), "step 1: 3 of 1"),
        ({"input": SHEPHERD, "label": "Hi Step 1: a +\nStep 2: c -"}, "step 2: 'Step 2: b'"),
        ({"input": SHEPHERD, "label": "Hi Step 1: a +\nStep 2: b ?"}, "step 2: '\\?'"),
        ({"input": SHEPHERD + " c", "label": "Hi Step 1: a +\nStep 2: b - c"}, "after step 2: 'c'"),
        ({"input": "Hi ки", "label": "Hi +"}, "does not begin with Step 1"),
    ],
)
def test_a_fault_names_its_place(row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        read("steps", row)


def encode(
    tokenizer: PreTrainedTokenizerBase, row: StepLabels, step_end: str, most: int = 40, **options: Any
) -> tuple[EncodedSteps | None, RefusedRows]:
    refused = RefusedRows()
    return encode_steps(tokenizer, row, step_end, Limits(40, most, **options), refused), refused


@pytest.mark.parametrize("step_end", ["\n", "\n\n", ".", " then"])
def test_a_step_ends_where_its_text_has_come(tokenizer: PreTrainedTokenizerBase, step_end: str) -> None:
    row = StepLabels(HI, ("One plus two is three", "Élan is six", "So nine"), (True, None, False))
    encoded, _ = encode(tokenizer, row, step_end)
    assert encoded is not None and encoded.labels == [True, None, False]
    texts = [tokenizer.decode(encoded.response_ids[: end + 1]) for end in encoded.ends]
    assert texts[0].strip("\n .") == f"One plus two is three{step_end}".strip("\n .")
    assert step_end in texts[0] and step_end not in tokenizer.decode(encoded.response_ids[: encoded.ends[0]])
    assert "Élan is six" in texts[1] and "So" not in texts[1]
    assert encoded.ends[2] == len(encoded.response_ids) - 1
    assert encoded.judged == {encoded.ends[0]: True, encoded.ends[2]: False}


def test_an_answer_that_did_not_end_has_no_stop_token(tokenizer: PreTrainedTokenizerBase) -> None:
    row = StepLabels(HI, ("One.", "Two."), (True, False))
    (ended, _), (open_, _) = (encode(tokenizer, replace(row, has_ended=flag), ".") for flag in (True, False))
    assert ended is not None and open_ is not None
    assert ended.response_ids == [*open_.response_ids, tokenizer.eos_token_id]
    assert open_.ends == [ended.ends[0], ended.ends[1] - 1]


def test_a_cut_answer_loses_the_label_of_the_step_that_was_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    row = StepLabels(HI, ("One.", "Two and two and two and two."), (True, False))
    encoded, _ = encode(tokenizer, row, ".", 5, long_responses="cut")
    assert encoded is not None and encoded.labels == [True, None]
    encoded, refused = encode(tokenizer, row, ".", 5)
    assert encoded is None and "max_response_tokens" in refused.summary()


def test_a_step_that_holds_the_end_of_a_step(tokenizer: PreTrainedTokenizerBase) -> None:
    row = StepLabels(HI, ("One.\n\nTwo.", "Three."), (True, False))
    encoded, _ = encode(tokenizer, row, "\n")
    assert encoded is not None
    assert tokenizer.decode(encoded.response_ids, skip_special_tokens=True).strip() == "One. Two.\nThree."
    encoded, refused = encode(tokenizer, row, ".")
    assert encoded is None and "choose another --step_end (step 1)" in refused.summary()


@pytest.mark.parametrize(("text", "count"), [("", 1), ("..", 1), ("One", 1), ("One.", 1), ("One. . Two. Three", 3)])
def test_blank_text_between_two_ends_is_no_step(tokenizer: PreTrainedTokenizerBase, text: str, count: int) -> None:
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    ends = find_step_ends(tokenizer, ids, ".")
    assert len(ends) == count and ends[-1] == len(ids) - 1
