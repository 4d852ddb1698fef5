"""Figures of text against sacrebleu, brute force and worked examples."""

import random
import statistics
import time

import pytest
from sacrebleu.metrics import BLEU

from lora_rlhf.stats.text_metrics import (
    distinct_contributions,
    distinct_ratio,
    has_common_opening,
    has_repeated_answer,
    has_repeated_template,
    is_refusal,
    normalized_words,
    num_unrepeated_words,
    repeated_gram_share,
    self_bleu,
    split_words,
)

VOCABULARY = "the a ship river keeper counts night in small boat of students and baker , . bread! Thank you".split()


def random_texts(count: int, seed: int, longest: int = 30) -> list[str]:
    """Random texts with an empty one, short ones, and the same one twice."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(VOCABULARY, k=rng.randint(1, longest))) for _ in range(count - 3)]
    return [*texts, "", "the", texts[0]]


def test_self_bleu_is_sacrebleus_sentence_bleu_against_the_other_texts() -> None:
    texts = random_texts(40, seed=1)
    theirs = BLEU(smooth_method="exp", tokenize="none", effective_order=True)
    expected = [theirs.sentence_score(text, texts[:i] + texts[i + 1 :]).score / 100 for i, text in enumerate(texts)]
    assert self_bleu(texts) == pytest.approx(expected, abs=1e-9)
    assert self_bleu(texts)[0] == pytest.approx(1.0), "it is there twice"
    assert 0 < min(value for value, text in zip(expected, texts, strict=True) if text) < 0.9


def test_self_bleu_smooths_a_lone_match_as_sacrebleu_does() -> None:
    texts = ["one ship sails far away", "one boat rests", "a b c d"]
    theirs = BLEU(smooth_method="exp", tokenize="none", effective_order=True)
    scores = self_bleu(texts)
    assert scores[0] == pytest.approx(theirs.sentence_score(texts[0], texts[1:]).score / 100, abs=1e-12)
    assert 0 < scores[0] < 0.2 and scores[2] == 0.0


def test_self_bleu_has_as_many_references_for_each_text_and_is_fast() -> None:
    texts = random_texts(500, seed=2)
    started = time.process_time()
    scores = self_bleu(texts)
    assert time.process_time() - started < 2
    few = self_bleu(texts, max_references=20)
    assert statistics.fmean(few) < statistics.fmean(scores), "more references find more matches"
    pool = random.Random(0).sample(range(500), 21)
    theirs = BLEU(smooth_method="exp", tokenize="none", effective_order=True)
    for index in (pool[0], pool[-1], next(i for i in range(500) if i not in pool)):
        references = [texts[i] for i in pool if i != index][:20]
        assert few[index] == pytest.approx(theirs.sentence_score(texts[index], references).score / 100, abs=1e-9)
    assert self_bleu(["alone"]) == [0.0] and self_bleu([]) == []


def test_distinct_pools_the_n_grams_of_all_texts() -> None:
    texts = ["the cat saw the cat", "the dog", "one"]
    assert distinct_ratio(texts, 1) == 5 / 8  # the cat saw dog one
    assert distinct_ratio(texts, 2) == 4 / 5  # "the cat" twice; no pair across texts
    assert distinct_ratio(["one", ""], 2) is None


@pytest.mark.parametrize("n", [1, 2])
def test_each_texts_part_in_distinct_is_the_jackknife_by_leaving_it_out(n: int) -> None:
    texts = random_texts(30, seed=3)
    whole, parts = distinct_ratio(texts, n), distinct_contributions(texts, n)
    without = [distinct_ratio(texts[:i] + texts[i + 1 :], n) or 0.0 for i in range(30)]
    assert statistics.fmean(parts) == pytest.approx(whole, abs=1e-9)
    jackknife = (29 / 30 * sum((value - statistics.fmean(without)) ** 2 for value in without)) ** 0.5
    assert statistics.stdev(parts) / 30**0.5 == pytest.approx(jackknife, abs=1e-9)
    assert jackknife > 0.001
    assert distinct_contributions(["", ""], n) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("yes", 0.0),
        ("no no", 0.5),
        ("yes yes yes", 0.5),
        ("the cat the", 0.0),
        ("a b c d e f", 0.0),
        ("yes " * 8, 0.8),  # five 4-grams, one of them new
        ("one two three four one two three four", 1 / 5),
    ],
)
def test_repetition_is_the_share_of_4_grams_that_came_before(text: str, share: float) -> None:
    assert repeated_gram_share(text) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("The ship is small. The river is wide.", 8),
        ("The ship is small. the ship is small! The ship is small", 4),
        ("yes " * 20, 4),
        ("a b c d e\na b c d f", 9),  # the second a b c d ends one 4-gram that came before
        ("He said: go. He said: go. Then he went.", 6),
    ],
)
def test_words_that_say_something_again_do_not_count(text: str, count: int) -> None:
    assert num_unrepeated_words(text) == count


def test_openings_answers_and_templates() -> None:
    texts = ["Dear Ann, thank you so much!", "dear ann thank you for it", "Dear Bob, thank you", "Yes.", "yes", ""]
    assert has_common_opening(texts) == [True, True, False, False, False, False]
    assert has_common_opening(["a b c d", "e f g h"]) == [False, False], "nobody shares one"
    assert has_repeated_answer(texts) == [False, False, False, True, True, False]
    prompts = ["Write to Ann.", "Write to Bob", "Say hello world to Carol", "Echo: this", "Echo: that one"]
    letters = ["Dear Ann, thank you.", "Dear Bob, thank you.", "Dear hello world, thank you", "This", "that one"]
    assert has_repeated_template(prompts, letters) == [True, True, True, False, False]
    assert split_words(" a  b\n") == ["a", "b"] and normalized_words("'Tis -- the End!") == ["tis", "the", "end"]


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, I cannot assist you.",
        "As an AI language model, I am unable to give medical advice.",
        "Unfortunately I\u2019m not able to tell you that.",
        "I must decline.",
        "I won't provide instructions for this.",
        "Sorry, but I\u2019m not going to answer this either.",
        "I\u2019m afraid I can\u2019t speak to that.",
        "I'd rather not say.",
    ],
)
def test_refusals_are_found(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I am sorry to hear that. You should rest now.",
        "The ship cannot sail in winter.",
        "You can't park here, but I can help you find a place.",
        "I\u2019m sorry I couldn\u2019t help you more, here is the list.",
        "I don't know who he is.",
        "Sorry, I'm not sure I understand. What do you mean?",
        "Sure! Here is a poem about a man who says no.",
        " ".join(["Here it is."] * 15) + " I can't help with that.",
    ],
)
def test_what_is_no_refusal(text: str) -> None:
    assert not is_refusal(text)
