"""A reward function that holds PPO in the middle of its second iteration, while the file that WAITS names is there."""

import os
import time
from pathlib import Path

judged: list[int] = []


def judge(_prompts: list[str], responses: list[str]) -> list[float]:
    judged.append(1)
    if os.environ.get("WAITS") and len(judged) > 3:  # the trial, the first iteration and its fixed prompts come before
        gate = Path(os.environ["WAITS"])
        gate.with_suffix(".reached").touch()
        while gate.exists():
            time.sleep(0.01)
    return [sum(character.isascii() for character in text) / max(len(text), 1) for text in responses]
