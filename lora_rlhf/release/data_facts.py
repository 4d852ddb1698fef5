"""Facts of a run's data for a package: hashes, columns, numbers of rows, split lists, how labelers worked."""

import hashlib
import itertools
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from lora_rlhf.configs.catalogue import ROW_KINDS
from lora_rlhf.data.containers import source_rows
from lora_rlhf.data.labels import AgreementCounter
from lora_rlhf.data.schema import Prompt, Ranking, choose_split, make_row
from lora_rlhf.data.sources import Source
from lora_rlhf.release.paths import PathMap
from lora_rlhf.runs.folder import data_hash, find_data
from lora_rlhf.system.errors import UserError

SCHEMA_ROWS = 1000


class DataFile(NamedTuple):
    """Data that a stage or the evaluation read: its name, its path, and its sha256 at that time.

    split: what its prompts were used for; None for data without a split list. fraction: the share of the prompts of
    training data that was held out instead. from_run: the path as seen from the run; None if it was not recorded.
    """

    stage: str
    name: str
    path: str
    sha256: str | None
    format: str | None
    split: str | None
    fraction: float = 0.0
    columns: str | None = None
    from_run: str | None = None


class DataFacts(NamedTuple):
    """What a package records of one data file: facts, split list, and how labelers worked if it has rankings."""

    facts: dict[str, Any]
    splits: list[dict[str, Any]]
    protocol: dict[str, Any] | None


def read_data_facts(file: DataFile, run: Path, paths: PathMap, with_texts: bool) -> DataFacts:
    """Reads a data file. Raises UserError with one line if the file is missing or has changed."""
    record = {"path": str(paths.current_path(file.path, run))}
    path = find_data(record if file.from_run is None else record | {"from_run": file.from_run}, run)
    try:
        sha256 = data_hash(path)
    except OSError as error:
        raise UserError(f"{file.path}: cannot be read ({error.strerror})") from error
    if file.sha256 is not None and sha256 != file.sha256:
        raise UserError(f"{file.path}: has changed since {file.stage} read it")
    source: Source[Any] = Source(
        path, ROW_KINDS.get(file.name, "prompts"), file.format, tolerant=True, columns=file.columns
    )
    split_rows: dict[str, dict[str, Any]] = {}
    labelling = _LabellingCounts()
    for record in tqdm(source, desc=f"read {file.name}", unit="row", delay=3):
        if file.split is not None:
            row = _split_list_row(record if isinstance(record, Prompt) else record.prompt, file, with_texts)
            split_rows.setdefault(row["key"], row)
        if isinstance(record, Ranking):
            labelling.add(record)
    facts = {
        "stage": file.stage,
        "name": file.name,
        "file": paths.packaged_path(file.path),
        "sha256": sha256,
        "kind": source.kind,
        "formats": dict(sorted(source.formats.items())),
        "rows": {"read": source.read, "used": source.used, "refused": source.refused.count},
        "prompts": dict(sorted(Counter(row["split"] for row in split_rows.values()).items())),
        "validation_fraction": file.fraction or None,
        "columns": _column_types(path),
    }
    return DataFacts(facts, list(split_rows.values()), labelling.facts() if labelling.rankings else None)


def _split_list_row(prompt: Prompt, file: DataFile, with_texts: bool) -> dict[str, Any]:
    """A row of the list that tells each prompt's split: its key as sha256, its split, and its text if `with_texts`."""
    is_held_out = file.split == "train" and choose_split(prompt.opening, file.fraction) == "validation"
    row = {"key": hashlib.sha256(prompt.key.encode()).hexdigest(), "split": "validation" if is_held_out else file.split}
    return row | ({"prompt": make_row(Prompt(prompt.messages))["prompt"]} if with_texts else {})


def _column_types(path: str) -> dict[str, list[str]]:
    """{column: names of the JSON types of its values in the first rows}."""
    columns: dict[str, set[str]] = {}
    for _, row in itertools.islice(source_rows(path), SCHEMA_ROWS):
        for name, value in row.items() if isinstance(row, dict) else ():
            columns.setdefault(name, set()).add(_json_type_name(value))
    return {name: sorted(types) for name, types in sorted(columns.items())}


def _json_type_name(value: Any) -> str:
    """The name of a value's JSON type; for a list, with the types of its items."""
    if isinstance(value, list):
        item_types = sorted({_json_type_name(item) for item in value})
        return f"list of {' or '.join(item_types)}" if item_types else "list"
    names = {str: "text", bool: "true or false", int: "whole number", float: "number", type(None): "null"}
    return names.get(type(value), "object")


class _LabellingCounts:
    """Counts how rankings were made."""

    def __init__(self) -> None:
        self.rankings = self.ties = self.pairs = 0
        self.sizes: Counter[int] = Counter()
        self.labelers: Counter[str] = Counter()
        self.prompts: Counter[str] = Counter()
        self.agreement = AgreementCounter()

    def add(self, ranking: Ranking) -> None:
        """Counts one ranking."""
        self.rankings += 1
        self.sizes[len(ranking.responses)] += 1
        self.prompts[ranking.prompt.key] += 1
        if ranking.labeler is not None:
            self.labelers[ranking.labeler] += 1
        pairs = list(itertools.combinations(ranking.ranks, 2))
        self.pairs, self.ties = (
            self.pairs + len(pairs),
            self.ties + sum(rank == other_rank for rank, other_rank in pairs),
        )
        self.agreement.add(ranking)

    def facts(self) -> dict[str, Any]:
        """The counts for the package. Labelers are only counted: their names are private."""
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
