"""The records that all formats are read into: prompts, demonstrations, rankings and texts, checked when made."""

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from lora_rlhf.data.cells import is_messages_as_text
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.system.errors import UserError

ROLES = ("system", "user", "assistant", "tool")


def require_text(value: Any, description: str) -> str:
    """Returns `value` if it is a string that UTF-8 can encode, else raises BadRow.

    A lone surrogate cannot be encoded; it breaks tokenizers and files.
    """
    if not isinstance(value, str):
        raise BadRow(f"{description} is not text", f"got {type(value).__name__}")
    if value.isascii():
        return value
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(f"{description} holds half a character", f"lone surrogate at position {error.start}") from None
    return value


class ToolCall(NamedTuple):
    """A call of a tool. `arguments` is the text of a JSON object."""

    name: str
    arguments: str
    id: str = ""

    @property
    def value(self) -> dict[str, Any]:
        """The call in OpenAI's form, with its arguments as text."""
        function = {"name": self.name, "arguments": self.arguments}
        return {**({"id": self.id} if self.id else {}), "type": "function", "function": function}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `role` is system, user, assistant or tool.

    is_trained: False for an answer that its data set marks as not to be learned; it is only context. tool_calls: of an
    assistant. name, call_id: of a tool's result, the tool and the call that it answers, if they are known.
    """

    role: str
    content: str
    is_trained: bool = field(default=True, compare=False)
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    call_id: str = ""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise BadRow("a message's role is not one of " + ", ".join(ROLES), f"got {self.role!r}")
        require_text(self.content, "a message's content")
        if self.tool_calls != ():
            object.__setattr__(self, "tool_calls", tuple([ToolCall(*call) for call in self.tool_calls]))

    @property
    def text(self) -> str:
        """The content, and the calls in the form of Hermes and Qwen: for people, and for what knows no tools."""
        if not self.tool_calls:
            return self.content
        calls = [f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}' for call in self.tool_calls]
        parts = [*([self.content] if self.content else []), *(f"<tool_call>\n{call}\n</tool_call>" for call in calls)]
        return "\n".join(parts)

    @property
    def values(self) -> list[Any]:
        """What `Message` is made of, as JSON values."""
        values = [self.role, self.content, self.is_trained]
        return [*values, self.tool_calls, self.name, self.call_id] if self.tool_calls or self.role == "tool" else values


Turns: TypeAlias = tuple[Message, ...]


@dataclass(frozen=True)
class Prompt:
    """A conversation up to the assistant's answer: a user's message or a tool's result comes last.

    `meta`: the row's columns that no reader used. `origin`: where it was read ("file:line"), for messages. `tools`: the
    functions that may be called, as the JSON text of OpenAI's list; "" for none.
    """

    messages: tuple[Message, ...]
    meta: dict[str, Any] = field(default_factory=dict, hash=False)
    origin: str = field(default="", compare=False)
    tools: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", tuple(self.messages))
        if not self.messages:
            raise BadRow("the prompt is empty")
        last = self.messages[-1]
        if last.role not in ("user", "tool"):
            raise BadRow("the prompt does not end with a user's message", f"ends with {last.role!r}")
        if last.role == "user" and not last.content.strip():
            raise BadRow("the prompt is empty")

    @classmethod
    def of(cls, text: str) -> "Prompt":
        """The prompt with one user's message."""
        return cls((Message("user", text),))

    @property
    def key(self) -> str:
        """The text that is equal for equal prompts: NFKC, casefold, white space collapsed."""
        return normalize_messages(self.messages) + (f" {self.tools}" if self.tools else "")

    @property
    def opening(self) -> str:
        """The key of the conversation up to the first user's message; it decides the split.

        Conversations that continue one another (HH-RLHF holds many) are then in the same split.
        """
        first_user = next((index for index, message in enumerate(self.messages) if message.role == "user"), 0)
        return normalize_messages(self.messages[: first_user + 1])


