"""What the records of one file are: turns, rankings and their labelers, lengths, and signs of trouble in the text."""

import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from lora_rlhf.data.labels import agreement, fingerprint
from lora_rlhf.data.schema import Demonstration, Prompt, Ranking, Text, place
from lora_rlhf.inspection.duplicates import MOST, Prints
from lora_rlhf.inspection.lengths import EvenSample, Lengths, Record, Tokens, count_tokens, responses_of, token_figures

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KINDS = {Demonstration: "demonstrations", Ranking: "rankings", Prompt: "prompts", Text: "texts"}
Z_95 = 1.959963984540054  # the normal distribution's 97.5 % point
MOST_NAMES = 10_000  # different labelers that are told apart
MOST_COMPARED = 10_000  # prompts with several rankings that agreement is measured on
MOST_RANKINGS = 20  # rankings of one prompt that are compared with one another

# What chat templates and prompt recipes write around messages: inside a message it would be written twice.
# Every alternative begins with one of four characters, which makes the search several times faster.
MARKUP = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|start_header_id|user|assistant|system|end)\|>"
    r"|<start_of_turn>|<end_of_turn>|<<SYS>>|</s>|\[/?INST\]|### (?:Instruction|Response|Human|Assistant):"
    r"|\n\n(?:Human|Assistant):"
)
NUMBER_AT_END = re.compile(r"(?:^|[\s=$:({*])-?\d[\d,]*(?:\.\d+)?[\s%.)}$*\]]*\Z|\\boxed\{[^\n]*\}[\s.$)]*\Z")
END = 60  # characters in which a last number is looked for


