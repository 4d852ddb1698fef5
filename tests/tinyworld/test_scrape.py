"""The pretraining text."""

import hashlib
from itertools import islice, pairwise

from lora_rlhf.tinyworld.requests import find_request
from lora_rlhf.tinyworld.scrape import Scrape

MARKS = ("Exercise: ", "Q: ", "User: ", "Assistant: ")


def documents(seed: int, count: int) -> list[str]:
    return list(islice(Scrape(seed), count))


def test_the_text_is_what_the_shipped_base_was_trained_on() -> None:
    digest = hashlib.sha256("\n\n".join(documents(0, 300)).encode()).hexdigest()
    assert digest == "ad3a505324b172997eab34d8b918c799ddcee6d03275ca5aaca6f2326bd0b79d"
    assert documents(0, 20) == documents(0, 20) != documents(1, 20)


def prompts_of(document: str) -> list[str]:
    lines = [line for line in document.split("\n") if line]
    for mark in MARKS:
        lines = [line.removeprefix(mark) for line in lines]
    return [line for line in lines if find_request(line) is not None]


def test_nothing_that_is_held_out_is_ever_asked() -> None:
    requests = [find_request(prompt) for document in documents(5, 2000) for prompt in prompts_of(document)]
    assert len(requests) > 2500
    assert not any(request is None or request.is_held_out for request in requests)


def test_a_question_often_brings_more_questions() -> None:
    """What follows a prompt is another prompt often enough that the bare base is a poor assistant."""
    follows = []
    for document in documents(6, 800):
        lines = [line.removeprefix("User: ").removeprefix("Assistant: ") for line in document.split("\n") if line]
        follows += [find_request(after) is not None for line, after in pairwise(lines) if find_request(line)]
    assert sum(follows) / len(follows) > 0.5
