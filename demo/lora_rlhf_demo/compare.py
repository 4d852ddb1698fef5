"""A comparison in progress: the next question to its columns, and blind votes on their answers."""

import random
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lora_rlhf.configs.catalogue import BASE, WRITERS
from lora_rlhf.data.schema import Message, Prompt, Ranking, make_row
from lora_rlhf.system.errors import UserError
from lora_rlhf_demo.requests import Ask, Column, ColumnAnswer, Settings

LETTERS = "ABCDEF"
OLDEST_FIRST = (BASE, *(stage.role for stage in WRITERS))


@dataclass(frozen=True)
class Turn:
    """A question, and the answer of every column.

    stages: of the columns, in the order of display. settings: how the answers were drawn. is_blind: the names are
    hidden until the vote. ranks: the vote, 1 = best; after it all columns go on from the best answer, so that the next
    vote compares answers to the same conversation. vote: names the vote's row. number: of this version; versions: the
    other ones that were drawn for the same question, the one drawn next first.
    """

    question: str
    stages: tuple[str, ...]
    answers: tuple[ColumnAnswer, ...]
    settings: Settings
    ranks: tuple[int, ...] | None = None
    is_blind: bool = False
    vote: str = ""
    number: int = 1
    versions: tuple["Turn", ...] = ()

    @property
    def is_hidden(self) -> bool:
        """Whether names and figures are hidden."""
        return self.is_blind and self.ranks is None

    def can_go_on(self, column: int) -> bool:
        """Whether an answer was cut, and no vote has been cast on it."""
        answers = self.answers[column : column + 1] if column >= 0 else ()
        return self.ranks is None and any(not answer.finished and answer.ids for answer in answers)

    def answer_to_continue(self, stage: str) -> str:
        """The answer after which the conversation of a column continues: its own, or after a vote the best.

        A column that was added later goes on from the last column's, usually the newest stage.
        """
        if self.ranks is not None:
            return self.answers[self.ranks.index(1)].text
        return self.answers[self.stages.index(stage) if stage in self.stages else -1].text


