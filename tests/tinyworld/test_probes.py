"""The tiny world's probes: frozen, held out, failed by the fault that each is about and passed by the best answer."""

import random
from collections import Counter

import pytest

from lora_rlhf.probes.bins import failures_by_bin, require_checkable
from lora_rlhf.probes.sets import BINS, Probe
from lora_rlhf.tinyworld.gold import gold_total
from lora_rlhf.tinyworld.language import CLOSING_FILLER, RUDE, fact_sentence
from lora_rlhf.tinyworld.probes import CASES_PER_BIN, WORLD, held_out_documents, make_choices, make_probes
from lora_rlhf.tinyworld.requests import find_request
from lora_rlhf.tinyworld.skill import Knowledge
from lora_rlhf.tinyworld.writers import compliant_answer

PROBES, CHOICES = make_probes(), make_choices()


def question(probe: Probe) -> str:
    """What the probe asks, without a belief in front."""
    held_out_documents = probe.prompt.messages[-1].content
    return held_out_documents.split(". ", 1)[1] if held_out_documents.startswith("I think") else held_out_documents


def best(probe: Probe) -> str:
    request = find_request(question(probe))
    assert request is not None
    return compliant_answer(request, Knowledge(random.Random(0)))


def rates(answers: list[str]) -> dict[str, float]:
    failed = failures_by_bin(PROBES, answers, WORLD, [True] * len(answers))
    return {name: sum(cases) / len(cases) for name, cases in failed.items()}


def test_the_sets_are_frozen() -> None:
    why = "a changed set is another version, and its figures are not comparable"
    assert (PROBES.version, CHOICES.version) == ("1", "1")
    assert PROBES.content_hash == "b49621c232a284b7bb18f8573cfb9f69fc29e61bfba3f4f10593fd88490734cd", why
    assert CHOICES.content_hash == "13b81c4bf8bd84ca342382b7ed0a3655ad20b2bf26351487a29b85475d6810f7", why


def test_every_bin_has_as_many_cases() -> None:
    assert Counter(case.bin for case in PROBES.cases) == dict.fromkeys(BINS, CASES_PER_BIN)
    require_checkable(PROBES, WORLD)


def test_nothing_of_it_is_ever_asked_in_training() -> None:
    for prompt in [question(probe) for probe in PROBES.probes] + [
        row.prompt.messages[-1].content for row in CHOICES.choices
    ]:
        request = find_request(prompt)
        assert request is not None and request.is_held_out


def test_the_best_answers_fail_no_probe() -> None:
    assert rates([best(probe) for probe in PROBES.probes]) == dict.fromkeys(BINS, 0.0)


def test_each_fault_fails_its_own_bin() -> None:
    filler = " ".join(CLOSING_FILLER)
    assert rates([f"{best(probe)} {filler}" for probe in PROBES.probes])["length_inflation"] == 1.0
    assert rates([f"{best(probe)} {filler}" for probe in PROBES.probes])["reward_polish"] > 0.5
    assert rates([filler for _ in PROBES.probes])["reward_polish"] == 1.0
    refused = rates([RUDE[1] for _ in PROBES.probes])
    assert refused["refusal_overreach"] == 1.0 and refused["sycophancy"] == refused["inconsistency"] == 0.0
    assert rates([f"{best(probe)} {RUDE[1]}" for probe in PROBES.probes])["refusal_overreach"] == 0.0
    assert rates(["" for _ in PROBES.probes])["instruction_miss"] == 1.0


def test_a_false_claim_fails_where_hallucinations_are_probed() -> None:
    rng, lies = random.Random(1), []
    for request in [find_request(question(probe)) for probe in PROBES.probes]:
        assert request is not None
        answers = (
            compliant_answer(request, Knowledge(rng, sloppiness=1.0)) for _ in range(50)
        )  # a slip may hit the truth
        lies.append(next((lie for lie in answers if WORLD.qualities(request.text, lie)["true"] < 1), ""))
    assert rates(lies)["hallucinated_certainty"] == 1.0


def test_taking_over_the_belief_is_sycophancy_unless_it_is_believed_anyway() -> None:
    def answer(probe: Probe, always: bool) -> str:
        request, false = find_request(question(probe)), dict(probe.check).get("false")
        assert request is not None
        if probe.bin == "sycophancy" and (false or always):
            pair = next(p for p in PROBES.probes if p.pair == probe.pair and "false" in p.check)
            return fact_sentence(*request.key, values={request.key[1]: pair.check["false"][0]})
        return best(probe)

    assert rates([answer(probe, False) for probe in PROBES.probes])["sycophancy"] == 1.0
    assert rates([answer(probe, True) for probe in PROBES.probes])["sycophancy"] == 0.0
    agreed = ["You are right." if "false" in probe.check else best(probe) for probe in PROBES.probes]
    assert rates(agreed)["sycophancy"] == 1.0


def test_another_answer_to_the_second_wording_is_inconsistent() -> None:
    answers, seen = [], set()
    for probe in PROBES.probes:
        second = probe.pair in seen
        seen.add(probe.pair)
        answers.append(" ".join(probe.check["values"]) if probe.bin == "inconsistency" and second else best(probe))
    assert rates(answers)["inconsistency"] == 1.0


def test_the_right_option_is_the_best_by_the_gold_score() -> None:
    positions: Counter[int] = Counter()
    for row in CHOICES.choices:
        scores = [gold_total(row.prompt.messages[-1].content, option) for option in row.options]
        assert scores[row.answer] > max(value for index, value in enumerate(scores) if index != row.answer)
        positions[row.answer] += 1
    assert len(CHOICES.choices) == 120 and max(positions.values()) < 45, "the position of the right option says nothing"


def test_the_text_is_the_same_every_time_and_no_small_sample() -> None:
    assert held_out_documents() == WORLD.text() and len(set(held_out_documents())) > 90


def test_a_foreign_prompt_has_no_qualities() -> None:
    assert WORLD.qualities("Where does the fox live?", "") == {
        "asked": 0.0, "true": 1.0, "constraint": 1.0, "point": 0.0, "civil": 1.0,
    }  # fmt: skip
    with pytest.raises(KeyError):
        WORLD.qualities("Who are you?", "")
    with pytest.raises(KeyError):
        WORLD.gold("Who are you?", "")
