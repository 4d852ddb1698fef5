"""Prompts of the tiny world: text and back, the mixture of use cases, and what is held out."""

import math
import random
from collections import Counter
from itertools import islice

import pytest

from lora_rlhf.tinyworld.requests import SKILLS, Constraint, Request, draw_requests, find_request, possible_constraints

# InstructGPT (arXiv 2203.02155), Table 1, in percent.
PAPER = {
    "generation": 45.6,
    "open QA": 12.4,
    "brainstorming": 11.2,
    "chat": 8.4,
    "rewriting": 6.6,
    "summarisation": 4.2,
    "classification": 3.5,
    "other": 3.5,
    "closed QA": 2.6,
    "extraction": 1.9,
}


def test_find_inverts_every_prompt() -> None:
    for skill in SKILLS:
        for key in skill.keys:
            for wording in skill.wordings(key):
                for constraint in (None, *possible_constraints(skill)):
                    request = Request(skill, key, wording, constraint)
                    assert find_request(request.text) == request


def test_find_ignores_white_space_and_refuses_foreign_prompts() -> None:
    request = find_request("  Where does   the fox live?\nUse at most eight words. ")
    assert request is not None
    assert (request.skill.name, request.key) == ("fact", ("fox", "home"))
    assert request.constraint == Constraint("words", "eight")
    for foreign in ("", "Where does the unicorn live?", "Where does the fox live? Use at most ninety words."):
        assert find_request(foreign) is None


def test_held_out_goes_by_task_and_entities_alone() -> None:
    shares: list[float] = []
    for skill in SKILLS:
        for key in skill.keys:
            sides = {
                Request(skill, key, wording, constraint).is_held_out
                for wording in skill.wordings(key)
                for constraint in (None, *possible_constraints(skill))
            }
            assert len(sides) == 1
            shares += sides
    n = len(shares)
    assert abs(sum(shares) - 0.2 * n) < 3 * math.sqrt(n * 0.2 * 0.8)


@pytest.mark.parametrize("held_out", [False, True])
def test_draws_are_distinct_and_on_their_side(held_out: bool) -> None:
    seen = {"Where does the fox live?"}
    drawn = list(islice(draw_requests(random.Random(0), held_out, seen), 600))
    texts = {request.text for request in drawn}
    assert len(texts) == 600
    assert seen == texts | {"Where does the fox live?"}
    assert {request.is_held_out for request in drawn} == {held_out}
    assert all(find_request(request.text) == request for request in drawn)


def test_use_cases_come_in_the_papers_proportions() -> None:
    n = 3000
    drawn = list(islice(draw_requests(random.Random(3), is_held_out=False), n))
    counts = Counter(request.skill.use_case for request in drawn)
    assert counts.keys() == PAPER.keys()
    for case, percent in PAPER.items():
        share = percent / sum(PAPER.values())  # the paper's figures add up to 99.9
        assert abs(counts[case] - n * share) < 3 * math.sqrt(n * share * (1 - share)), case
    constrained = sum(request.constraint is not None for request in drawn)
    assert 0.55 < constrained / n < 0.66  # 60 %, and a little more where prompts without a constraint are used up


@pytest.mark.parametrize(
    ("kind", "value", "response", "obeyed"),
    [
        ("words", "three", "The fox ran.", True),
        ("words", "three", "The fox ran away.", False),
        ("sentences", "one", "The fox ran.", True),
        ("sentences", "one", "The fox ran. It sat.", False),
        ("sentences", "two", "The fox ran. It sat.", True),
        ("sentences", "two", "The fox ran. It sat. Well", False),
        ("begin", "Sure.", "Sure. The fox ran.", True),
        ("begin", "Sure.", "The fox ran. Sure.", False),
        ("begin", "Sure.", "Surely. The fox ran.", False),
        ("end", "Good day.", "The fox ran. Good day.", True),
        ("end", "Good day.", "Good day. The fox ran.", False),
        ("end", "Good day.", "The fox ran. Good day", False),
        ("words", "three", "", False),
        ("sentences", "one", " \n", False),
    ],
)
def test_constraints(kind: str, value: str, response: str, obeyed: bool) -> None:
    assert Constraint(kind, value).is_obeyed_by(response) == obeyed


def test_constraints_as_text() -> None:
    texts = [Constraint(*parts).text for parts in (("words", "ten"), ("sentences", "one"), ("sentences", "two"))]
    assert texts == ["Use at most ten words.", "Use only one sentence.", "Use at most two sentences."]
    assert [Constraint(kind, "Well.").text for kind in ("begin", "end")] == ["Begin with: Well.", "End with: Well."]
