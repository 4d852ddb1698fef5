"""Judges that read both answers: each pair is two questions, with the order swapped, and none is asked again."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tqdm import tqdm

from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.refusals import counted
from lora_rlhf.data.schema import Prompt
from lora_rlhf.judges.cache import Cache, key_of
from lora_rlhf.judges.judge import Verdicts
from lora_rlhf.judges.question import Questions, Side
from lora_rlhf.model.drawing import Response
from lora_rlhf.system.errors import UserError

FIRST_FAILURES = 5  # so many failures without a single verdict mean that the judge does not work at all
PROOF = (Prompt.of("How many days has a week?"), "A week has seven days.", "Bananas are yellow.")
POINTS: dict[Side, float] = {"A": 1.0, "tie": 0.5, "B": 0.0}


@dataclass(frozen=True)
class Reply:
    """The result of one question: a verdict, or the kind of fault and its details. Tokens are None if unknown."""

    verdict: Side | None
    fault: str = ""
    detail: str = ""
    calls: int = 1
    tokens_in: int | None = None
    tokens_out: int | None = None


class Asker(Protocol):
    """A model that answers questions: on this machine, or behind an API."""

    def identity(self) -> dict[str, Any]:
        """What its verdicts depend on: with another identity, every question is asked anew."""

    def ask(self, questions: Sequence[str], done: Callable[[int, Reply], None]) -> None:
        """Asks all, and calls `done` with the number of each and its reply as they come. UserError ends everything."""

    def price(self, tokens_in: int, tokens_out: int) -> float | None:
        """The cost of so many tokens; None without a price."""

    def close(self) -> None:
        """Frees memory and connections."""


@dataclass
class _Tally:
    """Counts of a judge's work so far."""

    pairs: int = 0
    identical: int = 0
    shortened: int = 0
    questions: int = 0
    cached: int = 0
    calls: int = 0
    without_usage: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    failed_pairs: int = 0
    inconsistent: int = 0
    first_won: int = 0
    second_won: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def add(self, reply: Reply) -> None:
        self.questions += 1
        self.calls += reply.calls
        self.without_usage += reply.tokens_in is None
        self.tokens_in += reply.tokens_in or 0
        self.tokens_out += reply.tokens_out or 0
        if reply.verdict is None:
            self.faults[reply.fault] += 1

    @property
    def verdicts(self) -> int:
        return self.questions + self.cached - self.faults.total()


Keys = tuple[str, str]  # of a pair's two questions: with the first response as answer A, and as answer B


