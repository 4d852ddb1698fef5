from dataclasses import replace

import pytest

from lora_rlhf.data.labels import fingerprint
from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking, Text
from lora_rlhf.inspection.figures import FileFigures, Signs, UnusedColumns
from lora_rlhf.inspection.rankings import RankingFigures


def figures_of(*rankings: Ranking, most: int = 1000) -> RankingFigures:
    figures = RankingFigures(most)
    for ranking in rankings:
        responses = [fingerprint(response) for response in ranking.responses]
        figures.add(ranking, fingerprint(ranking.prompt.key), responses)
    return figures


def rank(prompt: str, responses: str, ranks: tuple[int, ...], labeler: str | None = None) -> Ranking:
    return Ranking(Prompt.of(prompt), tuple(responses.split()), ranks, labeler)


def test_pairs_ties_and_sizes() -> None:
    summary = figures_of(
        rank("p", "a b", (1, 2)), rank("q", "a b c d", (1, 2, 2, 3)), rank("r", "a b c", (1, 1, 1))
    ).summary()
    assert summary["count"] == 3
    assert summary["responses"] == {"2": 1, "3": 1, "4": 1}
    assert summary["pairs"] == 1 + 5
    assert summary["ties"] == 1 + 3
    assert summary["all_tied"] == 1
    assert summary["labelers"] == 0
    assert summary["agreement"] is None


def test_longer_wins_counts_pairs_and_equal_lengths_as_half() -> None:
    summary = figures_of(
        rank("p", "aa b", (1, 2)),  # the longer wins
        rank("q", "aa b", (2, 1)),  # the shorter
        rank("r", "a b", (1, 2)),  # as long
        rank("s", "aaa bb c", (1, 2, 2)),  # the longer, twice
    ).summary()
    assert summary["longer_wins"]["rate"] == pytest.approx(3.5 / 5)
    assert summary["longer_wins"]["equal"] == 1


def test_responses_that_did_not_end_are_counted_where_it_is_known() -> None:
    cut = replace(rank("q", "a b c", (1, 2, 3)), ended=(True, False, False))
    summary = figures_of(rank("p", "a b", (1, 2)), cut).summary()
    assert (summary["cut"], summary["known_ends"]) == (2, 3)


def test_interval_of_independent_pairs_is_wilsons() -> None:
    rankings = [rank(f"p{n}", "aa b", (1, 2) if n < 60 else (2, 1)) for n in range(100)]
    longer = figures_of(*rankings).summary()["longer_wins"]
    assert longer["rate"] == 0.6
    assert longer["low"] == pytest.approx(0.502, abs=5e-3)
    assert longer["high"] == pytest.approx(0.691, abs=5e-3)


def test_pairs_of_one_ranking_are_not_independent() -> None:
    up, down = "aaaa aaa aa a", "a aa aaa aaaa"
    rankings = [rank(f"p{n}", up if n < 60 else down, (1, 2, 3, 4)) for n in range(100)]
    longer = figures_of(*rankings).summary()["longer_wins"]
    assert longer["rate"] == 0.6
    assert longer["low"] == pytest.approx(0.502, abs=5e-3)  # as wide as of 100 pairs, though there are 600


def test_interval_is_honest_where_the_longer_always_wins() -> None:
    longer = figures_of(*(rank(f"p{n}", "aa b", (1, 2)) for n in range(10))).summary()["longer_wins"]
    assert longer["rate"] == longer["high"] == 1
    assert longer["low"] == pytest.approx(0.722, abs=5e-3)


def test_no_pair_no_interval() -> None:
    assert figures_of(rank("p", "a b", (1, 1))).summary()["longer_wins"] is None


def test_agreement_of_labelers_on_one_prompt() -> None:
    summary = figures_of(
        rank("P ", "a b c", (1, 2, 3), "ann"),
        rank("p", "c b a", (2, 3, 1), "bob"),  # a before c before b: alike on a-b and a-c, not on b-c
        rank("p", "a b", (2, 1), "ann"),  # ann again: compared with bob alone
        rank("q", "a b", (2, 1), "bob"),
    ).summary()
    assert summary["labelers"] == 2
    assert summary["agreement"] == {"rate": pytest.approx(2 / 4), "pairs": 4}


def test_agreement_of_nameless_labelers() -> None:
    summary = figures_of(rank("p", "a b", (1, 2)), rank("p", "b a", (1, 2)), rank("p", "b a", (2, 1))).summary()
    assert summary["agreement"] == {"rate": pytest.approx(1 / 3), "pairs": 3}


def test_rankings_of_a_prompt_are_forgotten_together() -> None:
    rankings = [rank(f"p{n}", "a b", ranks) for ranks in ((1, 2), (2, 1)) for n in range(500)]
    figures = figures_of(*rankings, most=400)
    assert len(figures._responses) == len(figures._ranks) == 2 * len(figures._prompts) <= 400
    agreed = figures.summary()["agreement"]
    assert agreed["rate"] == 0
    assert agreed["pairs"] == len(figures._prompts) / 2 > 25


