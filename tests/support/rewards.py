"""Verifiable rewards for the tests, named as users name theirs: tests.support.rewards:FUNCTION."""

NOT_A_FUNCTION = 3


def ascii_share(_prompts: list[str], responses: list[str]) -> list[float]:
    """Share of a response's characters that are ASCII: about half at random."""
    return [sum(character.isascii() for character in text) / max(len(text), 1) for text in responses]


def minus_ascii_share(prompts: list[str], responses: list[str]) -> list[float]:
    return [-share for share in ascii_share(prompts, responses)]


def lengths(_prompts: list[str], responses: list[str]) -> list[float]:
    return [float(len(text)) for text in responses]


def nothing(_prompts: list[str], responses: list[str]) -> list[float]:
    return [0.0] * len(responses)


def too_few(_prompts: list[str], responses: list[str]) -> list[float]:
    return [1.0] * (len(responses) - 1)


def one_number(_prompts: list[str], _responses: list[str]) -> float:
    return 1.0


def a_column(_prompts: list[str], responses: list[str]) -> list[list[float]]:
    return [[1.0] for _ in responses]


def not_a_number(_prompts: list[str], responses: list[str]) -> list[float]:
    return [float("nan"), *[1.0] * (len(responses) - 1)]


def endless(_prompts: list[str], responses: list[str]) -> list[float]:
    return [float("inf")] * len(responses)


def none(_prompts: list[str], _responses: list[str]) -> None:
    return None


def words(_prompts: list[str], responses: list[str]) -> list[str]:
    return responses


async def later(_prompts: list[str], responses: list[str]) -> list[float]:
    return [0.0] * len(responses)
