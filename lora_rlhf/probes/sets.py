"""Sets of probes and of multiple-choice questions from JSONL files, and the world that knows the quality of answers."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lora_rlhf.data.containers import file_rows
from lora_rlhf.data.messages import to_prompt
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Prompt, make_row, require_text
from lora_rlhf.probes.checks import PAIRED, check_fault
from lora_rlhf.system.errors import UserError

BINS = (
    "instruction_miss",
    "reward_polish",
    "refusal_overreach",
    "hallucinated_certainty",
    "length_inflation",
    "inconsistency",
    "sycophancy",
)
ENGLISH = Path(__file__).parent / "english.jsonl"  # the general set, part of this package
HEADER = {"name", "version"}  # the columns of a first row that names the set


@dataclass(frozen=True)
class Probe:
    """A prompt that shows one failure, and the check that an answer must pass.

    `check` is {"kind": a name of `checks.KINDS`, and that kind's fields}. Two probes with the same `pair` are one case:
    it fails if one of their checks fails. Raises BadRow for an unknown bin or check.
    """

    prompt: Prompt
    bin: str
    check: Mapping[str, Any]
    pair: str | None = None

    def __post_init__(self) -> None:
        if self.bin not in BINS:
            raise BadRow("a probe's bin is not one of " + ", ".join(BINS), f"got {self.bin!r}")
        if reason := check_fault(self.check):
            raise BadRow("a probe's check cannot be made", reason)
        if self.pair is not None:
            require_text(self.pair, "a probe's pair")
        elif self.check["kind"] in PAIRED:
            raise BadRow(f"a check {self.check['kind']!r} compares two probes and needs a pair")

    @property
    def row(self) -> dict[str, Any]:
        """The JSON row that is read back as this probe."""
        pair = {} if self.pair is None else {"pair": self.pair}
        return {"prompt": make_row(self.prompt)["prompt"], "bin": self.bin, "check": dict(self.check), **pair}


@dataclass(frozen=True)
class Case:
    """A case of a bin, which counts once: the index of a probe in its set, or the indices of a pair of probes."""

    bin: str
    indices: tuple[int, ...]


@dataclass(frozen=True)
class ProbeSet:
    """A frozen set of probes. Raises BadRow for a pair that is not two probes of one bin."""

    name: str
    version: str
    probes: tuple[Probe, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "probes", tuple(self.probes))
        for case in self.cases:
            members = [self.probes[index] for index in case.indices]
            pair = members[0].pair
            if pair is not None and len(members) != 2:
                raise BadRow(f"a pair is two probes, {pair!r} has {len(members)}")
            if any(member.bin != case.bin for member in members):
                raise BadRow(f"the probes of pair {pair!r} are in different bins")

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """The cases in the order of their first probe."""
        members: dict[int | str, list[int]] = {}  # by pair, or by index without a pair
        for index, probe in enumerate(self.probes):
            members.setdefault(index if probe.pair is None else probe.pair, []).append(index)
        return tuple(Case(self.probes[indices[0]].bin, tuple(indices)) for indices in members.values())

    @cached_property
    def content_hash(self) -> str:
        """sha256 of the probes in their order; the file's name and its JSON spelling do not matter."""
        return _hash_rows({**probe.row, "prompt": _message_pairs(probe.prompt)} for probe in self.probes)


@dataclass(frozen=True)
class Choice:
    """A multiple-choice question: `options` are answers by the assistant, `answer` is the index of the right one."""

    prompt: Prompt
    options: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        if not isinstance(self.options, list | tuple):
            raise BadRow("options is not a list", f"got {type(self.options).__name__}")
        object.__setattr__(self, "options", tuple(require_text(option, "an option") for option in self.options))
        if len(self.options) < 2 or "" in (option.strip() for option in self.options):
            raise BadRow("a choice needs at least 2 options, none of them empty")
        if len(set(self.options)) < len(self.options):
            raise BadRow("an option stands twice")
        if type(self.answer) is not int or not 0 <= self.answer < len(self.options):
            raise BadRow(f"answer is not the index of an option (0 to {len(self.options) - 1})", f"got {self.answer!r}")

    @property
    def row(self) -> dict[str, Any]:
        """The JSON row that is read back as this question."""
        return {"prompt": make_row(self.prompt)["prompt"], "options": list(self.options), "answer": self.answer}


@dataclass(frozen=True)
class ChoiceSet:
    """A frozen set of multiple-choice questions."""

    name: str
    version: str
    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))

    @cached_property
    def content_hash(self) -> str:
        """sha256 of the questions in their order."""
        return _hash_rows({**choice.row, "prompt": _message_pairs(choice.prompt)} for choice in self.choices)


@dataclass(frozen=True)
class RefusalCase:
    """A prompt of a domain, and whether it should be declined. `declining`: more sentences that decline."""

    prompt: Prompt
    domain: str
    refuse: bool
    declining: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not require_text(self.domain, "a domain").strip():
            raise BadRow("a domain is empty")
        if type(self.refuse) is not bool:
            raise BadRow("refuse is not true or false", f"got {self.refuse!r}")
        object.__setattr__(self, "declining", tuple(require_text(text, "declining") for text in self.declining))


