"""Figures on the records of one file: kinds, turns, lengths, and signs of trouble in the text."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from lora_rlhf.data.formats import KNOWN_COLUMNS
from lora_rlhf.data.labels import fingerprint
from lora_rlhf.data.schema import Demonstration, Prompt, Ranking, StepLabels, Text, set_meta_and_origin
from lora_rlhf.inspection.duplicates import Prints
from lora_rlhf.inspection.lengths import (
    EvenSample,
    Lengths,
    Record,
    TokenCounts,
    count_tokens,
    responses_of,
    token_figures,
)
from lora_rlhf.inspection.rankings import RankingFigures, label_values

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KIND_BY_RECORD = {
    **{Demonstration: "demonstrations", Ranking: "rankings", StepLabels: "steps", Prompt: "prompts"},
    Text: "texts",
}

# What chat templates and prompt recipes write around messages: inside a message it would be written twice.
# Every alternative begins with one of four characters, which makes the search several times faster.
MARKUP = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|start_header_id|user|assistant|system|end)\|>"
    r"|<extra_id_[01]>|<start_of_turn>|<end_of_turn>|<<SYS>>|</s>|\[/?INST\]"
    r"|### (?:Instruction|Response|Human|Assistant):|\n\n(?:Human|Assistant):"
)
# A name in double braces, which a template of the dataset should have replaced.
PLACEHOLDER = re.compile(r"\{\{\s*[A-Za-z_]+\s*\}\}")
NUMBER_AT_END = re.compile(r"(?:^|[\s=$:({*])(-?\d[\d,]*(?:\.\d+)?)[\s%.)}$*\]]*\Z")
BOXED_AT_END = re.compile(r"\\boxed\{[^\n]*\}[\s.$)]*\Z")
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
END_CHARACTERS = 60  # characters at the end of an answer in which a last number is searched


class UnusedColumns(NamedTuple):
    """Columns of a row that its format does not use: those that are filled, and known ones that are empty."""

    filled: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> "UnusedColumns":
        filled = tuple(name for name, value in meta.items() if value not in (None, "", [], {}))
        return cls(filled, tuple(name for name in meta if name in KNOWN_COLUMNS and name not in filled))


@dataclass(frozen=True)
class Signs:
    r"""What is measured on a sample of the rows only, because it takes longer.

    markup: a text holds the markup of a template. has_placeholder: a text holds {{name}}. is_boxed: the best answer
    ends in \boxed{...}, as mathematics datasets mark results; result: the number at its end, if it is not boxed.
    columns, empty: see `UnusedColumns`.
    """

    markup: bool
    has_placeholder: bool
    is_boxed: bool
    result: float | None
    columns: tuple[str, ...]
    empty: tuple[str, ...]
    tokens: TokenCounts | None

    @classmethod
    def from_record(
        cls, record: Record, unused: "UnusedColumns", tokenizer: "PreTrainedTokenizerBase | None"
    ) -> "Signs":
        """The signs of one record, and its lengths in tokens if there is a tokenizer."""
        tokens = None if tokenizer is None else count_tokens(tokenizer, record)
        if isinstance(record, Text):
            return cls(False, False, False, None, (), (), tokens)
        prompt = record if isinstance(record, Prompt) else record.prompt
        responses = responses_of(record)
        texts = [*(message.content for message in prompt.messages), *responses]
        best_response = record.ranks.index(min(record.ranks)) if isinstance(record, Ranking) else 0
        is_boxed = bool(responses) and BOXED_AT_END.search(responses[best_response][-END_CHARACTERS:]) is not None
        result = _final_number(prompt, responses, best_response) if responses and not is_boxed else None
        has_placeholder = any(PLACEHOLDER.search(text) for text in texts if "{{" in text)
        return cls(any(map(MARKUP.search, texts)), has_placeholder, is_boxed, result, *unused, tokens)


def _final_number(prompt: Prompt, responses: Sequence[str], best_response: int) -> float | None:
    """The number at the end of the best response; None if the prompt names it, or if it only numbers the responses."""
    last_numbers = [_number_at_end(response) for response in responses]
    prompt_numbers = [_parse_number(text) for text in NUMBER.findall(prompt.messages[-1].content)]
    numberings = {tuple(float(first + i) for i in range(len(last_numbers))) for first in (0, 1)}
    if last_numbers[best_response] in prompt_numbers or (len(last_numbers) > 1 and tuple(last_numbers) in numberings):
        return None
    return last_numbers[best_response]


def _number_at_end(text: str) -> float | None:
    match = NUMBER_AT_END.search(text[-END_CHARACTERS:])
    return _parse_number(match[1]) if match else None


def _parse_number(text: str) -> float:
    return float(text.replace(",", ""))


class FileFigures:
    """Counts over one file's records, in memory that does not grow with them.

    num_sampled: rows of which tokens and signs are measured. fractions: {kind: share of prompts that the kind's stage
    holds out}; other kinds are not split. number: the next record's, counted over the whole file.
    """

    def __init__(self, num_sampled: int, fractions: Mapping[str, float]) -> None:
        self.fractions = fractions
        self.kinds: Counter[str] = Counter()
        self.prints = Prints()
        self.rankings = RankingFigures()
        self.turns, self.prompt_lengths, self.response_lengths = Lengths(), Lengths(), Lengths()
        self.with_system = self.number = 0
        self.steps: Counter[str] = Counter()  # of answers whose steps are labelled: good, bad, unlabelled
        self.sample: EvenSample[tuple[Record, UnusedColumns]] = EvenSample(num_sampled)

    def add(self, record: Record) -> None:
        """Counts one record."""
        kind = KIND_BY_RECORD[type(record)]
        self.kinds[kind] += 1
        responses = responses_of(record)
        hashes = [fingerprint(response) for response in responses]
        if isinstance(record, Text):
            self.prints.add_text(hashes[0])
        else:
            self._add_with_prompt(record, hashes, self.fractions.get(kind))
        for response in responses:
            self.response_lengths.add(len(response))
        if self.sample.is_sampled(self.number):
            self._add_to_sample(record)
        self.number += 1

    def empty_part(self, num_parts: int) -> "FileFigures":
        """Figures without records, for one of several parts of the file; its sample has its share of the rows."""
        return FileFigures(math.ceil(self.sample.most / num_parts), self.fractions)

    def merge(self, other_figures: "FileFigures") -> None:
        """Adds the figures of another part of the file."""
        self.kinds.update(other_figures.kinds)
        self.prints.merge(other_figures.prints)
        self.rankings.merge(other_figures.rankings)
        for lengths, other_lengths in zip(self._all_lengths(), other_figures._all_lengths(), strict=True):
            lengths.merge(other_lengths)
        self.with_system += other_figures.with_system
        self.steps.update(other_figures.steps)
        self.sample.most += other_figures.sample.most
        self.sample.merge(other_figures.sample)

    def _all_lengths(self) -> list[Lengths]:
        return [self.turns, self.prompt_lengths, self.response_lengths]

    def _add_to_sample(self, record: Record) -> None:
        """Adds a record to the sample without its unused columns: they may be large, and their names are enough."""
        if isinstance(record, Text):
            self.sample.add(self.number, (record, UnusedColumns()), len(record.text))
            return
        prompt = record if isinstance(record, Prompt) else record.prompt
        unused_columns = UnusedColumns.from_meta(prompt.meta)
        set_meta_and_origin(prompt, {}, prompt.origin)
        num_characters = sum(len(message.content) for message in prompt.messages) + sum(map(len, responses_of(record)))
        self.sample.add(self.number, (record, unused_columns), num_characters)

    def _add_with_prompt(
        self,
        record: Prompt | Demonstration | Ranking | StepLabels,
        response_hashes: Sequence[int],
        fraction: float | None,
    ) -> None:
        """Counts a record that has a prompt; `response_hashes` are in the order of its responses."""
        prompt, hashes = record if isinstance(record, Prompt) else record.prompt, response_hashes
        if isinstance(record, Ranking):
            hashes = [*response_hashes, *label_values(record)]
            if len(set(record.ranks)) == 1:
                fraction = None  # the reward stage leaves it out
        key = self.prints.add(prompt, hashes, fraction)
        roles = [message.role for message in prompt.messages]
        self.turns.add(roles.count("user"))
        self.with_system += "system" in roles
        self.prompt_lengths.add(sum([len(message.content) for message in prompt.messages]))
        if isinstance(record, Ranking):
            self.rankings.add(record, key, response_hashes)
        elif isinstance(record, StepLabels):
            self.steps.update({True: "good", False: "bad", None: "unlabelled"}[label] for label in record.labels)

    def summary(
        self, tokenizer: "PreTrainedTokenizerBase | None", max_prompt_tokens: int, max_response_tokens: int
    ) -> dict[str, Any]:
        """The file's part of the report; without a tokenizer, lengths are in characters only."""
        sample = tqdm(self.sample.items(), desc="tokens", unit=" rows", delay=1, leave=False, disable=None)
        signs = [Signs.from_record(record, unused, tokenizer) for record, unused in sample]
        tokens = None
        if tokenizer is not None and signs:
            token_counts = [sign.tokens for sign in signs if sign.tokens is not None]
            tokens = token_figures(token_counts, self.sample.is_whole, max_prompt_tokens, max_response_tokens)
        return {
            "kinds": dict(self.kinds),
            "turns": self._turn_figures(),
            "rankings": self.rankings.summary() if self.rankings.count else None,
            "steps": dict(self.steps) or None,
            "characters": {"prompt": self.prompt_lengths.summary(), "response": self.response_lengths.summary()},
            "tokens": tokens,
            "duplicates": self.prints.duplicate_counts(),
            "signs": _sign_shares(signs, self.sample.is_whole),
        }

    def _turn_figures(self) -> dict[str, float] | None:
        """User messages of a prompt, and the share of prompts with a system message; None without prompts."""
        if not self.turns.count:
            return None
        mean = self.turns.total / self.turns.count
        return {"mean": mean, "max": self.turns.longest, "with_system": self.with_system / self.turns.count}


def _sign_shares(signs: Iterable[Signs], is_whole: bool) -> dict[str, Any]:
    """Shares of the sampled rows with each sign; `columns` are those that no reader used, the most filled first."""
    signs = list(signs)
    count = len(signs) or 1
    filled_columns = Counter(name for sign in signs for name in sign.columns)
    empty_columns = Counter(name for sign in signs for name in sign.empty)
    results = [sign.result for sign in signs if sign.result is not None]
    # results that rise from row to row are no answers: they number the rows
    num_checkable = len(results) if results != sorted(results) or len(set(results)) == 1 else 0
    return {
        "rows": len(signs),
        "exact": is_whole,
        "markup": sum(sign.markup for sign in signs) / count,
        "placeholders": sum(sign.has_placeholder for sign in signs) / count,
        "ends_in_number": (num_checkable + sum(sign.is_boxed for sign in signs)) / count,
        "columns": {str(name): num_filled / count for name, num_filled in filled_columns.most_common()},
        "empty": {name: num_empty / count for name, num_empty in empty_columns.most_common()},
    }
