"""Agreement by counting pairs by hand; ranks from scores; duplicates counted."""

from lora_rlhf.data.labels import drop_duplicate_responses, ranking_agreement
from lora_rlhf.data.refusals import RefusedRows
from lora_rlhf.data.schema import Prompt, Ranking

HI = Prompt.of("Hi")


def rank(responses: str, ranks: tuple[int, ...], labeler: str | None = None, prompt: Prompt = HI) -> Ranking:
    return Ranking(prompt, tuple(responses), ranks, labeler)


def test_agreement_counts_strictly_ordered_pairs() -> None:
    ada = rank("abc", (1, 2, 3), "Ada")
    bob = rank("cab", (2, 1, 2), "Bob")  # a first, then b and c tied
    eve = rank("bad", (1, 2, 3), "Eve")  # b before a before d
    # Ada-Bob: ab, ac agree, bc is tied. Ada-Eve share a, b: disagree. Bob-Eve share a, b: disagree.
    assert ranking_agreement([ada, bob, eve]) == (2 / 4, 4)
    assert ranking_agreement([ada, bob]) == (1.0, 2)
    assert ranking_agreement([ada, rank("abc", (3, 2, 1), "Zoe")]) == (0.0, 3)


def test_agreement_compares_only_people_and_prompts_that_can_be_compared() -> None:
    ada = rank("ab", (1, 2), "Ada")
    assert ranking_agreement([ada, ada]) == (None, 0)
    assert ranking_agreement([ada, rank("ab", (1, 2), "Bob", Prompt.of("Other"))]) == (None, 0)
    assert ranking_agreement([ada, rank("ab", (1, 2), "Bob", Prompt.of(" hI"))]) == (1.0, 1)
    assert ranking_agreement([rank("ab", (1, 2)), rank("ab", (1, 2))]) == (1.0, 1)
    assert ranking_agreement([]) == (None, 0)


def test_duplicates_are_dropped_and_counted() -> None:
    unchanged = rank("ab", (2, 1))
    double = Ranking(Prompt.of("x"), ("a", "b", "a ", "c"), (3, 2, 3, 4), "Ada")
    same = Ranking(Prompt.of("y"), ("a", " a"), (1, 1))
    refused = RefusedRows()
    assert drop_duplicate_responses(unchanged, refused) is unchanged
    assert refused.count == 0
    assert drop_duplicate_responses(double, refused) == Ranking(Prompt.of("x"), ("a", "b", "c"), (3, 2, 4), "Ada")
    assert drop_duplicate_responses(same, refused) is None
    assert [row.reason for row in refused] == [
        "duplicate response in a ranking",
        "duplicate response in a ranking",
        "all responses of the ranking are the same",
    ]
