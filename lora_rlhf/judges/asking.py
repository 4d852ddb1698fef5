"""Asks a model the questions that are not in the cache yet, and counts calls, tokens, faults and costs."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tqdm import tqdm

from lora_rlhf.data.refusals import pluralize
from lora_rlhf.judges.cache import Cache, hash_question
from lora_rlhf.system.errors import UserError

FIRST_FAILURES = 5  # after so many failures and no verdict, the judge counts as broken

Read = Callable[[str], str | None]  # a reply's text -> its verdict; None without one


@dataclass(frozen=True)
class Reply:
    """The result of one question: a verdict, or the kind of fault and its details. Tokens are None if unknown.

    is_down: the server was busy, broken or gone at every try, which says nothing of the question.
    """

    verdict: str | None
    fault: str = ""
    detail: str = ""
    calls: int = 1
    tokens_in: int | None = None
    tokens_out: int | None = None
    is_down: bool = False


class JudgeModel(Protocol):
    """A model that answers the questions: on this machine, or behind an API."""

    def identity(self) -> dict[str, Any]:
        """The facts on which verdicts depend. Cached verdicts of another identity are not used."""

    def ask(self, questions: Sequence[str], read: Read, on_reply: Callable[[int, Reply], None]) -> None:
        """Asks all questions, and calls `on_reply(index, reply)` for each as its reply arrives."""

    def price(self, tokens_in: int, tokens_out: int) -> float | None:
        """The cost of these numbers of tokens; None without a price."""

    def close(self) -> None:
        """Frees memory and connections."""


@dataclass
class Counts:
    """Counts of a judge's work so far."""

    questions: int = 0
    cached: int = 0
    calls: int = 0
    without_usage: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    down: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def add_reply(self, reply: Reply) -> None:
        """Counts the calls, tokens and fault of a reply."""
        self.questions += 1
        self.calls += reply.calls
        self.without_usage += reply.tokens_in is None
        self.tokens_in += reply.tokens_in or 0
        self.tokens_out += reply.tokens_out or 0
        self.down += reply.is_down
        if reply.verdict is None:
            self.faults[reply.fault] += 1

    def state_dict(self) -> dict[str, int]:
        """What was spent so far, for a run that goes on."""
        return {"calls": self.calls, "tokens_in": self.tokens_in, "tokens_out": self.tokens_out}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Adds what an earlier attempt had spent."""
        self.calls += state["calls"]
        self.tokens_in += state["tokens_in"]
        self.tokens_out += state["tokens_out"]

    @property
    def num_verdicts(self) -> int:
        return self.questions + self.cached - self.faults.total()


class Asker:
    """A judge's model with its cache and counts. `name` is "local" or "endpoint", `flag` the one that chose it.

    budget: the most that all calls may cost; None: no limit.
    """

    def __init__(self, name: str, model: JudgeModel, cache: Cache, flag: str = "judge", budget: float | None = None):
        self.name, self.model, self.counts = name, model, Counts()
        self._cache, self._flag, self._budget = cache, flag, budget

    def key(self, version: str, turns: str, first: str, second: str) -> str:
        """The cache's key of a question; see `hash_question`."""
        return hash_question(self.model.identity(), version, turns, first, second)

    def verdict(self, key: str) -> str | None:
        """The verdict of a question; None if it was not asked, or failed."""
        return self._cache.get(key)

    def ask(self, text_by_key: dict[str, str], read: Read) -> None:
        """Asks the questions and caches their verdicts.

        UserError if the model gives no verdict at all, does not answer any more, or has cost what it may.
        """
        if not text_by_key:
            return
        keys, started = list(text_by_key), time.monotonic()
        replies: list[Reply] = []
        self._require_budget()
        with tqdm(total=len(keys), desc=f"judge {self.model_name}", unit="question", disable=None, leave=False) as bar:

            def on_reply(number: int, reply: Reply) -> None:
                """Counts and caches a reply. UserError after too many failures without a verdict, or the last cent."""
                self.counts.add_reply(reply)
                if reply.verdict is not None:
                    self._cache.put(keys[number], reply.verdict, self.model_name)
                elif self.counts.num_verdicts == 0 and self.counts.faults.total() >= FIRST_FAILURES:
                    raise self._no_verdict_error(reply)
                cost = self.cost
                bar.set_postfix_str("" if cost is None else f"cost {cost:.4f}", refresh=False)
                bar.update()
                replies.append(reply)
                if len(replies) < len(keys):
                    self._require_budget()

            try:
                self.model.ask(list(text_by_key.values()), read, on_reply)
            finally:
                self.counts.seconds += time.monotonic() - started
        if self.counts.num_verdicts == 0:
            raise self._no_verdict_error(replies[-1])

    @property
    def choice(self) -> str:
        """The flag that chose it, for messages."""
        return f"--{self._flag} {self.name}"

    @property
    def model_name(self) -> str:
        return str(self.model.identity().get("model", self.name))

    @property
    def cost(self) -> float | None:
        """Of all calls so far; None without a price."""
        return self.model.price(self.counts.tokens_in, self.counts.tokens_out)

    def describe(self) -> dict[str, Any]:
        """The counts for a report; it has no secrets."""
        counts = self.counts
        return {
            "calls": counts.calls,
            "cached": counts.cached,
            "faults": dict(counts.faults.most_common()),
            "tokens_in": counts.tokens_in,
            "tokens_out": counts.tokens_out,
            "without_usage": counts.without_usage,
            "cost": self.cost,
            "seconds": round(counts.seconds, 2),
        }

    def _require_budget(self) -> None:
        cost = self.cost
        if self._budget is not None and cost is not None and cost >= self._budget:
            raise UserError(
                f"{self.choice}: {self.counts.calls:,} calls have cost {cost:.4g}, and judge_budget is "
                f"{self._budget:g}; verdicts so far are kept: raise --judge_budget to go on"
            )

    def _no_verdict_error(self, reply: Reply) -> UserError:
        """The error for a judge without any verdict, with its last fault."""
        num_asked = pluralize(self.counts.faults.total(), "question")
        return UserError(
            f"{self.choice}: {self.model_name} gave no verdict ({num_asked} asked); the last fault: "
            f"{reply.fault}{': ' + reply.detail if reply.detail else ''}. Choose another judge, or mend this one"
        )
