"""Prompts, and a toy world in which the letter a is all that counts, for the tests of the evaluation."""

from collections.abc import Callable

from lora_rlhf.data.schema import Prompt
from lora_rlhf.probes.sets import Choice, ChoiceSet, Probe, ProbeSet, World

OFFSET = 0.7  # of the reward stage in every run made here
QUESTIONS = [f"What does the sailor number {number} count?" for number in range(24)]
OTHERS = [f"Where is the boat number {number}?" for number in range(12)]
NUM_PROBES = 12  # of each of two bins


def letter_share(_prompt: str, response: str) -> float:
    """How much of the response is the letter a."""
    return response.count("a") / len(response) if response else 0.0


def letters(score: Callable[[str, str], float] = letter_share) -> World:
    """A response is untrue and uncivil where it has another letter than a."""

    def qualities(prompt: str, response: str) -> dict[str, float]:
        found = float(set(response) <= {"a"} and bool(response))
        return {"asked": 1.0, "true": found, "constraint": 1.0, "point": 1.0, "civil": found}

    def probes() -> ProbeSet:
        made = [
            Probe(Prompt.of(f"What does the {who} number {i} count?"), name, check)
            for i in range(NUM_PROBES)
            for name, who, check in (
                ("instruction_miss", "tailor", {"kind": "contains_any", "any": ["aaaa"]}),
                ("refusal_overreach", "sailors", {"kind": "complies"}),
            )
        ]
        return ProbeSet("letters", "1", tuple(made))

    def choices() -> ChoiceSet:
        return ChoiceSet("letters", "1", tuple(Choice(Prompt.of(q), ("aaaa", "bbbb"), 0) for q in OTHERS))

    return World("letters", score, qualities, probes, choices, lambda: [f"a b c {i} d e f" for i in range(12)])
