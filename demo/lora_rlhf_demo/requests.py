"""The requests that pages send to the model, and the events that come back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_rlhf.data.schema import Message


@dataclass(frozen=True)
class Settings:
    """How answers are drawn. temperature 0 is greedy; the same seed draws the same answers.

    top_p: they are drawn from the fewest most probable tokens that have this probability together; 1: from all.
    """

    temperature: float
    max_new_tokens: int
    seed: int
    top_p: float = 1.0


@dataclass(frozen=True)
class Column:
    """One model and its own conversation, which ends with the user's message.

    stage: the role, for example policy; NAME:policy in another run on the same base. seed: added to the seed of the
    settings; columns with the same stage and seed get the same answer. begun: the tokens of a cut answer to continue.
    """

    stage: str
    messages: tuple[Message, ...]
    seed: int = 0
    begun: tuple[int, ...] = ()


@dataclass(frozen=True)
class Ask:
    """A request for one answer of every column, drawn together."""

    run: str
    columns: tuple[Column, ...]
    settings: Settings


@dataclass(frozen=True)
class Score:
    """A request for the reward model's score of each response to one conversation."""

    run: str
    messages: tuple[Message, ...]
    responses: tuple[str, ...]


@dataclass(frozen=True)
class Open:
    """A request to load a run."""

    run: str


@dataclass(frozen=True)
class Waiting:
    """The request is in the queue; `num_ahead` requests come first."""

    num_ahead: int


@dataclass(frozen=True)
class Loading:
    """The adapters of a run are being loaded, and its base if another base is in memory."""

    run: str


@dataclass(frozen=True)
class Partial:
    """The columns' texts so far, and how many tokens each has."""

    texts: tuple[str, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Token:
    """A piece of an answer, and its log-probability under the stage minus that under the reference, in nats."""

    text: str
    gap: float


@dataclass(frozen=True)
class ColumnAnswer:
    """One column's answer with its figures.

    score: of the reward model; None without one. kl: log-probability of the answer minus that under the reference, in
    nats (k1, summed over its tokens); None where the run has no reference. ids: its tokens; empty in a conversation
    that was kept before they were recorded.
    """

    text: str
    finished: bool
    num_tokens: int
    tokens_per_s: float
    score: float | None
    kl: float | None
    tokens: tuple[Token, ...]
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answered:
    """The end of an `Ask`: every column's answer.

    is_stopped: the user ended it early. is_shortened: a conversation did not fit the context, and lost its oldest part.
    """

    answers: tuple[ColumnAnswer, ...]
    is_stopped: bool
    is_shortened: bool

    @property
    def has_no_token(self) -> bool:
        """Whether the request was stopped before the first token."""
        return not any(answer.num_tokens for answer in self.answers)


@dataclass(frozen=True)
class Scored:
    """The end of a `Score`: a score for each response, in their order. The demonstrations have mean 0 and sd 1."""

    scores: tuple[float, ...]


@dataclass(frozen=True)
class Opened:
    """The end of an `Open`: the columns of the run, and whether it has a reward model.

    other_columns: columns of other runs on the same base. longest_answer: in tokens, as the context allows.
    """

    columns: tuple[str, ...]
    has_reward: bool
    other_columns: tuple[str, ...]
    longest_answer: int


@dataclass(frozen=True)
class Failed:
    """The end of a request that failed; `reason` is a text for the user."""

    reason: str


@dataclass(frozen=True)
class Replaced:
    """The end of a request that gave way to another act of the page. updates: to display last; empty: none."""

    updates: Mapping[Any, Any]


Request = Open | Ask | Score
Event = Waiting | Loading | Partial | Opened | Answered | Scored | Failed | Replaced
END = (Opened, Answered, Scored, Failed, Replaced)


def waiting_note(event: Event) -> str:
    """The status line of a page for a request that waits in the queue or loads a run; empty for other events."""
    match event:
        case Waiting(num_ahead):
            return f"In the queue: {num_ahead} before you." if num_ahead > 1 else "In the queue: you are next."
        case Loading(run):
            return f"Loading {run} ..."
    return ""
