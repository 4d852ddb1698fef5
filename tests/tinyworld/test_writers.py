"""Writers of mixed quality: each habit by itself, and all of them together."""

import random
from itertools import islice

import pytest

from lora_rlhf.tinyworld.gold import GoldScore, score_request
from lora_rlhf.tinyworld.language import CLOSING_FILLER, OPENING_FILLER, RUDE, split_sentences
from lora_rlhf.tinyworld.requests import Request, draw_requests, find_request
from lora_rlhf.tinyworld.writers import DEMONSTRATORS, WEB_AUTHORS, Habits, Writer, make_writers

HABITS = ("ignores_constraint", "rambles", "curt", "rude", "sloppy")


def writer(**habits: float) -> Writer:
    """A writer with these habits alone."""
    return Writer(**(dict.fromkeys(HABITS, 0.0) | habits))


def requests(count: int = 300) -> list[Request]:
    drawn = islice(draw_requests(random.Random(0), is_held_out=False), count)
    return [request for request in drawn if request.skill.name != "riddle"]  # 13 words do not always suffice for one


def gold(author: Writer, request: Request, rng: random.Random) -> GoldScore:
    return score_request(request, author.write(request, rng))


def request_for(text: str) -> Request:
    request = find_request(text)
    assert request is not None
    return request


def test_without_habits_every_answer_is_the_best() -> None:
    rng = random.Random(0)
    assert {gold(writer(), request, rng).total for request in requests()} == {1.0}


def test_a_writer_who_ignores_constraints_breaks_those_on_the_frame() -> None:
    rng = random.Random(0)
    for request in requests():
        score = gold(writer(ignores_constraint=1.0), request, rng)
        assert (score.asked, score.true, score.point, score.civil) == (1.0, 1.0, 1.0, 1.0)
        if request.constraint and request.constraint.kind in ("begin", "end"):
            assert score.constraint == 0.0


def test_a_writer_who_rambles_wastes_a_sentence() -> None:
    rng = random.Random(0)
    fillers = OPENING_FILLER + CLOSING_FILLER
    for request in requests():
        if request.constraint is None:
            sentences = split_sentences(writer(rambles=1.0).write(request, rng))
            assert [sentence in fillers for sentence in sentences].count(True) == 1
            assert sentences[0] in OPENING_FILLER or sentences[-1] in CLOSING_FILLER


def test_a_rude_writer_is_rude_in_the_last_sentence() -> None:
    rng = random.Random(0)
    for request in requests():
        if request.constraint is None:
            assert writer(rude=1.0).write(request, rng).endswith(RUDE)


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ("Where does the fox live?", "Meadow."),
        ("What pet does Anna have?", "A frog."),
        ("Write a note to Anna about the lamp.", "Dear Anna."),
        ("What is two plus three?", "Two plus three is five."),
    ],
)
def test_a_curt_writer_gives_a_minimal_answer(prompt: str, response: str) -> None:
    assert writer(curt=1.0).write(request_for(prompt), random.Random(0)) == response


def test_a_sloppy_writer_is_often_wrong() -> None:
    rng, request = random.Random(0), request_for("Where does the fox live?")
    truths = [gold(writer(sloppy=1.0), request, rng).true for _ in range(300)]
    assert 0.08 < sum(truths) / 300 < 0.25  # a guess among six: 1/6, within 4 sd


def test_the_same_writers_come_every_time() -> None:
    people = make_writers()
    assert people == make_writers()
    assert people != make_writers(seed=1)
    assert len(people) == len(set(people)) == 20
    assert all(0.0 < getattr(person, habit) < 1.0 for person in people for habit in HABITS)


@pytest.mark.parametrize(
    ("group", "kept", "wasteful"),
    [(DEMONSTRATORS, (0.10, 0.35), (0.55, 0.90)), (WEB_AUTHORS, (0.25, 0.55), (0.35, 0.75))],
)
def test_a_group_leaves_something_to_correct(
    group: Habits, kept: tuple[float, float], wasteful: tuple[float, float]
) -> None:
    """Most answers ignore a stated constraint, many ramble, some are rude or wrong, and none is worthless."""
    rng, people = random.Random(0), make_writers(group)
    scores = [(request, gold(rng.choice(people), request, rng)) for request in requests(900)]
    framed = [score for request, score in scores if request.constraint and request.constraint.kind in ("begin", "end")]
    free = [score for request, score in scores if request.constraint is None]
    assert kept[0] < sum(score.constraint for score in framed) / len(framed) < kept[1]
    assert wasteful[0] < sum(score.point < 1.0 for score in free) / len(free) < wasteful[1]
    assert 0.08 < sum(score.civil < 1.0 for score in free) / len(free) < 0.30
    assert 0.05 < sum(score.true < 1.0 for score in free) / len(free) < 0.35
    assert all(score.asked > 0 for _, score in scores)