class PairwiseJudge:
    """A judge that reads both answers. `name` is "local" or "endpoint".

    A pair's outcome is what both orders agree on. A verdict that changes with the order is a tie, and is counted as
    inconsistent. Identical answers are a tie without a question.
    """

    def __init__(self, name: str, asker: Asker, questions: Questions, cache: Cache) -> None:
        self.name = name
        self._asker = asker
        self._questions = questions
        self._cache = cache
        self._tally = _Tally()

    def prove(self) -> None:
        """Asks one question with an obvious answer, unless it was asked before. UserError without a verdict.

        So a judge that cannot work is known before there is anything to judge.
        """
        question = self._questions.of(PROOF[0], *PROOF[1:])
        key = self._key(*PROOF)
        if self._cache.get(key) is None:
            self._ask({key: question.text})

    def compare(
        self, prompts: Sequence[EncodedPrompt], first: Sequence[Response], second: Sequence[Response]
    ) -> Verdicts:
        """The verdict on each pair. UserError where the judge cannot be used; its verdicts until then are kept."""
        started = time.monotonic()
        tokens_before = self._tally.tokens_in, self._tally.tokens_out
        pending: dict[str, str] = {}
        pairs = [
            self._prepare(prompt, a.text.strip(), b.text.strip(), pending)
            for prompt, a, b in zip(prompts, first, second, strict=True)
        ]
        try:
            self._ask(pending)
        finally:
            self._tally.seconds += time.monotonic() - started
        inconsistent_before = self._tally.inconsistent
        outcomes = [self._outcome(pair) for pair in pairs]
        tokens_after = self._tally.tokens_in, self._tally.tokens_out
        cost = self._asker.price(*(after - before for after, before in zip(tokens_after, tokens_before, strict=True)))
        return Verdicts(outcomes, self._tally.inconsistent - inconsistent_before, cost)

    def describe(self) -> dict[str, Any]:
        """See `judge.Judge`. `inconsistent`: pairs whose verdict changed with the order of the answers."""
        tally = self._tally
        judged = tally.pairs - tally.identical - tally.failed_pairs
        return {
            "name": self.name,
            **self._asker.identity(),
            "template": self._questions.version,
            "pairs": tally.pairs,
            "identical": tally.identical,
            "shortened": tally.shortened,
            "calls": tally.calls,
            "cached": tally.cached,
            "failures": tally.failed_pairs,
            "faults": dict(tally.faults.most_common()),
            "inconsistent": tally.inconsistent,
            "inconsistent_share": tally.inconsistent / judged if judged else None,
            "inconsistent_for_first": tally.first_won,
            "inconsistent_for_second": tally.second_won,
            "tokens_in": tally.tokens_in,
            "tokens_out": tally.tokens_out,
            "without_usage": tally.without_usage,
            "cost": self._asker.price(tally.tokens_in, tally.tokens_out),
            "seconds": round(tally.seconds, 2),
        }

    def close(self) -> None:
        self._asker.close()

    def _prepare(self, prompt: EncodedPrompt, first: str, second: str, pending: dict[str, str]) -> Keys | None:
        """The keys of a pair's questions; those without a known verdict go to `pending`. None for identical answers."""
        self._tally.pairs += 1
        if first == second:
            self._tally.identical += 1
            return None
        keys, shortened = [], False
        for a, b in ((first, second), (second, first)):
            question = self._questions.of(prompt.prompt, a, b)
            shortened = question.shortened
            key = self._key(prompt.prompt, a, b)
            if self._cache.get(key) is not None:
                self._tally.cached += 1
            else:
                pending[key] = question.text
            keys.append(key)
        self._tally.shortened += shortened
        return keys[0], keys[1]

    def _key(self, prompt: Prompt, first: str, second: str) -> str:
        turns = repr([(message.role, message.content) for message in prompt.messages])
        return key_of(self._asker.identity(), self._questions.version, turns, first, second)

    def _ask(self, pending: dict[str, str]) -> None:
        if not pending:
            return
        keys, label = list(pending), self._label()
        replies: list[Reply] = []
        with tqdm(total=len(keys), desc=f"judge {label}", unit="question", disable=None) as bar:

            def done(number: int, reply: Reply) -> None:
                self._tally.add(reply)
                if reply.verdict is not None:
                    self._cache.put(keys[number], reply.verdict, label)
                elif self._tally.verdicts == 0 and self._tally.faults.total() >= FIRST_FAILURES:
                    raise self._no_verdict(reply)
                cost = self._asker.price(self._tally.tokens_in, self._tally.tokens_out)
                bar.set_postfix_str("" if cost is None else f"cost {cost:.4f}", refresh=False)
                bar.update()
                replies.append(reply)

            self._asker.ask(list(pending.values()), done)
        if self._tally.verdicts == 0:
            raise self._no_verdict(replies[-1])

    def _label(self) -> str:
        return str(self._asker.identity().get("model", self.name))

    def _no_verdict(self, reply: Reply) -> UserError:
        asked = counted(self._tally.faults.total(), "question")
        return UserError(
            f"--judge {self.name}: {self._label()} gave no verdict ({asked} asked); the last fault: "
            f"{reply.fault}{': ' + reply.detail if reply.detail else ''}. Choose another judge, or mend this one"
        )

    def _outcome(self, keys: Keys | None) -> float | None:
        if keys is None:
            return 0.5
        forward, swapped = (self._cache.get(key) for key in keys)
        if forward is None or swapped is None:
            self._tally.failed_pairs += 1
            return None
        outcome = POINTS[forward]
        if outcome == 1.0 - POINTS[swapped]:
            return outcome
        self._tally.inconsistent += 1
        self._tally.first_won += (forward, swapped) == ("A", "A")
        self._tally.second_won += (forward, swapped) == ("B", "B")
        return 0.5
