"""Scores and places become ranks with the right sign, ties stay ties, and rows of one prompt are read together."""

from typing import Any

import pytest

from lora_rlhf.data.formats import RecordKind
from lora_rlhf.data.readers_ranked import ranks_from_scores
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking, Vote
from tests.support.rows import RowSource, read

HI = Prompt.of("Hi")
ANSWER = {"role": "assistant", "content": "Hello"}
STEER = {"correctness": 3, "coherence": 4, "complexity": 1, "verbosity": 2}


def ranking(*rows: dict) -> Ranking:
    (record,) = read("rankings", *rows)
    return record


@pytest.mark.parametrize(
    ("scores", "ranks"),
    [((3.0, 1.0, 2.0), [1, 3, 2]), ((5, 4, 4, 1), [1, 2, 2, 3]), ((0, 0), [1, 1]), ((-1, 1), [2, 1]), ((), [])],
)
def test_the_highest_score_has_rank_1(scores: tuple, ranks: list[int]) -> None:
    assert ranks_from_scores(scores) == ranks


def test_rankings_in_our_own_columns() -> None:
    row = {"prompt": [{"role": "user", "content": "Hi"}], "responses": ["a", [ANSWER], ANSWER], "ranks": [2, 1.0, 1]}
    assert ranking(row) == Ranking(HI, ("a", "Hello", "Hello"), (2, 1, 1))


# ---------------------------------------------------------------------------------------------------------------------
# UltraFeedback and Nectar


def completion(text: str, fine=None, overall=None, **ratings) -> dict:
    annotations = {aspect: {"Rating": rating, "Rationale": "..."} for aspect, rating in ratings.items()}
    return {
        **{"model": "gpt-4", "principle": "helpfulness", "custom_system_prompt": "Be helpful.", "response": text},
        **{"annotations": annotations, "critique": "...", "overall_score": overall, "fine-grained_score": fine},
    }


@pytest.mark.parametrize(
    ("completions", "responses", "ranks"),
    [
        # the overall score is wrong in places: not used where there are ratings
        ([completion("a", 1.25, 10.0), completion("b", 4.5, 8.0), completion("c", 4.5, 7.0)], "abc", (2, 1, 1)),
        # ratings are text; "N/A" does not count; the mean is on the scale of the fine-grained score
        (
            [
                completion("a", None, 9.0, helpfulness="4", honesty="5", truthfulness="4"),
                completion("b", 4.333333333, 9.0),
                completion("c", None, 1.0, helpfulness="5", honesty="N/A"),
            ],
            "abc",
            (2, 2, 1),
        ),
        # one without any score is left out
        ([completion("a", 3.0), completion("b"), completion("c", 5.0)], "ac", (2, 1)),
        # only overall scores; never beside the ratings' scale
        ([completion("a", None, 6.5), completion("b", None, 7.0)], "ab", (2, 1)),
        ([completion("a", 5.0, 2.0), completion("b", None, 7.0)], "ab", (2, 1)),
    ],
)
def test_ultrafeedback(completions: list[dict], responses: str, ranks: tuple) -> None:
    row = {"source": "evol", "instruction": "Hi", "models": ["gpt-4"], "completions": completions}
    row |= {"correct_answers": ["None"], "incorrect_answers": ["None"]}
    assert ranking(row) == Ranking(HI, tuple(responses), ranks)


