"""A reward function in a process of its own, with a limit of time and of memory: whatever it does, a run goes on."""

import contextlib
import json
import logging
import math
import os
import selectors
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_rlhf.configs.reward_functions import FunctionChoice
from lora_rlhf.system.errors import UserError

log = logging.getLogger("lora_rlhf")

START_S = 300.0  # a function's module may import large libraries
RETRY = 3  # a batch that fails is tried row by row for up to so many times the time limit
MOST_BYTES = 2**26  # of an answer
PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from lora_rlhf.rewards.worker import main; main()"


@dataclass(frozen=True)
class ScoredRow:
    """A response to score, with its prompt's messages as {"role", "content"} and the other columns of its row."""

    prompt: list[dict[str, Any]]
    completion: str
    completion_ids: list[int]
    columns: dict[str, Any]


class _Failed(Exception):
    """The function gave no scores; the message says why."""


class RewardFunction:
    """Scores rows by a function that another process runs.

    timeout_s: of one call. memory_gib: of the process's data; None: no limit. failure_score: of a row for which the
    function raises, hangs, dies or returns no number. UserError where there is no such function.
    """

    def __init__(
        self, choice: FunctionChoice, timeout_s: float, memory_gib: float | None, failure_score: float
    ) -> None:
        self.choice, self.label, self.weight = choice, choice.label or choice.name, choice.weight
        self._timeout_s, self._memory_gib, self._failure_score = timeout_s, memory_gib, failure_score
        self._process: subprocess.Popen[bytes] | None = None
        self._reasons: set[str] = set()  # of failures that were told
        try:
            self._needs: list[str] = self._start()["needs"]
        except _Failed as failed:
            raise UserError(f"reward function {choice.name!r} cannot be loaded: it {failed}") from None

    def try_out(self, rows: Sequence[ScoredRow]) -> None:
        """Calls the function once, before anything long begins. UserError where that fails or a column is missing."""
        columns = sorted({name for row in rows for name in row.columns})
        if missing := [name for name in self._needs if name not in columns]:
            raise UserError(
                f"reward function {self.choice.name!r} needs the column {missing[0]!r}, which the prompts lack; their "
                f'other columns are: {", ".join(columns) or "none"}. NAME({missing[0]}="@COLUMN") names another one'
            )
        try:
            scores = self._call(rows)
        except _Failed as failed:
            raise UserError(f"reward function {self.choice.name!r}, called once to try it: it {failed}") from None
        if wrong := [score for score in scores if score is not None and not math.isfinite(score)]:
            raise UserError(f"reward function {self.choice.name!r}, called once to try it: it returned {wrong[0]}")

    def score(self, rows: Sequence[ScoredRow]) -> tuple[list[float | None], int]:
        """(scores, how many rows failed). None where the function says that it does not apply to a row."""
        reasons: list[str] = []
        try:
            scores = self._call(rows)
        except _Failed as failed:
            scores, reasons = self._score_by_row(rows, failed)
        for index, score in enumerate(scores):
            if score is not None and not math.isfinite(score):
                scores[index] = self._failure_score
                reasons.append(f"returned {score}")
        if reasons and (new := set(reasons) - self._reasons) and len(self._reasons) < 10:
            self._reasons |= new
            log.warning(
                "reward function %s failed on %d of %d responses (it %s); their score is %g",
                *(self.label, len(reasons), len(rows), min(new), self._failure_score),
            )
        return scores, len(reasons)

    def _score_by_row(self, rows: Sequence[ScoredRow], failed: _Failed) -> tuple[list[float | None], list[str]]:
        """Calls the function for each row alone, so that only the rows at fault fail; then what is left fails too."""
        scores: list[float | None] = []
        reasons: list[str] = []
        deadline = time.monotonic() + RETRY * self._timeout_s
        for row in rows:
            try:
                if len(rows) == 1 or time.monotonic() > deadline:
                    raise failed
                scores += self._call([row])
            except _Failed as failed_row:
                scores.append(self._failure_score)
                reasons.append(str(failed_row))
        return scores, reasons

    def _call(self, rows: Sequence[ScoredRow]) -> list[float | None]:
        """The function's scores of the rows. _Failed where it gives none."""
        if self._process is None:
            self._start()
        names = dict.fromkeys([*self._needs, *(name for row in rows for name in row.columns)])
        request = {
            "prompts": [row.prompt for row in rows],
            "completions": [[{"role": "assistant", "content": row.completion}] for row in rows],
            "completion_ids": [row.completion_ids for row in rows],
            "columns": {name: [row.columns.get(name) for row in rows] for name in names},
        }
        answer = self._exchange(request, self._timeout_s)
        scores = answer.get("scores")
        if "error" in answer or not isinstance(scores, list) or len(scores) != len(rows):
            raise _Failed(f"failed with {answer.get('error', 'an answer of another form')}")
        return scores

    def _start(self) -> dict[str, Any]:
        """Starts the process; returns what it says of the function. UserError where the function cannot be used."""
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(sys.path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        self._process = process
        self._end = weakref.finalize(self, _kill, process)
        memory = None if self._memory_gib is None else int(self._memory_gib * 2**30)
        answer = self._exchange(
            {"name": self.choice.name, "arguments": self.choice.arguments, "memory": memory}, START_S
        )
        if "error" in answer:
            raise UserError(answer["error"])
        return answer

    def _exchange(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """Writes a line, reads a line. _Failed, and no process any more, where that takes too long or it dies."""
        assert self._process is not None
        process, unsent, received = self._process, json.dumps(request).encode() + b"\n", bytearray()
        assert process.stdin is not None and process.stdout is not None
        deadline = time.monotonic() + limit_s
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                selector.register(process.stdin, selectors.EVENT_WRITE)
                while not received.endswith(b"\n"):
                    if (left := deadline - time.monotonic()) <= 0:
                        raise _Failed(f"took longer than {limit_s:g} s")
                    for key, _ in selector.select(left):
                        if key.fileobj is process.stdin:
                            unsent = unsent[os.write(process.stdin.fileno(), unsent) :]
                            if not unsent:
                                selector.unregister(process.stdin)
                        elif part := os.read(process.stdout.fileno(), 2**16):
                            received += part
                        else:
                            raise _Failed("ended its process")
                    if len(received) > MOST_BYTES:
                        raise _Failed("returned too much")
            answer = json.loads(received)
            if not isinstance(answer, dict):
                raise ValueError
            return answer
        except (OSError, ValueError) as error:
            self._stop()
            raise _Failed("ended its process" if isinstance(error, OSError) else "wrote no answer") from None
        except _Failed:
            self._stop()
            raise

    def _stop(self) -> None:
        self._end()
        self._process = None


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
    process.wait()
