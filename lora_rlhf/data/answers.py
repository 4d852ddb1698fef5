"""One response that a model wrote: its ids, its text, and whether it ended by itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """One response: its ids with the stop token where it `finished`, and its text without."""

    ids: list[int]
    text: str
    finished: bool
