"""The hidden gold score, against totals calculated by hand from the published weights.

total = asked * (0.30 + 0.25 true + 0.20 constraint + 0.15 point + 0.10 civil)
"""

import random

import pytest

from lora_rlhf.tinyworld.gold import gold_total, score_request
from lora_rlhf.tinyworld.language import CLOSING_FILLER, OPENING_FILLER, RUDE
from lora_rlhf.tinyworld.requests import SKILLS, Request, possible_constraints
from lora_rlhf.tinyworld.skill import Knowledge, Skill
from lora_rlhf.tinyworld.writers import compliant_answer

HOME, SHORT, POLITE = "Where does the fox live?", " Use at most eight words.", " End with: Good day."
STORY = "Write a short story about the fox and a lamp."
NOTE = "Write a note to Anna about the lamp."
RIDDLE = "Write a riddle about the fox."
LIST = "Name two animals that live in the barn."
GREETING = "Hello, I am Anna. I am very tired."


@pytest.mark.parametrize(
    ("prompt", "response", "total"),
    [
        (HOME, "The fox lives in the meadow.", 1.0),
        (HOME, "It lives in the meadow.", 1.0),
        (HOME, "Sure. The fox lives in the meadow. Good day.", 1.0),  # courtesies neither serve nor disturb
        (HOME, "The fox lives in the barn.", 1 - 0.25),  # untrue
        (
            HOME,
            "The fox lives in the meadow. That is how it goes.",
            1 - 0.15 / 2,
        ),  # one sentence of two beside the point
        (HOME, "The fox lives in the meadow. The fox lives in the meadow.", 1 - 0.15 / 2),  # a repeat
        (HOME, "The fox lives in the meadow. What a silly thing to ask.", 1 - 0.15 / 2 - 0.10),  # rude
        (HOME, "Meadow.", 0.7),  # curt
        (HOME, "Barn.", 0.7 * (1 - 0.25)),
        (HOME, "The fox is brown.", 0.0),  # true, but not what was asked
        (HOME, "The owl lives in the meadow.", 0.0),
        (HOME + SHORT, "The fox lives in the meadow.", 1.0),
        (HOME + SHORT, "The fox lives in the meadow. That is how it goes.", 1 - 0.20 - 0.15 / 2),
        (HOME + POLITE, "The fox lives in the meadow. Good day.", 1.0),
        (HOME + POLITE, "The fox lives in the meadow.", 1 - 0.20),
        (HOME + POLITE, "Good day.", 0.0),  # the constraint alone is worth nothing
        ("Describe the fox.", "The fox is brown. It eats bread.", 1.0),
        ("Describe the fox.", "The fox is brown.", 0.5),  # two things are called for
        ("Describe the fox.", "The fox is brown and lives in the barn.", 1 - 0.25 / 2),
        (STORY, "One day the fox went to the barn. It found a lamp. It went home to the meadow.", 1.0),
        (STORY, "One day the fox went to the barn. It found a lamp. It went home to the barn.", 1 - 0.25),
        (STORY, "One day the fox went to the barn. It met the owl. It slept well.", 0.3 + 0.4),  # no lamp
        (NOTE, "Dear Anna. The lamp is black. Best wishes.", 1.0),
        (NOTE, "Dear Anna. The lamp is black.", 0.4 + 0.4),
        (NOTE, "The lamp is black. Best wishes.", 0.4 + 0.2),
        (NOTE, "Dear Anna. The lamp is red. Best wishes.", 1 - 0.25),
        (RIDDLE, "I am brown. I live in the meadow. What am I?", 1.0),
        (RIDDLE, "I am brown. What am I?", 0.3 + 0.4),
        (RIDDLE, "I am brown. I live in the barn. What am I?", 1 - 0.25 / 2),
        (RIDDLE, "I am brown. I live in the meadow. What am I? The fox.", 0.0),  # gives itself away
        (LIST, "The dog and the duck.", 1.0),
        (LIST, "The dog and the fox.", 1 - 0.25 / 2),
        (LIST, "The dog, the duck and the deer.", 0.7),  # one too many
        (GREETING, "Hello Anna. You should rest now.", 1.0),
        (GREETING, "Hello Anna.", 0.5),
        (GREETING, "Hello Anna. I am glad to hear that.", 1 - 0.25),
        ("I lost the kite. Can you help me?", "I am sorry to hear that. The kite is kept in the tower.", 1.0),
        ("I lost the kite. Can you help me?", "The kite is kept in the tower.", 0.7),
        ("Put this in the past: The fox is brown.", "The fox was brown.", 1.0),
        ("Put this in the past: The fox is brown.", "The fox was red.", 1 - 0.25),
        ("Put this in the past: The fox is brown.", "The fox is brown.", 0.0),
        ("Turn this into a question: The fox eats bread.", "Does the fox eat bread?", 1.0),
        ("Say this politely: Bring me the kite.", "Please bring me the kite.", 1.0),
        ("Is the fox big or small?", "The fox is big.", 1.0),
        ("What is the fox: animal, person, thing or town?", "The fox is a thing.", 1 - 0.25),
        ("Walter took the key to the shed. Who took the key?", "Walter took the key.", 1.0),
        ("Walter took the key to the shed. Who took the key?", "Anna took the key.", 1 - 0.25),
        ("What is two plus three?", "Two plus three is five.", 1.0),
        ("What is two plus three?", "Two plus three is six.", 1 - 0.25),
        ("What number comes after nine?", "Ten comes after nine.", 1.0),
    ],
)
def test_totals_by_hand(prompt: str, response: str, total: float) -> None:
    assert gold_total(prompt, response) == pytest.approx(total, abs=1e-12)


