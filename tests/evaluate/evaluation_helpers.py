"""Prompts and a toy gold score for the tests of the evaluation."""

OFFSET = 0.7  # of the reward stage in every run made here
QUESTIONS = [f"What does the sailor number {number} count?" for number in range(24)]
OTHERS = [f"Where is the boat number {number}?" for number in range(12)]


def letter_share(_prompt: str, response: str) -> float:
    """How much of the response is the letter a."""
    return response.count("a") / len(response) if response else 0.0
