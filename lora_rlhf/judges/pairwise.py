"""Judges that read both answers. Each pair gives two questions, one in each order of the answers."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tqdm import tqdm

from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.refusals import pluralize
from lora_rlhf.data.schema import Prompt
from lora_rlhf.judges.cache import Cache, hash_question
from lora_rlhf.judges.judge import Verdicts
from lora_rlhf.judges.question import QuestionTemplate, Verdict
from lora_rlhf.model.drawing import Response
from lora_rlhf.system.errors import UserError

FIRST_FAILURES = 5  # after so many failures and no verdict, the judge counts as broken
# (prompt, good answer, bad answer)
EASY_QUESTION = (Prompt.of("How many days has a week?"), "A week has seven days.", "Bananas are yellow.")
POINTS: dict[Verdict, float] = {"A": 1.0, "tie": 0.5, "B": 0.0}


@dataclass(frozen=True)
class Reply:
    """The result of one question: a verdict, or the kind of fault and its details. Tokens are None if unknown."""

    verdict: Verdict | None
    fault: str = ""
    detail: str = ""
    calls: int = 1
    tokens_in: int | None = None
    tokens_out: int | None = None


class JudgeModel(Protocol):
    """A model that answers the questions: on this machine, or behind an API."""

    def identity(self) -> dict[str, Any]:
        """The facts on which verdicts depend. Cached verdicts of another identity are not used."""

    def ask(self, questions: Sequence[str], on_reply: Callable[[int, Reply], None]) -> None:
        """Asks all questions, and calls `on_reply(index, reply)` for each as its reply arrives."""

    def price(self, tokens_in: int, tokens_out: int) -> float | None:
        """The cost of these numbers of tokens; None without a price."""

    def close(self) -> None:
        """Frees memory and connections."""


@dataclass
class _Counts:
    """Counts of a judge's work so far. first_won, second_won: pairs whose answer A, or B, won in both orders."""

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

    def add_reply(self, reply: Reply) -> None:
        """Counts the calls, tokens and fault of a reply."""
        self.questions += 1
        self.calls += reply.calls
        self.without_usage += reply.tokens_in is None
        self.tokens_in += reply.tokens_in or 0
        self.tokens_out += reply.tokens_out or 0
        if reply.verdict is None:
            self.faults[reply.fault] += 1

    @property
    def num_verdicts(self) -> int:
        return self.questions + self.cached - self.faults.total()


KeyPair = tuple[str, str]  # of a pair's two questions: with the first response as answer A, and as answer B


