import math

import pytest

from lora_rlhf.data import duplicates as exactly
from lora_rlhf.data.labels import fingerprint
from lora_rlhf.data.schema import Message, Prompt, choose_split, split_position
from lora_rlhf.inspection.duplicates import PENDING_HASHES, Prints, Tally, shared_prompts

LONG = (
    "Summarize the following report for a reader who has never heard of the harbour, its ships or its keepers, and who "
    "has little time: "
)
assert len(LONG) > 122  # with "user: " before it, more than 128 characters


def talk(*turns: str, system: str | None = None) -> Prompt:
    """A conversation: user, assistant, user, ..."""
    roles = ("user", "assistant")
    messages = [Message(roles[place % 2], turn) for place, turn in enumerate(turns)]
    return Prompt((*([Message("system", system)] if system else []), *messages))


def prints_of(*prompts: Prompt, most: int = 1000) -> Prints:
    prints = Prints(most=most)
    for prompt in prompts:
        prints.add(prompt)
    return prints


def test_tally_counts_every_hash_across_settlements() -> None:
    tally = Tally()
    for value in range(PENDING_HASHES + 10):
        tally.add(value * 7919 % 1000)
    values, counts = tally.table()
    assert values.tolist() == list(range(1000))
    assert counts.sum() == PENDING_HASHES + 10
    assert set(counts.tolist()) == {PENDING_HASHES // 1000, PENDING_HASHES // 1000 + 1}
    assert tally.scale == 1


@pytest.mark.parametrize(("first", "second"), [(1000, 10), (10, 1000), (1000, 900)])
def test_merged_tallies_are_the_tally_of_all(first: int, second: int) -> None:
    spread = 0x9E3779B97F4A7C15  # an odd number: every multiple of it, modulo 2**64, is another
    values = [number * spread % (1 << 64) for number in range(first)]
    others = [number * spread % (1 << 64) for number in range(first // 2, first // 2 + second)]
    one, other, whole = Tally(most=300), Tally(most=300), Tally(most=300)
    for value in values:
        one.add(value)
        whole.add(value)
    for value in others:
        other.add(value)
        whole.add(value)
    assert one.threshold != other.threshold or first + second > 1500
    one.merge(other)
    assert one.threshold == whole.threshold
    assert [part.tolist() for part in one.table()] == [part.tolist() for part in whole.table()]


def test_full_tally_keeps_a_consistent_sample() -> None:
    hashes = [fingerprint(str(number)) for number in range(5000)]
    tally = Tally(most=300)
    for value in hashes * 2:
        tally.add(value)
    values, counts = tally.table()
    assert values.tolist() == sorted(value for value in hashes if value < tally.threshold)
    assert 100 < len(values) <= 300
    assert set(counts.tolist()) == {2}
    assert tally.scale == 2**64 // tally.threshold == 32


def test_hash_stands_for_the_prompt_key() -> None:
    prompt = talk("  What IS\tthis? ", "\uff21 fox.", "Why?", system="Be\nbrief.")
    assert Prints().add(prompt) == fingerprint(prompt.key)


def test_beginning_and_starts_are_those_that_deduplication_uses() -> None:
    prompt = talk(LONG, "x" * 20, "And  then?", "y", "Why?", system="Be brief.")
    prints = prints_of(prompt)
    assert prints.starts.table()[0].tolist() == sorted(exactly.earlier_prompt_keys(prompt))
    assert int(prints.beginnings.table()[0][0]) >> 12 == fingerprint(exactly.normalized_beginning(prompt)) >> 12


def test_same_prompt_and_same_row() -> None:
    prints = Prints()
    for prompt, responses in [
        (talk("Name a bird."), [1]),
        (talk("name a  BIRD."), [1]),  # the same row in another spelling of the prompt
        (talk("Name a bird."), [2]),
        (talk("Name a fish."), [1]),
        (talk("Rank these."), [1, 2]),
        (talk("Rank these."), [2, 1]),
    ]:
        prints.add(prompt, responses)
    counted = prints.duplicate_counts()
    assert counted["rows"] == 6
    assert counted["repeated_rows"] == 1
    assert counted["repeated_prompts"] == 3
    assert counted["distinct_prompts"] == 3
    assert counted["estimated"] is False


def test_prompts_that_begin_alike() -> None:
    counted = prints_of(
        talk(LONG + "the storm"), talk(LONG + "the fog"), talk(LONG + "the fog"), talk("the fog"), talk("The fog?")
    ).duplicate_counts()
    assert counted["begin_alike"] == 3


def test_copies_alone_do_not_begin_alike() -> None:
    assert prints_of(talk(LONG + "a"), talk(LONG + "a")).duplicate_counts()["begin_alike"] == 0


@pytest.mark.parametrize(("same", "alike"), [(121, 0), (122, 2)])
def test_beginning_is_128_characters_with_the_role(same: int, alike: int) -> None:
    assert (
        prints_of(talk("a" * same + "b" * 50), talk("a" * same + "c" * 50)).duplicate_counts()["begin_alike"] == alike
    )


def test_system_message_is_no_beginning() -> None:
    system = "You are a careful assistant who answers briefly. " * 10
    counted = prints_of(talk("One?", system=system), talk("Two?", system=system)).duplicate_counts()
    assert counted["begin_alike"] == 0
    assert counted["distinct_prompts"] == 2


def test_continued_conversations() -> None:
    counted = prints_of(
        talk("Hi"),
        talk("Hi"),
        talk("Hi", "Hello", "Bye"),
        talk("Hi", "Hello", "Bye", "So long", "Wait"),
        talk("Hi you"),
    ).duplicate_counts()
    assert counted["continued"] == 3  # "Hi" twice, and the conversation up to "Bye"


def test_split_counts_as_the_stages_do() -> None:
    prompts = [talk(f"Question {number}?", "Yes.", "Why?", system="Be brief.") for number in range(200)]
    prints = Prints()
    for prompt in prompts:
        prints.add(prompt, fraction=0.2)
        prints.add(talk("On neither side."))
    expected = sum(choose_split(prompt.opening, 0.2) == "validation" for prompt in prompts)
    assert 20 < expected < 60
    first = min(split_position(prompt.opening) for prompt in prompts)
    assert prints.split_counts() == {
        "train": 200 - expected,
        "validation": expected,
        "begin_alike": 0,
        "enough": pytest.approx(math.floor(100 * first) / 100 + 0.01),
    }


@pytest.mark.parametrize("halves", [False, True])
def test_a_single_prompt_cannot_be_divided(halves: bool) -> None:
    prints, other = Prints(), Prints()
    for part in (prints, other if halves else prints):
        part.add(talk("Alone?"), fraction=0.05)
    prints.merge(other)
    assert prints.split_counts()["enough"] is None
    assert (prints.split_counts()["train"], prints.split_counts()["validation"]) == (2, 0)
    other.add(talk("D?"), fraction=0.05)
    prints.merge(other)
    assert 0.26 < split_position("user: d?") < 0.27 < split_position("user: alone?")
    assert prints.split_counts()["enough"] == 0.27


def test_split_finds_validation_prompts_that_begin_like_training_prompts() -> None:
    prints = Prints()
    alike = [talk(f"{LONG}{number}") for number in range(40)]
    for prompt in [*alike, *(talk(f"{number} {LONG}") for number in range(40))]:
        prints.add(prompt, fraction=0.5)
    expected = sum(choose_split(prompt.opening, 0.5) == "validation" for prompt in alike)
    assert 0 < expected < 40
    assert prints.split_counts()["begin_alike"] == expected


def test_copies_on_one_side_are_not_across_the_split() -> None:
    prints = Prints()
    for number in range(40):
        prints.add(talk(f"{number} {LONG}"), fraction=0.5)
        prints.add(talk(f"{number} {LONG}"), fraction=0.5)
    assert prints.split_counts()["begin_alike"] == 0


def test_shared_prompts() -> None:
    training = prints_of(talk("a"), talk("b"), talk("b"), talk("c", "d", "e"), talk("w"), talk(LONG + "x"))
    held_out = prints_of(talk("B "), talk("c"), talk("w", "v", "u"), talk("new"), talk(LONG + "x"))
    assert shared_prompts(held_out, training) == {"exact": 2, "near": 2}  # "c" is continued, and "w ... u" continues


def test_shared_beginnings() -> None:
    one, other = prints_of(talk(LONG + "x"), talk(LONG + "y")), prints_of(talk(LONG + "x"), talk(LONG + "z"))
    assert shared_prompts(one, other) == {"exact": 1, "near": 1}


def test_samples_of_different_sizes_are_compared_alike() -> None:
    prompts = [talk(f"Question {number}?") for number in range(3000)]
    small, large = prints_of(*prompts[:2000], most=100), prints_of(*prompts, most=100_000)
    assert shared_prompts(small, large)["exact"] == shared_prompts(large, small)["exact"] == small.num_distinct
    assert small.duplicate_counts()["estimated"]
    assert not large.duplicate_counts()["estimated"]


def test_one_beginning_of_all_rows_does_not_break_the_sample() -> None:
    prints = prints_of(*(talk(f"{LONG}{number}") for number in range(3000)), most=5000)
    assert prints.duplicate_counts()["begin_alike"] == 3000
    assert len(prints.beginnings.table()[0]) < 3000  # at most 4096, however many rows there are
