"""The reward playground: a conversation as people type it, and the scores of answers with their changes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lora_rlhf.data.schema import Message, Prompt
from lora_rlhf.system.errors import UserError
from lora_rlhf_demo.compare import LETTERS
from lora_rlhf_demo.show import safe_html

TURN = re.compile(r"^(System|User|Human|Assistant):[ \t]*", re.MULTILINE)
ROLES = {"System": "system", "User": "user", "Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class Scoring:
    """{index of an answer: its score} of the answers that are not empty, now and before their last change."""

    scores: dict[int, float]
    before: dict[int, float]

    def with_scores(self, scores: dict[int, float]) -> "Scoring":
        """The new scores; `before` stays as it is for the answers whose score did not change."""
        before = {
            index: self.before.get(index, score) if self.scores.get(index) == score else self.scores.get(index, score)
            for index, score in scores.items()
        }
        return Scoring(scores, before)


def parse_conversation(text: str) -> tuple[Message, ...]:
    """The messages of a text: one message of the user, or turns that begin with "User:", "Assistant:" or "System:".

    UserError if the text does not end with a message of the user.
    """
    text = text.strip()
    matches = list(TURN.finditer(text))
    if not matches or matches[0].start() > 0:
        return Prompt((Message("user", text),)).messages
    ends = [*(match.start() for match in matches[1:]), len(text)]
    turns = [
        Message(ROLES[match[1]], text[match.end() : end].strip()) for match, end in zip(matches, ends, strict=True)
    ]
    if any(turn.role == "system" for turn in turns[1:]):
        raise UserError('"System:" can only stand at the beginning.')
    if turns[-1].role != "user":
        raise UserError('The conversation must end with a "User:" line, which the answers below answer.')
    return Prompt(tuple(turns)).messages


def rank_by_index(scores: dict[int, float]) -> dict[int, int]:
    """{index of an answer: its rank}, 1 for the highest score; equal scores share a rank."""
    return {index: 1 + sum(other_score > score for other_score in scores.values()) for index, score in scores.items()}


def bars_html(scoring: Scoring, answers: Sequence[str]) -> str:
    """The rank, score and bar of each answer as HTML, the best first."""
    if not scoring.scores:
        return '<p class="note">Write an answer: its score appears here, and follows as you edit.</p>'
    largest = max(1.0, *(abs(score) for score in scoring.scores.values()))
    ranks = rank_by_index(scoring.scores)
    rows = []
    for index in sorted(scoring.scores, key=lambda index: (ranks[index], index)):
        score, change = scoring.scores[index], scoring.scores[index] - scoring.before.get(index, scoring.scores[index])
        width = 50 * abs(score) / largest
        side = f"left:50%;width:{width:.1f}%" if score >= 0 else f"right:50%;width:{width:.1f}%"
        change_html = (
            f'<span class="{"up" if change > 0 else "down"}">{change:+.2f}</span>' if abs(change) >= 0.005 else ""
        )
        rows.append(
            f'<li><span class="badge">{ranks[index]}</span><div class="of">'
            f'<div class="head"><strong>{LETTERS[index]}</strong>'
            f'<span class="start" dir="auto">{safe_html(answers[index][:80])}</span>{change_html}'
            f'<span class="score">{score:+.2f}</span></div>'
            f'<div class="track"><i class="{"plus" if score >= 0 else "minus"}" style="{side}"></i></div></div></li>'
        )
    return (
        f'<ol class="scores" aria-label="Answers by score, the best first">{"".join(rows)}</ol>'
        '<p class="small">0 is the mean of the demonstrations, 1 their standard deviation. '
        "Beside a score: what the last edit did to it.</p>"
    )
