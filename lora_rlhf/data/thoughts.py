"""Thoughts in an answer's text. Rows and answers have them in this form, whatever tokens a model uses:

<think>\nthought\n</think>\n\nanswer
"""

from lora_rlhf.data.refusals import BadRow

OPEN, CLOSE = "<think>", "</think>"


def join_thought(thought: str, answer: str) -> str:
    """The text of an answer with the thought before it; the inverse of `split_thought`."""
    return f"{OPEN}\n{thought}\n{CLOSE}\n\n{answer}"


def split_thought(text: str) -> tuple[str, str]:
    """Returns (thought, answer); the thought is "" if there is none or if it is blank.

    An answer may also begin within its thought, because servers leave out the tag with which the prompt ends. BadRow
    for a thought that never closes, that opens or closes twice, or that follows other text.
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
    text_before, _, thought = head.rpartition(OPEN)
    if text_before.strip() or OPEN in answer:
        raise BadRow("the answer's thought does not come first", f"text before {OPEN}")
    answer = answer[2:] if answer.startswith("\n\n") else answer.lstrip("\n")
    return (thought.removeprefix("\n").removesuffix("\n") if thought.strip() else ""), answer
