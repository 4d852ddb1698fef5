"""Thoughts in the text of an answer, and what is wrong with some."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.thoughts import join_thought, split_thought

TEXT = st.lists(st.sampled_from(["a", " ", "\n", "\n\n", "<", "think", "ü"]), max_size=6).map("".join)


@given(thought=TEXT.filter(str.strip), answer=TEXT)
def test_a_thought_and_its_answer_come_back(thought: str, answer: str) -> None:
    assert split_thought(join_thought(thought, answer)) == (thought, answer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4", ("", "4")),
        ("Use the tag <think> here.", ("", "Use the tag <think> here.")),
        ("<think>Two and two.</think>4", ("Two and two.", "4")),
        ("  <think>\nTwo\n\nand two.\n</think>\n4", ("Two\n\nand two.", "4")),
        ("Two and two.\n</think>\n\n4", ("Two and two.", "4")),  # from a server that leaves the prompt's tag out
        ("<think>\n\n</think>\n\n4", ("", "4")),
        ("<think>Two.</think>", ("Two.", "")),
    ],
)
def test_forms_that_data_have(text: str, expected: tuple[str, str]) -> None:
    assert split_thought(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<think>Two and", "never closed"),
        ("\n<think>", "never closed"),
        ("<think>Two</think>4</think>", "opens or closes twice"),
        ("<think>Two<think> and</think>4", "opens or closes twice"),
        ("<think>a</think>b<think>c</think>d", "opens or closes twice"),
        ("It is 4. <think>Two</think>", "does not come first"),
        ("Two</think>4<think>", "does not come first"),
    ],
)
def test_faults(text: str, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        split_thought(text)