def some_requests(skill: Skill, limit: int = 40) -> list[Request]:
    """A sample of the skill's entities, each under every constraint."""
    keys = random.Random(skill.name).sample(skill.keys, min(limit, len(skill.keys)))
    return [Request(skill, k, skill.wordings(k)[0], c) for k in keys for c in (None, *possible_constraints(skill))]


@pytest.mark.parametrize("skill", SKILLS, ids=lambda skill: skill.name)
def test_whoever_knows_and_obeys_scores_exactly_1(skill: Skill) -> None:
    for request in some_requests(skill):
        # A riddle about a thing does not fit its thirteen words with every choice of two facts: some try does.
        tries = range(20) if skill.name == "riddle" else range(1)
        answers = [compliant_answer(request, Knowledge(random.Random(seed))) for seed in tries]
        assert max(score_request(request, answer).total for answer in answers) == 1.0, (request.text, answers)


@pytest.mark.parametrize("skill", SKILLS, ids=lambda skill: skill.name)
def test_every_planted_flaw_costs(skill: Skill) -> None:
    rng = random.Random(0)
    for request in some_requests(skill, limit=8):
        sentences = skill.compose(request.key, Knowledge(random.Random(0)), request.constraint is not None)
        answer = compliant_answer(request, Knowledge(random.Random(0)))
        best = score_request(request, answer).total
        filler, rude = rng.choice(CLOSING_FILLER), rng.choice(RUDE)
        assert score_request(request, f"{answer} {filler}").total < best
        assert score_request(request, f"{rng.choice(OPENING_FILLER)} {answer}").total < best
        worse = score_request(request, f"{answer} {rude}").total
        if request.constraint is None or request.constraint.kind != "words":  # there their lengths may matter too
            assert worse == pytest.approx(score_request(request, f"{answer} {filler}").total - 0.10, abs=1e-12)
        else:
            assert worse < best - 0.10
        if request.constraint is not None and request.constraint.kind in ("begin", "end"):
            assert score_request(request, " ".join(sentences)).total == pytest.approx(best - 0.20, abs=1e-12)


@pytest.mark.parametrize("skill", SKILLS, ids=lambda skill: skill.name)
def test_nothing_comes_of_nothing(skill: Skill) -> None:
    for request in some_requests(skill, limit=5):
        for response in ("", " \n ", "...", "xq zzkp brr. Vot!", "the the the", "Sure.", RUDE[0], CLOSING_FILLER[0]):
            assert score_request(request, response).total == 0.0, (request.text, response)


def test_a_foreign_prompt_has_no_gold_score() -> None:
    with pytest.raises(KeyError, match="unicorn"):
        gold_total("Where does the unicorn live?", "In the forest.")