def test_nectar_keeps_turns_and_ties() -> None:
    prompt = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant: "
    answers = [{"answer": text, "model": "m", "rank": rank} for text, rank in zip("abc", (2.0, 1.0, 2.0), strict=True)]
    expected = Prompt((Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Why?")))
    assert ranking({"prompt": prompt, "answers": answers, "turns": 2}) == Ranking(expected, ("a", "b", "c"), (2, 1, 2))


# ---------------------------------------------------------------------------------------------------------------------
# two responses


@pytest.mark.parametrize(("label", "ranks"), [(1, (1, 2)), (0, (2, 1)), ("1", (1, 2))])
def test_shp(label, ranks: tuple[int, int]) -> None:
    row = {"post_id": "x", "history": "Hi", "human_ref_A": "a", "human_ref_B": "b", "labels": label, "score_A": 3}
    assert ranking(row) == Ranking(HI, ("a", "b"), ranks)


@pytest.mark.parametrize(("preference", "ranks"), [(-3, (1, 2)), (-1, (1, 2)), (0, (1, 1)), (2, (2, 1)), ("3", (2, 1))])
def test_helpsteer3(preference, ranks: tuple[int, int]) -> None:
    context = [{"role": "user", "content": "Hi"}, ANSWER, {"role": "user", "content": "Why?"}]
    row = {"context": context, "response1": "a", "response2": "b", "overall_preference": preference}
    prompt = Prompt((Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Why?")))
    assert ranking({**row, "individual_preference": []}) == Ranking(prompt, ("a", "b"), ranks)


def test_summaries_of_posts_and_of_articles() -> None:
    both = [{"text": " First", "policy": "ref", "note": None}, {"text": " Second", "policy": "sup4", "note": None}]
    info = {"id": "t3_x", "post": None, "title": None, "subreddit": None, "site": "cnn", "article": "News."}
    row = {"info": info, "summaries": both, "choice": 0, "worker": "w1", "batch": "b", "extra": {"confidence": 9}}
    assert ranking(row) == Ranking(Prompt.of("Article: News.\n\nTL;DR:"), ("First", "Second"), (1, 2), "w1")
    info = {"id": "t3_x", "post": "Long.", "title": "T", "subreddit": "tifu", "site": None, "article": None}
    prompt = Prompt.of("SUBREDDIT: r/tifu\n\nTITLE: T\n\nPOST: Long.\n\nTL;DR:")
    assert ranking({**row, "info": info, "choice": 1, "worker": None}) == Ranking(prompt, ("First", "Second"), (2, 1))


# ---------------------------------------------------------------------------------------------------------------------
# one response a row


def steer(text: Any, helpfulness, prompt: str = "Hi") -> dict:
    return {"prompt": prompt, "response": text, "helpfulness": helpfulness, **STEER}


def test_helpsteer_ranks_the_rows_of_a_prompt_by_helpfulness() -> None:
    rows = [steer("a", 2), steer("b", 4), steer("c", 2), steer("d", "0")]
    assert ranking(*rows) == Ranking(HI, ("a", "b", "c", "d"), (2, 1, 2, 3))
    source = RowSource(tuple(rows), "demonstrations")
    assert [record.response for record in source] == ["b"]
    assert [str(fault) for fault in source.faults] == [
        f"another answer to the prompt has a higher score ({score} and 4)" for score in (2, 2, 0)
    ]
    assert read("demonstrations", steer("a", 1)) == [Demonstration(HI, "a")]


def test_helpsteer_turns_are_messages() -> None:
    turns = (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Why?\nNow"))
    text = "Hi\n\n<extra_id_1>Assistant\nYes?\n\n<extra_id_1>User\nWhy?\nNow"
    assert ranking(steer("a", 1, text), steer("b", 2, text)).prompt == Prompt(turns)
    assert ranking(steer("a", 1, f"<extra_id_1>User\n{text}"), steer("b", 2, text)).prompt == Prompt(turns)


def test_rows_of_a_prompt_belong_together_wherever_they_stand() -> None:
    rows = [steer("a", 1), steer("x", 0, "Ho"), steer("b", 4), steer("y", 2, "Ho"), steer("c", 2)]
    assert read("rankings", *rows) == [
        Ranking(HI, ("a", "b", "c"), (3, 1, 2)),
        Ranking(Prompt.of("Ho"), ("x", "y"), (2, 1)),
    ]


def unpaired(text, label) -> dict:
    return {"prompt": "Hi", "completion": text, "label": label}


def test_unpaired_completions_of_a_prompt_are_ranked_true_before_false() -> None:
    rows = [unpaired("a", False), unpaired([ANSWER], True), unpaired("c", "false"), unpaired("d", 1)]
    assert ranking(*rows) == Ranking(HI, ("a", "Hello", "c", "d"), (2, 1, 2, 1))
    source = RowSource(tuple(rows), "demonstrations")
    assert [record.response for record in source] == ["Hello", "d"] and source.refused.count == 2


def test_votes_are_read_one_by_one_where_they_are_wanted() -> None:
    source = RowSource((unpaired("a", False), {"prompt": "Ho", "responses": ["x", "y"], "ranks": [1, 2]}), "rankings")
    source.keeps_votes = True
    assert list(source) == [Vote(HI, "a", False), Ranking(Prompt.of("Ho"), ("x", "y"), (1, 2))]
    assert source.used == 2 and source.formats["unpaired"] == 1


@pytest.mark.parametrize(
    ("kind", "rows", "reason"),
    [
        ("demonstrations", [unpaired("a", False), unpaired("b", False)], "the answer is labelled as bad"),
        ("rankings", [unpaired("a", True)], "at least 2 rows of one prompt"),
        ("rankings", [steer("a", 3)], "at least 2 rows of one prompt"),
        ("rankings", [steer("a", 3), steer("b", "high")], "helpfulness is not a number"),
        ("rankings", [steer("a", 3), steer(4, 3)], "the response is not text"),
        ("rankings", [steer("a", 3, "<extra_id_1>User\n"), steer("b", 4)], "the prompt is empty"),
        ("rankings", [{"prompt": "a", "responses": ["x"], "ranks": [1]}], "a ranking needs at least 2 responses"),
        ("rankings", [{"prompt": "a", "responses": "xy", "ranks": [1, 2]}], "responses is not a list"),
        ("rankings", [{"prompt": "a", "responses": ["x", "y"], "ranks": [0, 1]}], "a rank is not a whole number"),
        ("rankings", [{"prompt": "a", "responses": ["x", "y"], "ranks": [1]}], "ranks and responses differ in number"),
        ("rankings", [{"instruction": "a", "completions": []}], "at least 2 scored completions"),
        ("rankings", [{"instruction": "a", "completions": "b"}], "completions is not a list of objects"),
        (
            "rankings",
            [{"instruction": "a", "completions": [completion("b", 3.0), completion("c", "N/A", True)]}],
            r"at least 2 scored completions \(0 of 2 have one\)",
        ),
        (
            "rankings",
            [{"instruction": "a", "completions": [completion("b", 3), {"fine-grained_score": 2}]}],
            "not text",
        ),
        (
            "rankings",
            [{"prompt": "a", "answers": [{"answer": "b", "rank": 1}, {"answer": "c"}]}],
            "a rank is not a whole",
        ),
        ("rankings", [{"prompt": "a", "answers": ["b", "c"]}], "answers is not a list of objects"),
        ("rankings", [{"history": "a", "human_ref_A": "b", "human_ref_B": "c", "labels": 2}], "labels is neither 1"),
        ("rankings", [{"history": "a", "human_ref_A": "b", "human_ref_B": 3, "labels": 1}], "human_ref_B is not text"),
        (
            "rankings",
            [{"context": [ANSWER], "response1": "a", "response2": "b", "overall_preference": 1}],
            "the prompt does not end with a user's message",
        ),
        (
            "rankings",
            [{"context": "a", "response1": "a", "response2": "b", "overall_preference": 5}],
            "between -3 and 3",
        ),
        (
            "rankings",
            [{"info": {"post": "a"}, "summaries": [{"text": "b"}] * 2, "choice": 2}],
            "not the place of a summary",
        ),
        ("rankings", [{"info": {"post": "a"}, "summaries": [{"text": "b"}] * 2, "choice": 0.5}], "not the place of a"),
        ("rankings", [{"info": {"title": "a"}, "summaries": [{"text": "b"}] * 2, "choice": 1}], "neither a post nor"),
        ("rankings", [{"info": "a", "summaries": [{"text": "b"}] * 2, "choice": 1}], "info is not an object"),
    ],
)
def test_what_can_not_be_ranked_says_why(kind: RecordKind, rows: list[dict], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        read(kind, *rows)