class RankingFigures:
    """Rankings of one file, summed up as they come; of each, hashes are kept to compare labelers."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most  # responses whose hashes are kept
        self.count = self.all_tied = self.pairs = self.ties = 0
        self.sizes: Counter[int] = Counter()
        self.labelers: set[str] = set()
        # of longer winners w and pairs p of each ranking: the sums of w, w * w, w * p, p * p
        self._moments = (0.0, 0.0, 0.0, 0.0)
        self._threshold = 1 << 64
        self._prompts, self._labelers, self._sizes = array("Q"), array("Q"), array("Q")
        self._responses, self._ranks = array("Q"), array("Q")

    def add(self, ranking: Ranking, key: int, responses: Sequence[int]) -> None:
        """Counts one ranking, with the hashes of its prompt and of its responses."""
        pairs, longer = _longer_wins(ranking)
        size = len(ranking.responses)
        self.count += 1
        self.sizes[size] += 1
        self.pairs += pairs
        self.ties += size * (size - 1) // 2 - pairs
        self.all_tied += not pairs
        wins, wins_squared, wins_pairs, pairs_squared = self._moments
        self._moments = (
            wins + longer,
            wins_squared + longer * longer,
            wins_pairs + longer * pairs,
            pairs_squared + pairs * pairs,
        )
        if ranking.labeler is not None and len(self.labelers) < MOST_NAMES:
            self.labelers.add(ranking.labeler)
        if key < self._threshold:
            self._keep(ranking, key, responses)

    def _keep(self, ranking: Ranking, key: int, responses: Sequence[int]) -> None:
        self._prompts.append(key)
        self._labelers.append(0 if ranking.labeler is None else fingerprint(ranking.labeler))
        self._sizes.append(len(ranking.responses))
        self._responses.extend(responses)
        self._ranks.extend(ranking.ranks if max(ranking.ranks) < 1 << 64 else _dense(ranking.ranks))
        while len(self._responses) > self.most and self._threshold > 1:
            self._threshold //= 2
            self._thin()

    def _thin(self) -> None:
        """Forgets the prompts whose hash is not below the threshold: all rankings of a prompt stay or go together."""
        kept = np.frombuffer(self._prompts, np.uint64) < np.uint64(self._threshold)
        of_responses = np.repeat(kept, np.frombuffer(self._sizes, np.uint64).astype(np.int64))
        for values, chosen in (
            (self._prompts, kept),
            (self._labelers, kept),
            (self._sizes, kept),
            (self._responses, of_responses),
            (self._ranks, of_responses),
        ):
            values[:] = array("Q", np.frombuffer(values, np.uint64)[chosen].tobytes())

    def summary(self) -> dict[str, Any]:
        """Figures for the report; shares are of 1, `longer_wins` and `agreement` None where nothing can be compared."""
        measured = agreement(self._repeated())
        return {
            "count": self.count,
            "responses": {str(size): count for size, count in sorted(self.sizes.items())},
            "pairs": self.pairs,
            "ties": self.ties,
            "all_tied": self.all_tied,
            "longer_wins": self._longer_wins_interval(),
            "labelers": len(self.labelers),
            "agreement": None if measured.rate is None else {"rate": measured.rate, "pairs": measured.num_pairs},
        }

    def _longer_wins_interval(self) -> dict[str, float] | None:
        """How often the longer response wins, equal lengths as half, with a 95 % interval.

        Rankings count as independent, not pairs: the pairs of one ranking share its responses. Wilson's interval for
        as many trials as have the ratio estimate's variance.
        """
        if not self.pairs:
            return None
        wins, wins_squared, wins_pairs, pairs_squared = self._moments
        rate = wins / self.pairs
        spread = max(0.0, wins_squared - 2 * rate * wins_pairs + rate * rate * pairs_squared)
        variance = spread * self.count / max(1, self.count - 1) / self.pairs**2
        trials = rate * (1 - rate) / variance if variance > 0 else float(self.count - self.all_tied)
        return {"rate": rate, **_wilson(rate, min(trials, float(self.pairs)))}

    def _repeated(self) -> Iterator[Ranking]:
        """Rankings of prompts that were ranked more than once, with hashes in the place of texts."""
        prompts = np.frombuffer(self._prompts, np.uint64)
        sizes = np.frombuffer(self._sizes, np.uint64).astype(np.int64)
        ends = np.cumsum(sizes)
        values, inverse, counts = np.unique(prompts, return_inverse=True, return_counts=True)
        chosen = np.flatnonzero(counts > 1)[:MOST_COMPARED]
        seen: Counter[int] = Counter()
        for row in np.flatnonzero(np.isin(inverse, chosen)):
            prompt = int(values[inverse[row]])
            seen[prompt] += 1
            if seen[prompt] > MOST_RANKINGS:
                continue
            start, end = int(ends[row] - sizes[row]), int(ends[row])
            labeler = str(self._labelers[row]) if self._labelers[row] else None
            texts = tuple(map(str, self._responses[start:end]))
            yield Ranking(Prompt.of(str(prompt)), texts, tuple(self._ranks[start:end]), labeler)


def _longer_wins(ranking: Ranking) -> tuple[int, float]:
    """(pairs that are not ties, those of them that the longer response wins, equal lengths as half)."""
    pairs, wins = 0, 0.0
    lengths = map(len, ranking.responses)
    for (rank, length), (other_rank, other_length) in combinations(zip(ranking.ranks, lengths, strict=True), 2):
        if rank != other_rank:
            pairs += 1
            wins += 0.5 if length == other_length else (rank < other_rank) == (length > other_length)
    return pairs, wins


def _label(ranking: Ranking) -> list[int]:
    """What makes two rankings of the same responses different rows."""
    return [*ranking.ranks, 0 if ranking.labeler is None else fingerprint(ranking.labeler)]


def _dense(ranks: Sequence[int]) -> list[int]:
    places = {rank: place for place, rank in enumerate(sorted(set(ranks)), start=1)}
    return [places[rank] for rank in ranks]


def _wilson(rate: float, trials: float) -> dict[str, float]:
    centre = (rate + Z_95**2 / (2 * trials)) / (1 + Z_95**2 / trials)
    margin = Z_95 / (1 + Z_95**2 / trials) * math.sqrt(rate * (1 - rate) / trials + Z_95**2 / (4 * trials**2))
    # at a rate of 0 or 1 the near end is that rate exactly, which rounding would miss
    return {"low": max(0.0, min(rate, centre - margin)), "high": min(1.0, max(rate, centre + margin))}


@dataclass(frozen=True)
class Signs:
    """What is looked for in a sample of the rows, because it takes longer."""

    markup: bool
    ends_in_number: bool
    columns: tuple[str, ...]
    tokens: Tokens | None

    @classmethod
    def of(cls, record: Record, columns: tuple[str, ...], tokenizer: "PreTrainedTokenizerBase | None") -> "Signs":
        """columns: the unused ones that are filled."""
        tokens = None if tokenizer is None else count_tokens(tokenizer, record)
        if isinstance(record, Text):
            return cls(False, False, (), tokens)
        prompt = record if isinstance(record, Prompt) else record.prompt
        responses = responses_of(record)
        texts = [*(message.content for message in prompt.messages), *responses]
        best = responses[record.ranks.index(min(record.ranks))] if isinstance(record, Ranking) else "".join(responses)
        return cls(any(map(MARKUP.search, texts)), NUMBER_AT_END.search(best[-END:]) is not None, columns, tokens)


class FileFigures:
    """Everything that is counted over one file's records, in memory that does not grow with them.

    tokenizer: None to count characters only. sampled: rows whose tokens and signs are looked at.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase | None", sampled: int, validation_fraction: float) -> None:
        self.tokenizer = tokenizer
        self.kinds: Counter[str] = Counter()
        self.prints = Prints(validation_fraction)
        self.rankings = RankingFigures()
        self.turns, self.prompt_lengths, self.response_lengths = Lengths(), Lengths(), Lengths()
        self.with_system = self.num_records = 0
        self.sample: EvenSample[tuple[Record, tuple[str, ...]]] = EvenSample(sampled)

    def add(self, record: Record) -> None:
        """Counts one record."""
        self.kinds[KINDS[type(record)]] += 1
        responses = responses_of(record)
        hashes = [fingerprint(response) for response in responses]
        if isinstance(record, Text):
            self.prints.add_text(hashes[0])
        else:
            self._add_prompted(record, hashes)
        for response in responses:
            self.response_lengths.add(len(response))
        if self.sample.wants(self.num_records):
            self._take(record)
        self.num_records += 1

    def _take(self, record: Record) -> None:
        """Puts a record into the sample, without its unused columns, which may be large: their names are enough."""
        if isinstance(record, Text):
            self.sample.add(self.num_records, (record, ()), len(record.text))
            return
        prompt = record if isinstance(record, Prompt) else record.prompt
        columns = tuple(name for name, value in prompt.meta.items() if value not in (None, "", [], {}))
        place(prompt, {}, prompt.origin)
        characters = sum(len(message.content) for message in prompt.messages) + sum(map(len, responses_of(record)))
        self.sample.add(self.num_records, (record, columns), characters)

    def _add_prompted(self, record: Prompt | Demonstration | Ranking, responses: Sequence[int]) -> None:
        prompt = record if isinstance(record, Prompt) else record.prompt
        key = self.prints.add(prompt, [*responses, *_label(record)] if isinstance(record, Ranking) else responses)
        roles = [message.role for message in prompt.messages]
        self.turns.add(roles.count("user"))
        self.with_system += "system" in roles
        self.prompt_lengths.add(sum([len(message.content) for message in prompt.messages]))
        if isinstance(record, Ranking):
            self.rankings.add(record, key, responses)

    def summary(self, max_prompt_tokens: int, max_response_tokens: int) -> dict[str, Any]:
        """The file's part of the report."""
        taken = tqdm(self.sample.items(), desc="tokens", unit=" rows", delay=1, leave=False, disable=None)
        signs = [Signs.of(record, columns, self.tokenizer) for record, columns in taken]
        tokens = None
        if self.tokenizer is not None and signs:
            counted = [sign.tokens for sign in signs if sign.tokens is not None]
            tokens = token_figures(counted, self.sample.is_whole, max_prompt_tokens, max_response_tokens)
        splits = self.prints.validation_fraction > 0 and bool(self.kinds["demonstrations"] or self.kinds["rankings"])
        return {
            "kinds": dict(self.kinds),
            "turns": self._turns(),
            "rankings": self.rankings.summary() if self.rankings.count else None,
            "characters": {"prompt": self.prompt_lengths.summary(), "response": self.response_lengths.summary()},
            "tokens": tokens,
            "duplicates": self.prints.duplicates(),
            "split": self.prints.split() if splits else None,
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
    return {
        "rows": len(signs),
        "exact": is_whole,
        "markup": sum(sign.markup for sign in signs) / count,
        "ends_in_number": sum(sign.ends_in_number for sign in signs) / count,
        "columns": {str(name): filled / count for name, filled in columns.most_common()},
    }
