"""`lora-rlhf data check`: reads every file once, counts its content, compares the files, and gives advice."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lora_rlhf.data.containers import detect_container
from lora_rlhf.data.formats import RecordKind
from lora_rlhf.data.io import write_jsonl
from lora_rlhf.data.locate import DataFiles, HubDataset, SavedDataset, locate
from lora_rlhf.data.outputs import require_output
from lora_rlhf.data.refusals import RefusedRows, none_of_phrase, pluralize
from lora_rlhf.inspection.advice import advice_on_report
from lora_rlhf.inspection.config import CheckConfig
from lora_rlhf.inspection.duplicates import Prints, shared_prompts
from lora_rlhf.inspection.figures import FileFigures
from lora_rlhf.inspection.reading import Reading, open_process_pool, read_file
from lora_rlhf.inspection.text import printable_text, report_text
from lora_rlhf.inspection.usage import READERS, held_out_fractions, is_same_reading, readable_kinds, stage_use
from lora_rlhf.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def run_check(config: CheckConfig) -> None:
    """Runs the command: prints the report, then raises UserError if no stage could use one of the files."""
    report = check_data(config)
    faults = "\n".join(printable_text(line) for fault in report["faults"] for line in fault.splitlines())
    if config.json:
        print(json.dumps(report, indent=2, allow_nan=False))
    elif any(file["error"] is None for file in (*report["files"], *report["held_out"])):
        print(report_text(report))
    if config.plot is not None:
        from lora_rlhf.inspection.plot import plot_report

        plot_report(report, Path(config.plot))
    if faults:
        raise UserError(faults)


def check_data(config: CheckConfig) -> dict[str, Any]:
    """The report on all files, as JSON values; `ok` is False when one of them could not be used as it is.

    files, held_out: see `_File.report`; leakage: for each of FILE... and each held-out file, how many different
    prompts of the held-out file are in the other, exactly or nearly; overlap: the same for every two of FILE...;
    advice: sentences;
    faults: why `ok` is False. A file that cannot be read is reported and does not stop the others. Raises UserError for
    a model without a usable tokenizer, and for a file that cannot be written.
    """
    for flag, path in (("--refused", config.refused), ("--plot", config.plot)):
        require_output(flag, path, (*config.files, *config.held_out))
    kind = None if config.kind == "auto" else config.kind
    with (
        open_process_pool((*config.files, *config.held_out)) as pool,
        tempfile.TemporaryFile("w+", encoding="ascii") as refusals_stream,
    ):
        # its library takes as much memory as reading a large file does, so it waits until that is done
        tokenizer = _load_tokenizer(config) if pool is None else None
        files = [_CheckedFile(config, name, kind, refusals_stream, pool) for name in config.files]
        held_out = [
            _CheckedFile(config, name, "prompts", refusals_stream, pool, is_held_out=True) for name in config.held_out
        ]
        if config.refused is not None:
            write_jsonl(config.refused, _read_refusals(refusals_stream))
    if pool is not None:
        tokenizer = _load_tokenizer(config)
    report: dict[str, Any] = {
        "files": [file.report(tokenizer) for file in files],
        "held_out": [file.report(None) for file in held_out],
        "leakage": [
            _held_out_leakage(file, held_out_file)
            for held_out_file in held_out
            for file in files
            if file.prints and held_out_file.prints
        ],
        "overlap": [_file_overlap(*pair) for pair in combinations(files, 2) if all(file.prints for file in pair)],
    }
    report["advice"] = advice_on_report(report)
    report["faults"] = [fault for file in (*files, *held_out) for fault in file.faults(config.strict)]
    report["ok"] = not report["faults"]
    return report


class _CheckedFile:
    """One file, read: its part of the report, and the hashes with which it is compared with others."""

    def __init__(
        self,
        config: CheckConfig,
        name: str,
        kind: RecordKind | None,
        refusals_stream: IO[str],
        pool: ProcessPoolExecutor | None,
        is_held_out: bool = False,
    ) -> None:
        """is_held_out: the file is one of --held-out, for which --format and --columns are not meant."""
        self.config, self.name, self.pool = config, name, pool
        self.format, self.columns = (None, None) if is_held_out else (config.format, config.columns)
        self.has_flags = not is_held_out
        self.error: str | None = None
        self.reading: Reading | None = None
        self.stages: list[dict[str, Any]] = []
        figures = FileFigures(config.token_rows, held_out_fractions(config.validation_fraction))
        stream = None if config.refused is None else refusals_stream
        try:
            self.located = locate(name)
            self.reading = self._read(kind, figures, stream)
        except UserError as error:
            self.error = str(error)
            return
        if kind is None:
            self.stages = [
                self._stage_use(readable_kind, self.reading) for readable_kind in readable_kinds(self.reading)
            ]
        else:
            self.stages = [stage_use(kind, self.reading)]

    def _read(self, kind: RecordKind | None, figures: FileFigures, stream: IO[str] | None) -> Reading:
        return read_file(
            self.name, kind, self.format, figures, stream, self.pool, columns=self.columns, has_flags=self.has_flags
        )

    def _stage_use(self, kind: RecordKind, reading: Reading) -> dict[str, Any]:
        """What the kind's stage would use. A file of several kinds is read once more, as the stage reads it."""
        if not is_same_reading(kind, reading):
            figures = FileFigures(1, reading.figures.fractions)
            try:
                reading = self._read(kind, figures, None)
            except UserError as error:
                return {"stage": READERS[kind], "kind": kind, "error": str(error)}
        return stage_use(kind, reading)

    @property
    def prints(self) -> Prints | None:
        return None if self.reading is None else self.reading.figures.prints

    def report(self, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, Any]:
        """The file's part of the report.

        `file`; `error`, or None if the file could be opened; then `files` and `skipped` (of a folder), `rows` (see
        `Reading`), `records`, `formats`, `refused` [{reason, count, examples}], `stages` (see `stage_use`), and the
        counts of `FileFigures`.
        """
        if self.reading is None:
            return {"file": self.name, "error": self.error}
        reading, located = self.reading, self.located
        limits = self.config.max_prompt_tokens, self.config.max_response_tokens
        return {
            "file": self.name,
            "error": None,
            "files": len(located.paths) if isinstance(located, DataFiles) else 1,
            "skipped": [str(path) for path in located.skipped] if isinstance(located, DataFiles) else [],
            "containers": _files_by_container(located),
            "rows": reading.rows,
            "records": reading.records,
            "formats": dict(reading.formats),
            "refused": _refusals_by_reason(reading.refused),
            "stages": self.stages,
            **reading.figures.summary(tokenizer, *limits),
        }

    def faults(self, strict: bool) -> list[str]:
        """Why no stage could use the file as it is; an empty list if one could."""
        if self.reading is None:
            return [self.error or ""]
        rows, refused = self.reading.rows, self.reading.refused
        if not self.reading.num_read:
            return [f"{self.name}: no rows; the file is empty"]
        if refused.breaks:
            return [f"{fault}; the rows behind it are missing, nobody can say how many" for fault in refused.breaks]
        if not any(stage["error"] is None and stage["used"] for stage in self.stages):
            # such as "none of its 5 rows can be used"
            return [f"{self.name}: {none_of_phrase(rows['read'], 'row')} can be used"]
        if strict and rows["refused"]:
            return [f"{self.name}: {rows['refused']:,} of {pluralize(rows['read'], 'row')} refused (--strict)"]
        return []


