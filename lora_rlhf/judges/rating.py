"""Judges that read one answer: its score from 1 to 7 (InstructGPT's scale, appendix B), or a verdict."""

from collections.abc import Sequence
from typing import Any

from lora_rlhf.data.schema import Prompt
from lora_rlhf.judges.asking import Asker, Read
from lora_rlhf.judges.pairwise import EASY_QUESTION
from lora_rlhf.judges.question import AnswerTemplate, read_score, turns_text


class AnswerJudge:
    """Asks one question about each answer. `name` is "local" or "endpoint"; `read` finds the verdict in a reply."""

    def __init__(self, asker: Asker, questions: AnswerTemplate, read: Read) -> None:
        self.name = asker.name
        self.asker = asker
        self._questions, self._read = questions, read

    def check_easy_question(self, anew: bool = False) -> None:
        """As that of `PairwiseJudge`."""
        prompt, answer, _ = EASY_QUESTION
        key = self._key(prompt, answer)
        if anew or self.asker.verdict(key) is None:
            self.asker.ask({key: self._questions.make_question(prompt, answer).text}, self._read)

    def verdicts(self, answers: Sequence[tuple[Prompt, str]]) -> list[str | None]:
        """The verdict on each (prompt, answer); None where the judge failed.

        Raises UserError if the judge does not work; earlier verdicts stay cached.
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
        self.asker.ask(text_by_key, self._read)
        return [self.asker.verdict(key) for key in keys]

    def _key(self, prompt: Prompt, answer: str) -> str:
        return self.asker.key(self._questions.version, turns_text(prompt), answer, "")

    def describe(self) -> dict[str, Any]:
        """The judge's entry in a manifest: its identity, and counts of its work so far. It has no secrets."""
        identity = self.asker.model.identity()
        return {"name": self.name, **identity, "template": self._questions.version, **self.asker.describe()}

    def close(self) -> None:
        """Frees memory and connections."""
        self.asker.model.close()


class RatingJudge(AnswerJudge):
    """Scores answers."""

    def __init__(self, asker: Asker, questions: AnswerTemplate) -> None:
        super().__init__(asker, questions, read_score)

    def rate(self, answers: Sequence[tuple[Prompt, str]]) -> list[int | None]:
        """A score from 1 to 7 for each (prompt, answer); None where the judge failed."""
        return [None if score is None else int(score) for score in self.verdicts(answers)]