def test_huge_ranks_keep_their_order() -> None:
    big = 10**30
    summary = figures_of(rank("p", "a b c", (big, 7, big + 1)), rank("p", "a b c", (2, 1, 3))).summary()
    assert summary["agreement"] == {"rate": 1.0, "pairs": 3}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<|im_start|>user\nHello", True),
        ("[INST] Hello [/INST]", True),
        ("Hello\n\n### Response:", True),
        ("Hello\n\nAssistant: Hi", True),
        ("My Assistant: a short play", False),
        ("List [1] and <b>bold</b>, # Title, 1 < 2", False),
    ],
)
def test_markup(text: str, found: bool) -> None:
    assert Signs.from_record(Prompt.of(text), UnusedColumns(), None).markup is found
    assert Signs.from_record(Demonstration(Prompt.of("q"), text), UnusedColumns(), None).markup is found


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("She has 3 apples.\n#### 1,234", True),
        ("So x = -4.5.", True),
        ("It costs $18", True),
        (r"The answer is \boxed{\frac{1}{2}}.", True),
        ("42", True),
        ("The year 1969 was eventful.", False),
        ("See version v2", False),
    ],
)
def test_answers_that_end_in_a_number(answer: str, found: bool) -> None:
    assert numbered([Demonstration(Prompt.of("q"), answer)]) == found
    assert numbered([rank_two(answer, "no idea")]) == found
    assert numbered([rank_two("no idea", answer)]) == 0


@pytest.mark.parametrize(
    ("asked", "answers"),
    [
        ("Where does owl number {} live?", [[f"In house {n}."] for n in (3, 1, 2)]),  # the question names it
        ("Tell me.", [[f"Story {n}"] for n in range(7)]),  # it numbers the rows
        ("Tell me.", [["Yes 0.", "No 1.", "So 2."]] * 9),  # it numbers the responses
        ("Tell me.", [["Yes (1)", "No (2)"]] * 9),
    ],
)
def test_a_number_that_only_counts_is_no_result(asked: str, answers: list[list[str]]) -> None:
    records: list[Demonstration | Ranking] = []
    for number, responses in zip((3, 1, 2, 4, 5, 6, 7, 8, 9), answers, strict=False):
        prompt = Prompt.of(asked.format(number))
        if len(responses) == 1:
            records.append(Demonstration(prompt, responses[0]))
        else:
            records.append(Ranking(prompt, tuple(responses), tuple(range(1, len(responses) + 1))))
    assert numbered(records) == 0


def test_results_of_several_rows_count() -> None:
    sums = [("3 + 4?", "It is 7."), ("2 * 9?", "18"), ("1 + 1?", r"\boxed{2}"), ("Why?", "So."), ("5 + 5?", "10")]
    assert numbered([Demonstration(Prompt.of(asked), answer) for asked, answer in sums]) == 0.8
    assert numbered([rank_two("7", "8"), rank_two("7", "6")]) == 1


def numbered(records: list[Demonstration | Ranking]) -> float:
    figures = FileFigures(num_sampled=100, fractions={})
    for record in records:
        figures.add(record)
    return figures.summary(None, 10, 10)["signs"]["ends_in_number"]


def rank_two(best: str, worst: str) -> Ranking:
    return Ranking(Prompt.of("q"), (worst, best), (2, 1))


def test_columns_that_hold_something() -> None:
    prompt = Prompt((Message("user", "q"),), meta={"id": 0, "system": "", "notes": None, "source": "web", "tags": []})
    figures = FileFigures(num_sampled=10, fractions={})
    figures.add(prompt)
    figures.add(Prompt.of("another"))
    signs = figures.summary(None, 256, 256)["signs"]
    assert signs["columns"] == {"id": 0.5, "source": 0.5}
    assert signs["empty"] == {"system": 0.5}


def test_summary_of_mixed_records() -> None:
    figures = FileFigures(num_sampled=100, fractions={"demonstrations": 0.5})
    asked = Prompt(
        (Message("system", "s" * 5), Message("user", "abc"), Message("assistant", "d"), Message("user", "e"))
    )
    figures.add(Demonstration(Prompt.of("four"), "x" * 7))
    figures.add(Demonstration(asked, "y"))
    figures.add(rank("four", "aa b", (1, 2)))
    figures.add(Prompt.of("lone"))
    figures.add(Text("t" * 9))
    summary = figures.summary(None, 10, 10)
    assert summary["kinds"] == {"demonstrations": 2, "rankings": 1, "prompts": 1, "texts": 1}
    assert summary["turns"] == {"mean": 1.25, "max": 2, "with_system": 0.25}
    assert summary["characters"]["prompt"]["count"] == 4
    assert summary["characters"]["prompt"]["max"] == 10
    assert summary["characters"]["response"]["mean"] == pytest.approx((7 + 1 + 2 + 1 + 9) / 5)
    assert summary["tokens"] is None
    assert summary["duplicates"]["rows"] == 5
    assert summary["duplicates"]["repeated_prompts"] == 1
    assert summary["signs"]["rows"] == 5


def test_each_kind_is_split_by_its_own_fraction_and_what_no_stage_trains_on_is_not() -> None:
    figures = FileFigures(num_sampled=100, fractions={"demonstrations": 0.0, "rankings": 1.0})
    for number in range(7):
        figures.add(Demonstration(Prompt.of(f"d{number}"), "a"))
    for number in range(5):
        figures.add(rank(f"r{number}", "a b", (1, 2)))
    for record in (rank("tied", "a b", (1, 1)), Prompt.of("q"), Text("t")):
        figures.add(record)
    split = figures.prints.split_counts()
    assert (split["train"], split["validation"]) == (7, 5)


def test_other_labels_of_the_same_responses_are_no_copies() -> None:
    figures = FileFigures(num_sampled=100, fractions={})
    for ranks, labeler in [((1, 2), "ann"), ((1, 2), "bob"), ((2, 1), "ann"), ((1, 2), "ann")]:
        figures.add(rank("p", "a b", ranks, labeler))
    duplicates = figures.summary(None, 10, 10)["duplicates"]
    assert (duplicates["repeated_rows"], duplicates["repeated_prompts"]) == (1, 3)