class PairwiseJudge:
    """A judge that reads both answers. `name` is "local" or "endpoint".

    A response wins a pair if it wins in both orders. A verdict that changes with the order is a tie, and is counted as
    inconsistent. Identical answers are a tie without a question.
    """

    def __init__(self, name: str, model: JudgeModel, questions: QuestionTemplate, cache: Cache) -> None:
        self.name = name
        self._model = model
        self._questions = questions
        self._cache = cache
        self._counts = _Counts()

    def check_easy_question(self) -> None:
        """Asks one question with an obvious answer, unless it is cached. Raises UserError without a verdict.

        This shows before any long work whether the judge works.
        """
        question = self._questions.make_question(*EASY_QUESTION)
        key = self._question_key(*EASY_QUESTION)
        if self._cache.get(key) is None:
            self._ask_questions({key: question.text})

    def compare(
        self, prompts: Sequence[EncodedPrompt], first: Sequence[Response], second: Sequence[Response]
    ) -> Verdicts:
        """The verdict on each pair. Raises UserError if the judge does not work; earlier verdicts stay cached."""
        started = time.monotonic()
        tokens_before = self._counts.tokens_in, self._counts.tokens_out
        text_by_key: dict[str, str] = {}
        key_pairs = [
            self._prepare_pair(prompt, a.text.strip(), b.text.strip(), text_by_key)
            for prompt, a, b in zip(prompts, first, second, strict=True)
        ]
        try:
            self._ask_questions(text_by_key)
        finally:
            self._counts.seconds += time.monotonic() - started
        inconsistent_before = self._counts.inconsistent
        outcomes = [self._pair_outcome(keys) for keys in key_pairs]
        tokens_after = self._counts.tokens_in, self._counts.tokens_out
        cost = self._model.price(*(after - before for after, before in zip(tokens_after, tokens_before, strict=True)))
        return Verdicts(outcomes, self._counts.inconsistent - inconsistent_before, cost)

    def describe(self) -> dict[str, Any]:
        """See `judge.Judge`. `inconsistent`: pairs whose verdict changed with the order of the answers."""
        counts = self._counts
        num_judged = counts.pairs - counts.identical - counts.failed_pairs
        return {
            "name": self.name,
            **self._model.identity(),
            "template": self._questions.version,
            "pairs": counts.pairs,
            "identical": counts.identical,
            "shortened": counts.shortened,
            "calls": counts.calls,
            "cached": counts.cached,
            "failures": counts.failed_pairs,
            "faults": dict(counts.faults.most_common()),
            "inconsistent": counts.inconsistent,
            "inconsistent_share": counts.inconsistent / num_judged if num_judged else None,
            "inconsistent_for_first": counts.first_won,
            "inconsistent_for_second": counts.second_won,
            "tokens_in": counts.tokens_in,
            "tokens_out": counts.tokens_out,
            "without_usage": counts.without_usage,
            "cost": self._model.price(counts.tokens_in, counts.tokens_out),
            "seconds": round(counts.seconds, 2),
        }

    def close(self) -> None:
        self._model.close()

    def _prepare_pair(
        self, prompt: EncodedPrompt, first: str, second: str, text_by_key: dict[str, str]
    ) -> KeyPair | None:
        """The keys of a pair's questions, or None for identical answers. Adds uncached questions to `text_by_key`."""
        self._counts.pairs += 1
        if first == second:
            self._counts.identical += 1
            return None
        keys, is_shortened = [], False
        for a, b in ((first, second), (second, first)):
            question = self._questions.make_question(prompt.prompt, a, b)
            is_shortened = question.is_shortened
            key = self._question_key(prompt.prompt, a, b)
            if self._cache.get(key) is not None:
                self._counts.cached += 1
            else:
                text_by_key[key] = question.text
            keys.append(key)
        self._counts.shortened += is_shortened
        return keys[0], keys[1]

    def _question_key(self, prompt: Prompt, first: str, second: str) -> str:
        turns = repr([(message.role, message.text) for message in prompt.messages])
        return hash_question(self._model.identity(), self._questions.version, turns, first, second)

    def _ask_questions(self, text_by_key: dict[str, str]) -> None:
        """Asks the questions and caches their verdicts. Raises UserError if the model gives no verdict at all."""
        if not text_by_key:
            return
        keys, model_name = list(text_by_key), self._model_name()
        replies: list[Reply] = []
        with tqdm(total=len(keys), desc=f"judge {model_name}", unit="question", disable=None) as bar:

            def on_reply(number: int, reply: Reply) -> None:
                """Counts and caches a reply. Raises UserError after too many failures without a verdict."""
                self._counts.add_reply(reply)
                if reply.verdict is not None:
                    self._cache.put(keys[number], reply.verdict, model_name)
                elif self._counts.num_verdicts == 0 and self._counts.faults.total() >= FIRST_FAILURES:
                    raise self._no_verdict_error(reply)
                cost = self._model.price(self._counts.tokens_in, self._counts.tokens_out)
                bar.set_postfix_str("" if cost is None else f"cost {cost:.4f}", refresh=False)
                bar.update()
                replies.append(reply)

            self._model.ask(list(text_by_key.values()), on_reply)
        if self._counts.num_verdicts == 0:
            raise self._no_verdict_error(replies[-1])

    def _model_name(self) -> str:
        return str(self._model.identity().get("model", self.name))

    def _no_verdict_error(self, reply: Reply) -> UserError:
        """The error for a judge without any verdict, with its last fault."""
        num_asked = pluralize(self._counts.faults.total(), "question")
        return UserError(
            f"--judge {self.name}: {self._model_name()} gave no verdict ({num_asked} asked); the last fault: "
            f"{reply.fault}{': ' + reply.detail if reply.detail else ''}. Choose another judge, or mend this one"
        )

    def _pair_outcome(self, keys: KeyPair | None) -> float | None:
        """A pair's outcome from the verdicts of its two questions, which is also counted; None if one is missing."""
        if keys is None:
            return 0.5
        forward, swapped = (self._cache.get(key) for key in keys)
        if forward is None or swapped is None:
            self._counts.failed_pairs += 1
            return None
        outcome = POINTS[forward]
        if outcome == 1.0 - POINTS[swapped]:
            return outcome
        self._counts.inconsistent += 1
        self._counts.first_won += (forward, swapped) == ("A", "A")
        self._counts.second_won += (forward, swapped) == ("B", "B")
        return 0.5
