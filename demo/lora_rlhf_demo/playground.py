"""The reward playground: a conversation as people type it, and scores with their order and what an edit did to them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lora_rlhf.data.schema import Message, Prompt
from lora_rlhf.system.errors import UserError
from lora_rlhf_demo.compare import LETTERS
from lora_rlhf_demo.show import safe

TURN = re.compile(r"^(System|User|Human|Assistant):[ \t]*", re.MULTILINE)
ROLES = {"System": "system", "User": "user", "Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class Scoring:
    """The scores of the answers that are not empty: {place of the answer: score}, and those before the last edit."""

    scores: dict[int, float]
    before: dict[int, float]

    def then(self, scores: dict[int, float]) -> "Scoring":
        """With new scores; the answers whose score did not move keep what they were compared with."""
        before = {
            place: self.before.get(place, score) if self.scores.get(place) == score else self.scores.get(place, score)
            for place, score in scores.items()
        }
        return Scoring(scores, before)


def conversation(text: str) -> tuple[Message, ...]:
    """The messages of a text: one of the user, or turns whose lines begin with "User:", "Assistant:" or "System:".

    UserError where there is nothing to answer.
    """
    text = text.strip()
    marks = list(TURN.finditer(text))
    if not marks or marks[0].start() > 0:
        return Prompt((Message("user", text),)).messages
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    turns = [Message(ROLES[mark[1]], text[mark.end() : end].strip()) for mark, end in zip(marks, ends, strict=True)]
    if any(turn.role == "system" for turn in turns[1:]):
        raise UserError('"System:" can only stand at the beginning.')
    if turns[-1].role != "user":
        raise UserError('The conversation must end with a "User:" line, which the answers below answer.')
    return Prompt(tuple(turns)).messages


def ranks(scores: dict[int, float]) -> dict[int, int]:
    """The place of each, 1 for the highest score; equal scores share one."""
    return {place: 1 + sum(other > score for other in scores.values()) for place, score in scores.items()}


def bars(scoring: Scoring, answers: Sequence[str]) -> str:
    """Score, order and a bar for each answer, the best first."""
    if not scoring.scores:
        return '<p class="note">Write an answer: its score appears here, and follows as you edit.</p>'
    reach = max(1.0, *(abs(score) for score in scoring.scores.values()))
    order = ranks(scoring.scores)
    rows = []
    for place in sorted(scoring.scores, key=lambda place: (order[place], place)):
        score, change = scoring.scores[place], scoring.scores[place] - scoring.before.get(place, scoring.scores[place])
        width = 50 * abs(score) / reach
        side = f"left:50%;width:{width:.1f}%" if score >= 0 else f"right:50%;width:{width:.1f}%"
        moved = f'<span class="{"up" if change > 0 else "down"}">{change:+.2f}</span>' if abs(change) >= 0.005 else ""
        rows.append(
            f'<li><span class="badge">{order[place]}</span><div class="of">'
            f'<div class="head"><strong>{LETTERS[place]}</strong>'
            f'<span class="start" dir="auto">{safe(answers[place][:80])}</span>{moved}'
            f'<span class="score">{score:+.2f}</span></div>'
            f'<div class="track"><i class="{"plus" if score >= 0 else "minus"}" style="{side}"></i></div></div></li>'
        )
    return (
        f'<ol class="scores" aria-label="Answers by score, the best first">{"".join(rows)}</ol>'
        '<p class="small">0 is the mean of the demonstrations, 1 their standard deviation. '
        "Beside a score: what the last edit did to it.</p>"
    )
