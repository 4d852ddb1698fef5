"""A judge that reads one answer, and scores it from 1 to 7 (the scale of InstructGPT's labelers, appendix B)."""

from collections.abc import Sequence
from typing import Any

from lora_rlhf.data.schema import Prompt
from lora_rlhf.judges.asking import Asker
from lora_rlhf.judges.pairwise import EASY_QUESTION
from lora_rlhf.judges.question import RatingTemplate, read_score, turns_text


class RatingJudge:
    """Scores answers. `name` is "local" or "endpoint"."""

    def __init__(self, asker: Asker, questions: RatingTemplate) -> None:
        self.name = asker.name
        self.asker = asker
        self._questions = questions

    def check_easy_question(self, anew: bool = False) -> None:
        """As that of `PairwiseJudge`."""
        prompt, answer, _ = EASY_QUESTION
        key = self._key(prompt, answer)
        if anew or self.asker.verdict(key) is None:
            self.asker.ask({key: self._questions.make_question(prompt, answer).text}, read_score)

    def rate(self, answers: Sequence[tuple[Prompt, str]]) -> list[int | None]:
        """A score from 1 to 7 for each (prompt, answer); None where the judge failed.

        Raises UserError if the judge does not work; earlier scores stay cached.
        """
        text_by_key: dict[str, str] = {}
        keys = []
        for prompt, answer in answers:
            key = self._key(prompt, answer)
            if self.asker.verdict(key) is not None:
                self.asker.counts.cached += 1
            else:
                text_by_key[key] = self._questions.make_question(prompt, answer).text
            keys.append(key)
        self.asker.ask(text_by_key, read_score)
        scores = [self.asker.verdict(key) for key in keys]
        return [None if score is None else int(score) for score in scores]

    def _key(self, prompt: Prompt, answer: str) -> str:
        return self.asker.key(self._questions.version, turns_text(prompt), answer, "")

    def describe(self) -> dict[str, Any]:
        """The judge's entry in a manifest: its identity, and counts of its work so far. It has no secrets."""
        identity = self.asker.model.identity()
        return {"name": self.name, **identity, "template": self._questions.version, **self.asker.describe()}

    def close(self) -> None:
        """Frees memory and connections."""
        self.asker.model.close()
