"""What the records of one file are: kinds, turns, lengths, and signs of trouble in the text."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from lora_rlhf.data.formats import KNOWN_COLUMNS
from lora_rlhf.data.labels import fingerprint
from lora_rlhf.data.schema import Demonstration, Prompt, Ranking, Text, set_source
from lora_rlhf.inspection.duplicates import Prints
from lora_rlhf.inspection.lengths import EvenSample, Lengths, Record, Tokens, count_tokens, responses_of, token_figures
from lora_rlhf.inspection.rankings import RankingFigures, label_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KINDS = {Demonstration: "demonstrations", Ranking: "rankings", Prompt: "prompts", Text: "texts"}

# What chat templates and prompt recipes write around messages: inside a message it would be written twice.
# Every alternative begins with one of four characters, which makes the search several times faster.
MARKUP = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|start_header_id|user|assistant|system|end)\|>"
    r"|<extra_id_[01]>|<start_of_turn>|<end_of_turn>|<<SYS>>|</s>|\[/?INST\]"
    r"|### (?:Instruction|Response|Human|Assistant):|\n\n(?:Human|Assistant):"
)
# What a data set leaves to be filled in.
PLACEHOLDER = re.compile(r"\{\{\s*[A-Za-z_]+\s*\}\}")
NUMBER_AT_END = re.compile(r"(?:^|[\s=$:({*])(-?\d[\d,]*(?:\.\d+)?)[\s%.)}$*\]]*\Z")
BOXED_AT_END = re.compile(r"\\boxed\{[^\n]*\}[\s.$)]*\Z")
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
END = 60  # characters in which a last number is looked for


class Unused(NamedTuple):
    """Columns of a row that its format does not use: those that are filled, and known ones that are empty."""

    filled: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> "Unused":
        filled = tuple(name for name, value in meta.items() if value not in (None, "", [], {}))
        return cls(filled, tuple(name for name in meta if name in KNOWN_COLUMNS and name not in filled))


@dataclass(frozen=True)
class Signs:
    """What is looked for in a sample of the rows, because it takes longer.

    is_boxed: the best answer ends in \\boxed{...}, as mathematics sets mark results; result: else a last number.
    """

    markup: bool
    has_placeholder: bool
    is_boxed: bool
    result: float | None
    columns: tuple[str, ...]
    empty: tuple[str, ...]
    tokens: Tokens | None

    @classmethod
    def of(cls, record: Record, unused: "Unused", tokenizer: "PreTrainedTokenizerBase | None") -> "Signs":
        tokens = None if tokenizer is None else count_tokens(tokenizer, record)
        if isinstance(record, Text):
            return cls(False, False, False, None, (), (), tokens)
        prompt = record if isinstance(record, Prompt) else record.prompt
        responses = responses_of(record)
        texts = [*(message.content for message in prompt.messages), *responses]
        best = record.ranks.index(min(record.ranks)) if isinstance(record, Ranking) else 0
        is_boxed = bool(responses) and BOXED_AT_END.search(responses[best][-END:]) is not None
        result = _result(prompt, responses, best) if responses and not is_boxed else None
        has_placeholder = any(PLACEHOLDER.search(text) for text in texts if "{{" in text)
        return cls(any(map(MARKUP.search, texts)), has_placeholder, is_boxed, result, *unused, tokens)


def _result(prompt: Prompt, responses: Sequence[str], best: int) -> float | None:
    """The number that the best response ends in, unless the prompt names it too, or it only numbers the responses."""
    ends = [_last_number(response) for response in responses]
    numbers = [_number(text) for text in NUMBER.findall(prompt.messages[-1].content)]
    numberings = {tuple(float(first + i) for i in range(len(ends))) for first in (0, 1)}
    if ends[best] in numbers or (len(ends) > 1 and tuple(ends) in numberings):
        return None
    return ends[best]


def _last_number(text: str) -> float | None:
    match = NUMBER_AT_END.search(text[-END:])
    return _number(match[1]) if match else None


def _number(text: str) -> float:
    return float(text.replace(",", ""))


class FileFigures:
    """Everything that is counted over one file's records, in memory that does not grow with them.

    sampled: rows whose tokens and signs are looked at. fractions: by kind, the share of prompts that the kind's stage
    holds out; other kinds are not split. number: of the next record, among all of the file.
    """

    def __init__(self, sampled: int, fractions: Mapping[str, float]) -> None:
        self.fractions = fractions
        self.kinds: Counter[str] = Counter()
        self.prints = Prints()
        self.rankings = RankingFigures()
        self.turns, self.prompt_lengths, self.response_lengths = Lengths(), Lengths(), Lengths()
        self.with_system = self.number = 0
        self.sample: EvenSample[tuple[Record, Unused]] = EvenSample(sampled)

    def add(self, record: Record) -> None:
        """Counts one record."""
        kind = KINDS[type(record)]
        self.kinds[kind] += 1
        responses = responses_of(record)
        hashes = [fingerprint(response) for response in responses]
        if isinstance(record, Text):
            self.prints.add_text(hashes[0])
        else:
            self._add_prompted(record, hashes, self.fractions.get(kind))
        for response in responses:
            self.response_lengths.add(len(response))
        if self.sample.wants(self.number):
            self._take(record)
        self.number += 1

    def share(self, parts: int) -> "FileFigures":
        """Empty ones for one of several parts of the file: each samples its share of the rows."""
        return FileFigures(math.ceil(self.sample.most / parts), self.fractions)

    def merge(self, other: "FileFigures") -> None:
        """Adds what another part of the file holds."""
        self.kinds.update(other.kinds)
        self.prints.merge(other.prints)
        self.rankings.merge(other.rankings)
        for lengths, other_lengths in zip(self._distributions(), other._distributions(), strict=True):
            lengths.merge(other_lengths)
        self.with_system += other.with_system
        self.sample.most += other.sample.most
        self.sample.merge(other.sample)

    def _distributions(self) -> list[Lengths]:
        return [self.turns, self.prompt_lengths, self.response_lengths]

    def _take(self, record: Record) -> None:
        """Puts a record into the sample, without its unused columns, which may be large: their names are enough."""
        if isinstance(record, Text):
            self.sample.add(self.number, (record, Unused()), len(record.text))
            return
        prompt = record if isinstance(record, Prompt) else record.prompt
        unused = Unused.of(prompt.meta)
        set_source(prompt, {}, prompt.origin)
        characters = sum(len(message.content) for message in prompt.messages) + sum(map(len, responses_of(record)))
        self.sample.add(self.number, (record, unused), characters)

    def _add_prompted(
        self, record: Prompt | Demonstration | Ranking, responses: Sequence[int], fraction: float | None
    ) -> None:
        prompt, hashes = record if isinstance(record, Prompt) else record.prompt, responses
        if isinstance(record, Ranking):
            hashes = [*responses, *label_of(record)]
            if len(set(record.ranks)) == 1:
                fraction = None  # the reward stage leaves it out
        key = self.prints.add(prompt, hashes, fraction)
        roles = [message.role for message in prompt.messages]
        self.turns.add(roles.count("user"))
        self.with_system += "system" in roles
        self.prompt_lengths.add(sum([len(message.content) for message in prompt.messages]))
        if isinstance(record, Ranking):
            self.rankings.add(record, key, responses)

    def summary(
        self, tokenizer: "PreTrainedTokenizerBase | None", max_prompt_tokens: int, max_response_tokens: int
    ) -> dict[str, Any]:
        """The file's part of the report; without a tokenizer, lengths are in characters only."""
        sample = tqdm(self.sample.items(), desc="tokens", unit=" rows", delay=1, leave=False, disable=None)
        signs = [Signs.of(record, unused, tokenizer) for record, unused in sample]
        tokens = None
        if tokenizer is not None and signs:
            counted = [sign.tokens for sign in signs if sign.tokens is not None]
            tokens = token_figures(counted, self.sample.is_whole, max_prompt_tokens, max_response_tokens)
        return {
            "kinds": dict(self.kinds),
            "turns": self._turns(),
            "rankings": self.rankings.summary() if self.rankings.count else None,
            "characters": {"prompt": self.prompt_lengths.summary(), "response": self.response_lengths.summary()},
            "tokens": tokens,
            "duplicates": self.prints.duplicates(),
            "signs": _shares(signs, self.sample.is_whole),
        }

    def _turns(self) -> dict[str, float] | None:
        """User messages of a prompt, and the share of prompts with a system message."""
        if not self.turns.count:
            return None
        mean = self.turns.total / self.turns.count
        return {"mean": mean, "max": self.turns.longest, "with_system": self.with_system / self.turns.count}


def _shares(signs: Iterable[Signs], is_whole: bool) -> dict[str, Any]:
    """Shares of the sampled rows; `columns` are those that no reader used, most filled first."""
    signs = list(signs)
    count = len(signs) or 1
    columns = Counter(name for sign in signs for name in sign.columns)
    empty = Counter(name for sign in signs for name in sign.empty)
    results = [sign.result for sign in signs if sign.result is not None]
    # numbers that only rise from row to row number the rows
    checkable = len(results) if results != sorted(results) or len(set(results)) == 1 else 0
    return {
        "rows": len(signs),
        "exact": is_whole,
        "markup": sum(sign.markup for sign in signs) / count,
        "placeholders": sum(sign.has_placeholder for sign in signs) / count,
        "ends_in_number": (checkable + sum(sign.is_boxed for sign in signs)) / count,
        "columns": {str(name): filled / count for name, filled in columns.most_common()},
        "empty": {name: missing / count for name, missing in empty.most_common()},
    }
