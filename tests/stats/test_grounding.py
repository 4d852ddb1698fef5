"""What answers state that their sources do not hold, by the rules that docs/evaluation.md names."""

import pytest

from lora_rlhf.stats.grounding import unsupported_items

SOURCES = [
    'Anna has seven kites. Farley sells bells on Tuesday. The firm earned $1,500.50 by 2024-05-01, "a record year", '
    "said Marie Curie's heir of flight A320.",
    "How many kites does Anna have?",
]


@pytest.mark.parametrize(
    ("answer", "items"),
    [
        ("Anna has seven kites, 7 in all.", []),
        ("Anna has nine kites, or 9.", ["nine", "9"]),
        ("Farley sells bells on Friday, not on Tuesday.", ["Friday"]),
        ("It earned 1500.5 dollars by 1 05 2024, as Curie\u2019s heir says.", []),
        ("It earned 1,500 dollars in May 2024.", ["1,500", "May"]),
        ("1. It was \u201ca record year\u201d.\n2. It was \u201ca bad year\u201d [3].", ["\u201ca bad year\u201d"]),
        ("Pierre Curie said so. Paris Hilton too.", ["Pierre", "Paris", "Hilton"]),
        ("I'm sure. In Paris I saw it. However, nothing is said.", ["Paris"]),
        ("By Carl. The Louvre is Carl's.", ["Carl", "Louvre"]),
        ("Airbus A380 and A320", ["Airbus", "380"]),
        ("twenty-two kites", ["twenty-two"]),
        ("Elmton is big.", []),  # a sentence's first word alone is no name
        ("The text does not say.", []),
        ("", []),
    ],
)
def test_items_that_stand_in_no_source(answer: str, items: list[str]) -> None:
    assert unsupported_items(answer, SOURCES) == items
