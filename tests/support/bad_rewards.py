"""Reward functions that misbehave on some responses, in TRL's form; named tests.support.bad_rewards:FUNCTION."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

from lora_rlhf.rewards.builtin import code_tests

Messages = list[dict[str, str]]


def answers(completions: list[Messages]) -> list[str]:
    return [completion[0]["content"] for completion in completions]


def is_bad(completions: list[Messages]) -> bool:
    """Bad on every response that begins with a letter of the first half of the alphabet; the trial does not."""
    return any(text[:1].lower() in tuple("bcdefghijklm") for text in answers(completions))


def hang(completions: list[Messages], **_columns: Any) -> list[float]:
    while is_bad(completions):
        time.sleep(1)
    return [1.0] * len(completions)


def fail(completions: list[Messages], **_columns: Any) -> list[float]:
    if is_bad(completions):
        raise ZeroDivisionError("a bad response")
    return [1.0] * len(completions)


def allocate(completions: list[Messages], **_columns: Any) -> list[float]:
    return [float(len(bytearray(10 * 2**30))) if is_bad(completions) else 1.0 for _ in completions]


def leave(completions: list[Messages], **_columns: Any) -> list[float]:
    if is_bad(completions):
        print("leaving")
        os._exit(0)
    return [1.0] * len(completions)


def write_outside(completions: list[Messages], **_columns: Any) -> list[float]:
    """1 for a bad response whose code, which a model might have written, could write the file $OUTSIDE."""
    path = os.environ["OUTSIDE"]
    code, test = f"open({path!r}, 'w').write('x')", f"assert len(open({path!r}).read())"
    return [code_tests(code, [test]) if is_bad([completion]) else 0.0 for completion in completions]


def kill_itself(completions: list[Messages], **_columns: Any) -> list[float]:
    if is_bad(completions):
        os.kill(os.getpid(), signal.SIGKILL)
    return [1.0] * len(completions)


def exit_by_error(completions: list[Messages], **_columns: Any) -> list[float]:
    if is_bad(completions):
        sys.exit(3)
    return [1.0] * len(completions)


def write_noise(completions: list[Messages], **_columns: Any) -> list[float]:
    print('{"scores": [7.0]}' * 100)
    subprocess.run(["echo", '{"scores": [7.0]}'], check=True)
    return [1.0] * len(completions)


def nonsense(completions: list[Messages], **_columns: Any) -> Any:
    return "nonsense" if is_bad(completions) else [1.0] * len(completions)


def partly_nan(completions: list[Messages], **_columns: Any) -> list[float | None]:
    return [float("nan") if is_bad([completion]) else None for completion in completions]


def rows(prompts: Any, completions: Any, completion_ids: list[list[int]], answer: list[str], **columns: Any) -> Any:
    """What a function is given, as a number that only the expected values give."""
    assert prompts == [[{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]] * 2
    assert completions == [[{"role": "assistant", "content": "A0"}], [{"role": "assistant", "content": "A1"}]]
    assert (completion_ids, answer, columns) == ([[1], [2, 3]], ["x", "y"], {"level": [5, None]})
    return (1.0, None)


def of_answer_alone(completions: list[Messages], answer: list[str]) -> list[float]:
    return [float(text == gold) for text, gold in zip(answers(completions), answer, strict=True)]


def of_texts(prompts: list[str], replies: list[str], scale: float = 1.0) -> list[float]:
    return [scale * (prompt == "Q" and reply.startswith("A")) for prompt, reply in zip(prompts, replies, strict=True)]


def of_tensor(completions: list[Messages]) -> Any:
    import numpy

    return numpy.arange(len(completions))