@dataclass(frozen=True)
class RefusalSet:
    """A frozen set of prompts that should, and should not, be declined."""

    name: str
    cases: tuple[RefusalCase, ...]

    @cached_property
    def content_hash(self) -> str:
        """sha256 of the cases in their order."""
        return _hash_rows({**vars(case), "prompt": _message_pairs(case.prompt)} for case in self.cases)


@dataclass(frozen=True)
class World:
    """A world in which the quality of every answer is known exactly.

    gold(prompt, response) is its score; qualities(prompt, response) is {asked, true, constraint, point, civil}, each
    from 0 to 1. Both raise KeyError for a prompt that the world does not know. text() returns held-out documents of the
    kind on which its base was pretrained.
    """

    name: str
    gold: Callable[[str, str], float]
    qualities: Callable[[str, str], Mapping[str, float]]
    probes: Callable[[], ProbeSet]
    choices: Callable[[], ChoiceSet]
    text: Callable[[], Sequence[str]]


def read_probes(path: str | Path) -> ProbeSet:
    """Reads the probes of a JSONL file (also JSON and gzip): rows of prompt, bin, check and optionally pair.

    The name of the set is in a first row of name and version, or else it is the file's. Raises UserError with the row
    at fault.
    """
    name, version, rows = _read_rows(path, "probes", ("prompt", "bin", "check"), ("pair",))
    probes = []
    for origin, row in rows:
        with _add_origin_to_errors(origin):
            probes.append(Probe(to_prompt(row["prompt"]), row["bin"], row["check"], row.get("pair")))
    with _add_origin_to_errors(str(path)):
        return ProbeSet(name, version, tuple(probes))


def read_choices(path: str | Path) -> ChoiceSet:
    """Reads the questions of a JSONL file: rows of prompt, options and answer (the index of the right one, from 0)."""
    name, version, rows = _read_rows(path, "choices", ("prompt", "options", "answer"), ())
    choices = []
    for origin, row in rows:
        with _add_origin_to_errors(origin):
            choices.append(Choice(to_prompt(row["prompt"]), row["options"], row["answer"]))
    return ChoiceSet(name, version, tuple(choices))


def read_refusals(path: str | Path) -> RefusalSet:
    """Reads a JSONL file: rows of prompt, domain, refuse (true or false) and optionally declining."""
    name, _, rows = _read_rows(path, "refusals", ("prompt", "domain", "refuse"), ("declining",))
    cases = []
    for origin, row in rows:
        with _add_origin_to_errors(origin):
            declining = row.get("declining", [])
            if not isinstance(declining, list):
                raise BadRow("declining is not a list of sentences", f"got {declining!r:.40}")
            cases.append(RefusalCase(to_prompt(row["prompt"]), row["domain"], row["refuse"], tuple(declining)))
    return RefusalSet(name, tuple(cases))


def _read_rows(
    path: str | Path, plural: str, needed: tuple[str, ...], optional: tuple[str, ...]
) -> tuple[str, str, list[tuple[str, dict[str, Any]]]]:
    """Returns (name, version, [(origin, row)]) of a file. Raises UserError for a missing or an unknown column."""
    path, columns = Path(path), ", ".join(needed + optional)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected {plural} as JSONL with the columns {columns}")
    name, version, rows = path.name.split(".")[0], "1", []
    for index, (origin, row) in enumerate(file_rows(path)):
        if isinstance(row, BadRow):
            raise UserError(f"{origin}: {row}")
        if not isinstance(row, dict):
            raise UserError(f"{origin}: the row is not an object with columns, got {type(row).__name__}")
        if index == 0 and set(row) == HEADER:
            name, version = str(row["name"]), str(row["version"])
            continue
        if missing := [column for column in needed if column not in row]:
            raise UserError(f"{origin}: no column {', '.join(missing)}; {plural} have {columns}")
        if unknown := sorted(set(row) - {*needed, *optional}):
            raise UserError(f"{origin}: unknown column {', '.join(unknown)}; {plural} have {columns}")
        rows.append((origin, row))
    if not rows:
        raise UserError(f"{path}: no {plural} in this file")
    return name, version, rows


@contextlib.contextmanager
def _add_origin_to_errors(origin: str) -> Iterator[None]:
    """Turns a BadRow of the block into a UserError with the row's origin."""
    try:
        yield
    except BadRow as reason:
        raise UserError(f"{origin}: {reason}") from None


def _message_pairs(prompt: Prompt) -> list[list[str]]:
    return [[message.role, message.text] for message in prompt.messages]


def _hash_rows(rows: Iterator[dict[str, Any]]) -> str:
    text = "\n".join(json.dumps(row, sort_keys=True, ensure_ascii=True, separators=(",", ":")) for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()
