"""What a package tells of a run's data: hashes, columns, how rows were read, split lists, how labelers worked."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from lora_rlhf.configs.catalogue import ROW_KINDS
from lora_rlhf.data.containers import source_rows
from lora_rlhf.data.labels import AgreementCounter
from lora_rlhf.data.schema import Prompt, Ranking, row_of, split_of
from lora_rlhf.data.sources import Source
from lora_rlhf.release.places import Places
from lora_rlhf.runs.folder import data_hash
from lora_rlhf.system.errors import UserError

ROWS_OF_SCHEMA = 1000


class DataFile(NamedTuple):
    """Data that a stage, or the evaluation, read: under which name, from where, and its sha256 at that time.

    split: what its prompts were for; None for data that has no split list. Of training data, `fraction` is the share of
    prompts that was held out instead.
    """

    stage: str
    name: str
    path: str
    sha256: str | None
    format: str | None
    split: str | None
    fraction: float = 0.0


class Told(NamedTuple):
    """What a package says of one data file: its facts, its split list, and of rankings how labelers worked."""

    facts: dict[str, Any]
    splits: list[dict[str, Any]]
    protocol: dict[str, Any] | None


def tell_data(one: DataFile, run: Path, places: Places, with_texts: bool) -> Told:
    """Reads a data file. UserError, in one line, where it is not there any more or has changed since."""
    place = str(places.find(one.path, run))
    try:
        now = data_hash(place)
    except OSError as error:
        raise UserError(f"{one.path}: cannot be read ({error.strerror})") from error
    if one.sha256 is not None and now != one.sha256:
        raise UserError(f"{one.path}: has changed since {one.stage} read it")
    source: Source[Any] = Source(place, ROW_KINDS.get(one.name, "prompts"), one.format, tolerant=True)
    splits: dict[str, dict[str, Any]] = {}
    labelling = _Labelling()
    for record in tqdm(source, desc=f"read {one.name}", unit="row", delay=3):
        if one.split is not None:
            row = _split_row(record if isinstance(record, Prompt) else record.prompt, one, with_texts)
            splits.setdefault(row["key"], row)
        if isinstance(record, Ranking):
            labelling.add(record)
    facts = {
        "stage": one.stage,
        "name": one.name,
        "file": places.tell(one.path),
        "sha256": now,
        "kind": source.kind,
        "formats": dict(sorted(source.formats.items())),
        "rows": {"read": source.read, "used": source.used, "refused": source.refused.count},
        "prompts": dict(sorted(Counter(row["split"] for row in splits.values()).items())),
        "validation_fraction": one.fraction or None,
        "columns": _columns(place),
    }
    return Told(facts, list(splits.values()), labelling.facts() if labelling.rankings else None)


def _split_row(prompt: Prompt, one: DataFile, with_texts: bool) -> dict[str, Any]:
    held_out = one.split == "train" and split_of(prompt.opening, one.fraction) == "validation"
    row = {"key": hashlib.sha256(prompt.key.encode()).hexdigest(), "split": "validation" if held_out else one.split}
    return row | ({"prompt": row_of(Prompt(prompt.messages))["prompt"]} if with_texts else {})


def _columns(place: str) -> dict[str, list[str]]:
    """{column: the JSON types that it holds} of the first rows."""
    found: dict[str, set[str]] = {}
    for row in _rows(place):
        for name, value in row.items():
            found.setdefault(name, set()).add(_type(value))
    return {name: sorted(types) for name, types in sorted(found.items())}


def _rows(place: str) -> Iterator[dict[str, Any]]:
    rows = itertools.islice(source_rows(place), ROWS_OF_SCHEMA)
    return (row for _, row in rows if isinstance(row, dict))


def _type(value: Any) -> str:
    if isinstance(value, list):
        inner = sorted({_type(item) for item in value})
        return f"list of {' or '.join(inner)}" if inner else "list"
    names = {str: "text", bool: "true or false", int: "whole number", float: "number", type(None): "null"}
    return names.get(type(value), "object")


class _Labelling:
    """How rankings were made, as far as the rows tell."""

    def __init__(self) -> None:
        self.rankings = self.ties = self.pairs = 0
        self.sizes: Counter[int] = Counter()
        self.labelers: Counter[str] = Counter()
        self.prompts: Counter[str] = Counter()
        self.agreement = AgreementCounter()

    def add(self, ranking: Ranking) -> None:
        self.rankings += 1
        self.sizes[len(ranking.responses)] += 1
        self.prompts[ranking.prompt.key] += 1
        if ranking.labeler is not None:
            self.labelers[ranking.labeler] += 1
        pairs = list(itertools.combinations(ranking.ranks, 2))
        self.pairs, self.ties = self.pairs + len(pairs), self.ties + sum(one == other for one, other in pairs)
        self.agreement.add(ranking)

    def facts(self) -> dict[str, Any]:
        """Labelers by number and load alone: their names are theirs."""
        rate, num_pairs = self.agreement.result
        return {
            "rankings": self.rankings,
            "prompts": len(self.prompts),
            "prompts_ranked_more_than_once": sum(count > 1 for count in self.prompts.values()),
            "responses_per_ranking": {str(size): count for size, count in sorted(self.sizes.items())},
            "tied_pairs": {"share": self.ties / self.pairs if self.pairs else None, "pairs": self.pairs},
            "labelers": len(self.labelers) or None,
            "rankings_per_labeler": {"fewest": min(self.labelers.values()), "most": max(self.labelers.values())}
            if self.labelers
            else None,
            "agreement": {"rate": rate, "pairs": num_pairs},
        }
