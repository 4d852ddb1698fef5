"""Prompts and answers for the tests of judges."""

from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.schema import Prompt
from lora_rlhf.model.drawing import Response

QUESTIONS = [f"What does the sailor number {number} count?" for number in range(12)]


def asked(*texts: str) -> list[EncodedPrompt]:
    """Prompts as they reach a judge; only the reward model reads the ids."""
    return [EncodedPrompt([1], Prompt.of(text)) for text in texts]


def answer(text: str) -> Response:
    return Response([5, 0], True, text)


def answers(*texts: str) -> list[Response]:
    return [answer(text) for text in texts]
