"""What the app asks of the model, and what comes back while it works."""

from dataclasses import dataclass

from lora_rlhf.data.schema import Message


@dataclass(frozen=True)
class Settings:
    """How answers are drawn. temperature 0 is greedy; the same seed draws the same answers."""

    temperature: float
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Column:
    """One stage ("policy"; of another run on the same base "NAME:policy") and its own conversation.

    The conversation ends with the user's message. `seed` is added to that of the settings: equal stages with equal
    seeds answer alike.
    """

    stage: str
    messages: tuple[Message, ...]
    seed: int = 0


@dataclass(frozen=True)
class Ask:
    """One answer of every column, all drawn at the same time."""

    run: str
    columns: tuple[Column, ...]
    settings: Settings


@dataclass(frozen=True)
class Score:
    """The reward model's score of each response to one conversation."""

    run: str
    messages: tuple[Message, ...]
    responses: tuple[str, ...]


@dataclass(frozen=True)
class Open:
    """Have a run ready, so that its first answer does not wait for it."""

    run: str


@dataclass(frozen=True)
class Waiting:
    """Still in the queue; `ahead` requests come first."""

    ahead: int


@dataclass(frozen=True)
class Loading:
    """The run's adapters, or another base, are being loaded."""

    what: str


@dataclass(frozen=True)
class Partial:
    """The columns' texts so far, and how many tokens each has."""

    texts: tuple[str, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Token:
    """A piece of an answer, and the log-probability that the stage gave it less the reference's, in nats."""

    text: str
    gap: float


@dataclass(frozen=True)
class Answer:
    """One column's answer with what is known of it. `score` and `kl` are None where the run has no such stage.

    kl: sum over the answer of its log-probability less the reference's (k1), in nats.
    """

    text: str
    finished: bool
    num_tokens: int
    tokens_per_s: float
    score: float | None
    kl: float | None
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Answered:
    """The end of an `Ask`: every column's answer.

    stopped: the user ended it early. shortened: a conversation did not fit, and lost its oldest part.
    """

    answers: tuple[Answer, ...]
    stopped: bool
    shortened: bool

    @property
    def is_silent(self) -> bool:
        """Whether it was stopped before anybody said a word."""
        return not any(answer.num_tokens for answer in self.answers)


@dataclass(frozen=True)
class Scored:
    """The end of a `Score`: one score a response, in the order given; the demonstrations' mean is 0, their sd 1."""

    scores: tuple[float, ...]


@dataclass(frozen=True)
class Opened:
    """The end of an `Open`: the columns that the run has, and whether it has a reward model.

    others: columns of other runs on the same base. longest_answer: in tokens, as far as the context allows.
    """

    columns: tuple[str, ...]
    has_reward: bool
    others: tuple[str, ...]
    longest_answer: int


@dataclass(frozen=True)
class Failed:
    """The end of a request that could not be met; `reason` is for the user."""

    reason: str


Request = Open | Ask | Score
Event = Waiting | Loading | Partial | Opened | Answered | Scored | Failed
END = (Opened, Answered, Scored, Failed)


def waiting_note(event: Event) -> str:
    """What a page says while nothing has come yet; empty once something has."""
    match event:
        case Waiting(ahead):
            return f"In the queue: {ahead} before you." if ahead > 1 else "In the queue: you are next."
        case Loading(what):
            return f"Loading {what} ..."
    return ""