def normalize_messages(messages: Sequence[Message]) -> str:
    """Messages as one string in which spelling variants are equal: NFKC, casefold, white space collapsed."""
    turns = " ".join([f"{message.role}: {message.text}" for message in messages])
    return " ".join(unicodedata.normalize("NFKC", turns).casefold().split())


def set_meta_and_origin(prompt: Prompt, meta: dict[str, Any], origin: str) -> None:
    """Sets `meta` and `origin` of a frozen prompt. Only for a prompt that was just made and is used nowhere else.

    A copy would take half the time of reading a row.
    """
    object.__setattr__(prompt, "meta", meta)
    object.__setattr__(prompt, "origin", origin)


@dataclass(frozen=True)
class Demonstration:
    """A prompt with the answer to imitate. An answer that calls tools may have no text."""

    prompt: Prompt
    response: str
    tool_calls: tuple[ToolCall, ...] = ()

    def __post_init__(self) -> None:
        if not require_text(self.response, "the response").strip() and not self.tool_calls:
            raise BadRow("the response is empty")


@dataclass(frozen=True)
class Ranking:
    """K >= 2 responses of one prompt; `ranks[i]` belongs to `responses[i]`, 1 = best, ties share a rank.

    A chosen/rejected pair is K = 2 with ranks (1, 2). No response is empty, and equal texts (without white space at
    their ends) have equal ranks. ended: whether each response ended by itself; empty if nobody knows, and then all did.
    """

    prompt: Prompt
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    labeler: str | None = None
    ended: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        for name, values in (("responses", self.responses), ("ranks", self.ranks)):
            if not isinstance(values, list | tuple):
                raise BadRow(f"{name} is not a list", f"got {type(values).__name__}")
        if len(self.responses) < 2:
            raise BadRow("a ranking needs at least 2 responses", f"got {len(self.responses)}")
        if len(self.ranks) != len(self.responses):
            raise BadRow("ranks and responses differ in number", f"{len(self.ranks)} and {len(self.responses)}")
        responses = tuple([require_text(response, "a response") for response in self.responses])
        object.__setattr__(self, "responses", responses)
        object.__setattr__(self, "ranks", tuple([_to_rank(rank) for rank in self.ranks]))
        if self.labeler is not None:
            require_text(self.labeler, "the labeler")
        object.__setattr__(self, "ended", require_ended(self.ended or None, len(self.responses)))
        self._require_consistent_ranks()

    def _require_consistent_ranks(self) -> None:
        """BadRow for an empty response, and for equal responses with different ranks."""
        texts = [response.strip() for response in self.responses]
        if "" in texts:
            raise BadRow("a response of the ranking is empty", f"response {texts.index('') + 1} of {len(texts)}")
        if len(set(texts)) < len(texts):
            first_ranks: dict[str, int] = {}
            for text, rank in zip(texts, self.ranks, strict=True):
                if first_ranks.setdefault(text, rank) != rank:
                    raise BadRow(
                        "the same response has different ranks", f"{first_ranks[text]} and {rank}: {text[:40]!r}"
                    )


@dataclass(frozen=True)
class Vote:
    """One answer to a prompt that somebody called good or bad, with no other answer to compare it with."""

    prompt: Prompt
    response: str
    is_good: bool


@dataclass(frozen=True)
class StepLabels:
    """An answer's steps in order; `labels[i]` says whether `steps[i]` is good, None where nobody judged it.

    has_ended: whether the answer ends with the last step; an answer may have been judged up to its first error.
    """

    prompt: Prompt
    steps: tuple[str, ...]
    labels: tuple[bool | None, ...]
    has_ended: bool = True

    def __post_init__(self) -> None:
        for number, step in enumerate(self.steps, start=1):
            if not require_text(step, "a step").strip():
                raise BadRow("a step is empty", f"step {number} of {len(self.steps)}")
        if all(label is None for label in self.labels):
            raise BadRow("no step has a label")

    @property
    def response(self) -> str:
        """The answer, a step a line."""
        return "\n".join(self.steps)


@dataclass(frozen=True)
class Text:
    """Plain text without a prompt: the pretraining mix (PPO-ptx)."""

    text: str

    def __post_init__(self) -> None:
        if not require_text(self.text, "the text").strip():
            raise BadRow("the text is empty")


