import pytest

from lora_rlhf.data.schema import Prompt
from lora_rlhf.exporting.prompts import evenly_spaced


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(16, 8, [0, 2, 4, 6, 8, 10, 12, 14]), (15, 8, [0, 1, 3, 5, 7, 9, 11, 13]), (3, 8, [0, 1, 2]), (0, 8, [])],
)
def test_prompts_are_spread_over_the_whole_file(count: int, most: int, expected: list[int]) -> None:
    prompts = [Prompt.of(f"Question {number}?") for number in range(count)]
    assert evenly_spaced(prompts, most) == [prompts[number] for number in expected]
