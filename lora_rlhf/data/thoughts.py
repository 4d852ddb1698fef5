"""Thoughts in an answer's text. Rows and answers here have them in one form, whatever tokens a model has for them:

<think>\nthought\n</think>\n\nanswer
"""

from lora_rlhf.data.refusals import BadRow

OPEN, CLOSE = "<think>", "</think>"


def with_thought(thought: str, answer: str) -> str:
    """The text of an answer and of the thought before it. `split_thought` is the inverse."""
    return f"{OPEN}\n{thought}\n{CLOSE}\n\n{answer}"


def split_thought(text: str) -> tuple[str, str]:
    """(thought, answer); the thought is "" where there is none, or nothing in it.

    An answer may also begin within its thought: servers leave the tag out that the prompt ends with. BadRow for a
    thought that never closes, one that opens or closes twice, and one behind other text.
    """
    if CLOSE not in text:
        if text.lstrip().startswith(OPEN):
            raise BadRow("the answer's thought is never closed", f"{OPEN} without {CLOSE}")
        return "", text
    if text.count(CLOSE) > 1 or text.count(OPEN) > 1:
        raise BadRow(
            "the answer's thought opens or closes twice",
            f"{text.count(OPEN)} times {OPEN}, {text.count(CLOSE)} times {CLOSE}",
        )
    head, answer = text.split(CLOSE)
    before, _, thought = head.rpartition(OPEN)
    if before.strip() or OPEN in answer:
        raise BadRow("the answer's thought does not come first", f"text before {OPEN}")
    answer = answer[2:] if answer.startswith("\n\n") else answer.lstrip("\n")
    return (thought.removeprefix("\n").removesuffix("\n") if thought.strip() else ""), answer