@dataclass(frozen=True)
class Comparison:
    """Stages of one run that answer the same questions, each within its own conversation.

    is_blind: each new turn has a random order of columns, whose names are hidden until the vote. id: under which it is
    kept; empty for one that is not kept yet.
    """

    run: str
    stages: tuple[str, ...]
    system: str = ""
    is_blind: bool = False
    turns: tuple[Turn, ...] = ()
    id: str = ""

    @property
    def is_waiting_for_vote(self) -> bool:
        """Whether the last turn needs a vote before the next question."""
        return bool(self.turns) and self.turns[-1].is_hidden

    def with_columns(self, stages: Sequence[str], is_blind: bool) -> "Comparison":
        """The conversation goes on with other columns. A vote that is due is given up where names are to be seen."""
        turns = self.turns
        if self.is_waiting_for_vote and not is_blind:
            turns = (*turns[:-1], replace(turns[-1], is_blind=False))
        return replace(self, stages=tuple(sorted(stages, key=_training_order)), is_blind=is_blind, turns=turns)

    def with_next_version(self) -> "Comparison":
        """The last question with the answers of its next version, in turn."""
        if not self.turns or not self.turns[-1].versions:
            return self
        shown, *others = self.turns[-1].versions
        kept = (*others, replace(self.turns[-1], versions=()))
        return replace(self, turns=(*self.turns[:-1], replace(shown, versions=kept)))

    def without_last_vote(self) -> tuple["Comparison", str]:
        """The comparison without the vote on its last turn, and that vote's name. UserError without a vote.

        The names were seen, so the turn takes no other vote.
        """
        if not self.turns or self.turns[-1].ranks is None:
            raise UserError("There is no vote on the last question to take back.")
        turn = replace(self.turns[-1], ranks=None, is_blind=False, vote="")
        return replace(self, turns=(*self.turns[:-1], turn)), self.turns[-1].vote

    def column_order(self, rng: random.Random) -> tuple[str, ...]:
        """The columns of the next turn, in the order of display; random in a blind comparison."""
        return tuple(rng.sample(self.stages, len(self.stages))) if self.is_blind else self.stages

    def request_next_turn(self, question: str, order: Sequence[str], settings: Settings) -> Ask:
        """Makes the request for the next turn. UserError for an empty question, and while a vote is missing."""
        if not question.strip():
            raise UserError("Write a question first.")
        if self.is_waiting_for_vote:
            raise UserError("Vote on these answers first; then all columns go on from the best one.")
        if not self.stages:
            raise UserError("Choose a column first.")
        if self.is_blind and len(self.stages) < 2:
            raise UserError("Choose two columns at least: one answer alone cannot be voted on.")
        columns = (Column(stage, (*self._column_messages(stage), Message("user", question))) for stage in order)
        return Ask(self.run, tuple(columns), settings)

    def with_answers(
        self, question: str, ask: Ask, answers: Sequence[ColumnAnswer], replaced: Turn | None = None
    ) -> "Comparison":
        """The comparison with one more turn. replaced: the version of this turn that was shown before."""
        order = tuple(column.stage for column in ask.columns)
        versions = () if replaced is None else (*replaced.versions, replace(replaced, versions=()))
        turn = Turn(question, order, tuple(answers), ask.settings, None, self.is_blind, "", len(versions) + 1, versions)
        return replace(self, turns=(*self.turns, turn))

    def request_more(self, column: int, max_new_tokens: int) -> Ask:
        """Makes the request that lets a cut answer of the last turn go on. UserError if it cannot."""
        if not self.turns or not self.turns[-1].can_go_on(column):
            raise UserError("Only an answer that was cut, and that has no vote, can go on.")
        turn, earlier = self.turns[-1], self.before_turn(len(self.turns) - 1)
        stage, begun = turn.stages[column], turn.answers[column].ids
        messages = (*earlier._column_messages(stage), Message("user", turn.question))
        settings = replace(turn.settings, max_new_tokens=max_new_tokens, seed=turn.settings.seed + len(begun))
        return Ask(self.run, (Column(stage, messages, begun=begun),), settings)

    def with_longer_answer(self, column: int, answer: ColumnAnswer) -> "Comparison":
        """The comparison with another answer of one column in its last turn."""
        turn = self.turns[-1]
        answers = (*turn.answers[:column], answer, *turn.answers[column + 1 :])
        return replace(self, turns=(*self.turns[:-1], replace(turn, answers=answers)))

    def before_turn(self, turn_index: int) -> "Comparison":
        """The comparison as it was before the turn with that index."""
        return replace(self, turns=self.turns[:turn_index])

    def with_vote(
        self, ranks: Sequence[int], labeler: str, is_all_bad: bool = False
    ) -> tuple["Comparison", dict[str, Any], bool]:
        """The comparison with a vote on its last turn, the row to save, and whether the row is a ranking to train on.

        ranks: of the answers in the order of display, 1 = best, ties share a rank; equal answers get the better of
        their ranks. A vote on an empty answer is not a ranking to train on. UserError if there is nothing to vote on,
        and for ranks that leave out an answer. is_all_bad: a tie of answers none of which is good.
        """
        if not self.is_waiting_for_vote:
            raise UserError("There is nothing to vote on: ask a question in blind mode first.")
        if len(ranks) != len(self.turns[-1].stages) or min(ranks, default=0) != 1:
            raise UserError("Rank every answer; the best has rank 1.")
        texts = [answer.text.strip() for answer in self.turns[-1].answers]
        best_rank = {
            text: min(rank for rank, answer_text in zip(ranks, texts, strict=True) if answer_text == text)
            for text in texts
        }
        voted_ranks, vote = tuple(best_rank[text] for text in texts), secrets.token_hex(6)
        turn = replace(self.turns[-1], ranks=voted_ranks, vote=vote)
        earlier = self.before_turn(len(self.turns) - 1)
        row = vote_row(earlier._column_messages(""), turn, labeler) | {"run": self.run, "vote": vote}
        if is_all_bad:
            row["all_bad"] = True
        return replace(self, turns=(*earlier.turns, turn)), row, "" not in texts

    def to_json_object(self) -> dict[str, Any]:
        """The conversation as JSON, without names of stages in a turn that waits for a vote."""
        return {
            **{"run": self.run, "columns": list(self.stages), "system": self.system.strip(), "blind": self.is_blind},
            "turns": [_turn_json_object(turn, turn.is_hidden) for turn in self.turns],
        }

    def _column_messages(self, stage: str) -> tuple[Message, ...]:
        """All messages of one column's conversation, the system message first."""
        system = (Message("system", self.system.strip()),) if self.system.strip() else ()
        turns = (
            (Message("user", turn.question), Message("assistant", turn.answer_to_continue(stage)))
            for turn in self.turns
        )
        return (*system, *(message for pair in turns for message in pair))


def _training_order(stage: str) -> tuple[bool, int]:
    """Sort key: in the order of training, the columns of other runs last."""
    run, _, role = stage.rpartition(":")
    return run != "", OLDEST_FIRST.index(role) if role in OLDEST_FIRST else len(OLDEST_FIRST)


def vote_row(history: Sequence[Message], turn: Turn, labeler: str) -> dict[str, Any]:
    """A row of a rankings file, with the system that wrote each response."""
    assert turn.ranks is not None
    prompt, texts = Prompt((*history, Message("user", turn.question))), tuple(answer.text for answer in turn.answers)
    if not all(text.strip() for text in texts):  # a Ranking refuses empty responses
        row = make_row(prompt) | {"responses": texts, "ranks": turn.ranks, "labeler": labeler or None}
    else:
        ended = tuple(answer.finished for answer in turn.answers)
        row = make_row(Ranking(prompt, texts, turn.ranks, labeler or None, ended))
    return row | {"systems": list(turn.stages)}


def _turn_json_object(turn: Turn, is_hidden: bool) -> dict[str, Any]:
    """One turn as JSON. is_hidden: leave out names of stages and figures."""
    answers = [
        {"answer": LETTERS[column], "text": answer.text, "finished": answer.finished}
        if is_hidden
        else {"stage": stage} | {name: value for name, value in asdict(answer).items() if name not in ("tokens", "ids")}
        for column, (stage, answer) in enumerate(zip(turn.stages, turn.answers, strict=True))
    ]
    return {"question": turn.question, **asdict(turn.settings), "answers": answers, "ranks": turn.ranks}
