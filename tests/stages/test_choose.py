"""Which prompts a round has labelled: a random share, flagged and uncertain ones, no near copies before others."""

from lora_rlhf.data.schema import Prompt
from lora_rlhf.stages.choose import Candidate, choose, is_flagged

NUMBERS = "one two three four five six seven eight nine ten eleven twelve".split()


def candidate(text: str, *scores: float, **meta: object) -> Candidate:
    return Candidate(Prompt(Prompt.of(text).messages, meta), ["a", "b", "c"], scores)


def test_flagged_come_first_then_small_margins() -> None:
    candidates = [candidate(number, 0.0, float(index)) for index, number in enumerate(NUMBERS)]
    candidates[11] = candidate("twelve", 0.0, 11.0, thumb="down")
    assert choose(candidates, 4, 0.0, seed=0) == {0: "uncertain", 1: "uncertain", 2: "uncertain", 11: "flagged"}


def test_a_random_share_does_not_look_at_scores() -> None:
    candidates = [
        candidate(f"{a} {b}", 0.0, float(i * 12 + j)) for i, a in enumerate(NUMBERS) for j, b in enumerate(NUMBERS)
    ]
    drawn = [choose(candidates, 40, 0.25, seed) for seed in range(20)]
    assert all(list(one.values()).count("random") == 10 and len(one) == 40 for one in drawn)
    places = [index for one in drawn for index, reason in one.items() if reason == "random"]
    assert 55 < sum(places) / len(places) < 90  # of 0 to 143
    assert choose(candidates, 40, 0.25, 0) == drawn[0] != drawn[1]


def test_a_near_copy_waits_until_no_other_is_left() -> None:
    candidates = [
        candidate("name a colour of the sky please", 0.0, 0.1),
        candidate("Name a colour of the sky please", 0.0, 0.2),
        candidate("how many legs has a spider", 0.0, 5.0),
    ]
    assert list(choose(candidates, 2, 0.0, 0)) == [0, 2]
    assert list(choose(candidates, 3, 0.0, 0)) == [0, 1, 2]
    assert list(choose(candidates, 9, 0.0, 0)) == [0, 1, 2]


def test_the_margin_is_the_mean_over_pairs_and_without_scores_there_is_none() -> None:
    assert candidate("x", 0.0, 1.0, 3.0).margin == 2.0
    assert set(choose([candidate("x"), candidate("y")], 2, 0.0, 0).values()) == {"other"}


def test_verdicts_of_users_flag() -> None:
    assert is_flagged({"thumb": -1}) and is_flagged({"flagged": True}) and is_flagged({"feedback": "bad"})
    assert not is_flagged({"thumb": 1, "rating": 5, "topic": "bad", "label": "unheard of"})