def _read_refusals(stream: IO[str]) -> Iterator[Mapping[str, Any]]:
    """Yields the refusals from a stream of JSON lines, from its beginning."""
    stream.seek(0)
    return (json.loads(line) for line in stream)


def _files_by_container(located: DataFiles | HubDataset | SavedDataset) -> dict[str, int]:
    """How many files there are of each container (JSONL, CSV, ...); empty for a dataset that is not in data files."""
    return dict(Counter(map(detect_container, located.paths))) if isinstance(located, DataFiles) else {}


def _refusals_by_reason(refused: RefusedRows) -> list[dict[str, Any]]:
    """The report's list of refusals: one entry for each reason, with its count and examples."""
    return [
        {
            "reason": reason,
            "count": group.count,
            "examples": [{"place": row.origin, "detail": row.detail} for row in group.examples],
        }
        for reason, group in refused.reasons_by_count().items()
    ]


def _held_out_leakage(file: _CheckedFile, held_out: _CheckedFile) -> dict[str, Any]:
    """How many prompts of the held-out file are in the other file."""
    assert file.prints is not None and held_out.prints is not None  # both could be read
    names = {"file": file.name, "held_out": held_out.name}
    return names | {"prompts": held_out.prints.num_distinct, **shared_prompts(held_out.prints, file.prints)}


def _file_overlap(file: _CheckedFile, other_file: _CheckedFile) -> dict[str, Any]:
    """How many prompts of the first file are in the second."""
    assert file.prints is not None and other_file.prints is not None  # both could be read
    return {"file": file.name, "other": other_file.name, **shared_prompts(file.prints, other_file.prints)}


def _load_tokenizer(config: CheckConfig) -> "PreTrainedTokenizerBase | None":
    """The tokenizer of --model, or None without --model."""
    if config.model is None:
        return None
    from lora_rlhf.data.chosen_template import choose_template
    from lora_rlhf.model.base import load_tokenizer

    tokenizer = load_tokenizer(config.model, config.trust_remote_code)
    choose_template(tokenizer, config.chat_template, config.template_args, config.system == "fold")
    return tokenizer