def require_ended(value: Any, count: int) -> tuple[bool, ...]:
    """The column "ended": a bool for each of `count` responses, or () without it. BadRow for anything else."""
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or len(value) != count or not all(type(one) is bool for one in value):
        raise BadRow("ended is not true or false for each response", f"{count} responses, got {value!r:.60}")
    return tuple(value)


def _to_rank(rank: Any) -> int:
    """The rank as a whole number. BadRow for any other value and below 1."""
    if isinstance(rank, float) and rank.is_integer():
        rank = int(rank)
    if type(rank) is not int or rank < 1:  # a bool is no rank
        # a number that JSON does not have (NaN) was read as None
        value = "null or NaN" if rank is None else repr(rank)[:40]
        raise BadRow("a rank is not a whole number from 1 upwards", f"got {value}")
    return rank


def choose_split(opening: str, validation_fraction: float) -> str:
    """The split of a prompt's `opening`, "train" or "validation": by its hash, so equal in every file and order.

    A prompt in validation at one fraction is in validation at every larger fraction.
    """
    if not 0.0 <= validation_fraction <= 1.0:
        raise UserError(f"validation_fraction must be between 0 and 1, got {validation_fraction}")
    return "validation" if split_position(opening) < validation_fraction else "train"


def split_position(opening: str) -> float:
    """The hash of a prompt's `opening` as a number from 0 to 1; larger fractions hold the prompt out."""
    digest = hashlib.sha256(opening.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def fraction_between(lower_position: float, upper_position: float) -> float | None:
    """The smallest fraction, in hundredths, between two prompts' `split_position`: it holds out only the lower one.

    None if there is no such fraction: there is only one prompt, or the two are too close together.
    """
    fraction = next((hundredths / 100 for hundredths in range(1, 100) if hundredths / 100 > lower_position), None)
    return fraction if fraction is not None and fraction <= upper_position else None


def make_row(record: Prompt | Demonstration | Ranking | StepLabels | Text) -> dict[str, Any]:
    """The JSON row that the readers turn back into the same record, with the columns of `meta`."""
    if isinstance(record, Text):
        return {"text": record.text}
    prompt = record if isinstance(record, Prompt) else record.prompt
    turns = [_message_value(message) for message in prompt.messages]
    is_plain = len(turns) == 1 and not _is_read_as_messages(turns[0]["content"])
    row: dict[str, Any] = {**prompt.meta, "prompt": turns[0]["content"] if is_plain else turns}
    if prompt.tools:
        row["tools"] = json.loads(prompt.tools)
    if isinstance(record, Demonstration):
        row["completion"] = _response_value(record.response)
        if record.tool_calls:
            row["completion"] = [_message_value(Message("assistant", record.response, tool_calls=record.tool_calls))]
    elif isinstance(record, Ranking):
        row |= {"responses": [_response_value(response) for response in record.responses], "ranks": list(record.ranks)}
        if record.labeler is not None:
            row["labeler"] = record.labeler
        if record.ended:
            row["ended"] = list(record.ended)
    elif isinstance(record, StepLabels):
        row |= {"completions": list(record.steps), "labels": list(record.labels)}
        if not record.has_ended:
            row["ended"] = False
    return row


def _message_value(message: Message) -> dict[str, Any]:
    value: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        value["tool_calls"] = [call.value for call in message.tool_calls]
    value |= {key: text for key, text in (("name", message.name), ("tool_call_id", message.call_id)) if text}
    return value if message.is_trained else value | {"weight": 0}


def _response_value(response: str) -> Any:
    """The response as a row's value: a message if a reader would take the text for messages."""
    return [{"role": "assistant", "content": response}] if _is_read_as_messages(response) else response


def _is_read_as_messages(text: str) -> bool:
    """Whether a reader would take the text for a dialogue or for messages written as text."""
    return text.startswith("[{") or is_messages_as_text(text) or text.lstrip().startswith("Human:")
