"""`lora-rlhf data check`: reads every file once, counts what is there, compares the files, and says what to mend."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tqdm import tqdm

from lora_rlhf.data.formats import Kind
from lora_rlhf.data.io import write_jsonl
from lora_rlhf.data.locate import Files, locate
from lora_rlhf.data.refusals import BadRow, Damaged, RefusedRows
from lora_rlhf.data.sources import Source
from lora_rlhf.errors import UserError
from lora_rlhf.inspection.advice import advice
from lora_rlhf.inspection.config import CheckConfig
from lora_rlhf.inspection.duplicates import Prints, shared
from lora_rlhf.inspection.figures import FileFigures
from lora_rlhf.inspection.render import printable, text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def run_check(config: CheckConfig) -> None:
    """The command: prints the report. UserError, after it, for a file that no stage could use."""
    report = check_data(config)
    print(json.dumps(report, indent=2, allow_nan=False) if config.json else text(report))
    if config.plot is not None:
        from lora_rlhf.inspection.plot import plot_report

        plot_report(report, Path(config.plot))
    if not report["ok"]:
        raise UserError("\n".join(printable(fault) for fault in report["faults"]))


def check_data(config: CheckConfig) -> dict[str, Any]:
    """The report on all files, as JSON values; `ok` is False when one of them could not be used as it is.

    files, held_out: see `_Examined`; leakage: for each of FILE... and each held-out file, how many different prompts of
    the latter the former holds (exact), or holds nearly; overlap: the same for every two of FILE...; advice: sentences;
    faults: why `ok` is False. A file that cannot be read is reported and does not stop the others. Raises UserError for
    a model without a usable tokenizer, and for a file that cannot be written.
    """
    _require_folders(config)
    tokenizer = _tokenizer(config)
    with tempfile.TemporaryFile("w+", encoding="ascii") as refused:
        kind = None if config.kind == "auto" else config.kind
        files = [_Examined(config, name, kind, config.format, tokenizer, refused) for name in config.files]
        held_out = [_Examined(config, name, "prompts", None, None, refused) for name in config.held_out]
        if config.refused is not None:
            write_jsonl(config.refused, _rows_of(refused))
    report: dict[str, Any] = {
        "files": [file.report for file in files],
        "held_out": [file.report for file in held_out],
        "leakage": [_leakage(file, other) for other in held_out for file in files if file.prints and other.prints],
        "overlap": [_overlap(one, other) for one, other in combinations(files, 2) if one.prints and other.prints],
    }
    report["advice"] = advice(report)
    report["faults"] = [fault for file in (*files, *held_out) for fault in file.faults(config.strict)]
    report["ok"] = not report["faults"]
    return report


class _Examined:
    """One file, read: its part of the report, and the hashes that it is compared with others by.

    report: `file`; `error`, or None when it could be opened; then `files` and `skipped` (of a folder), `rows` {read,
    used, refused}, `records`, `formats`, `refused` [{reason, count, examples}], and what `FileFigures` counts.
    """

    def __init__(
        self,
        config: CheckConfig,
        name: str,
        kind: Kind | None,
        format: str | None,
        tokenizer: "PreTrainedTokenizerBase | None",
        refused: IO[str],
    ) -> None:
        self.prints: Prints | None = None
        self.report: dict[str, Any] = {"file": name, "error": None}
        self._log = _Log(refused if config.refused is not None else None)
        try:
            located = locate(name)
            source = _LoggedSource(name, kind, self._log, format)
            figures = FileFigures(tokenizer, config.token_rows, config.validation_fraction)
            for record in tqdm(source, desc=printable(name), unit=" rows", delay=1, leave=False, disable=None):
                figures.add(record)
        except UserError as error:
            self.report["error"] = str(error)
            return
        self.prints = figures.prints
        self.report |= {
            "files": len(located.paths) if isinstance(located, Files) else 1,
            "skipped": [str(path) for path in located.skipped] if isinstance(located, Files) else [],
            "rows": {"read": source.read, "used": source.used, "refused": self._log.count},
            "records": source.records,
            "formats": dict(source.formats),
            "refused": _reasons(self._log),
            **figures.summary(config.max_prompt_tokens, config.max_response_tokens),
        }

    def faults(self, strict: bool) -> list[str]:
        """Why a stage could not use the file as it is."""
        name = self.report["file"]
        if self.report["error"] is not None:
            return [self.report["error"]]
        rows = self.report["rows"]
        if not rows["read"]:
            return [f"{name}: no rows; the file is empty"]
        if not rows["used"]:
            return [f"{name}: none of its {rows['read']:,} rows can be used"]
        if self._log.damage:
            return self._log.damage
        refused = rows["refused"]
        return [f"{name}: {refused:,} of {rows['read']:,} rows are refused (--strict)"] if strict and refused else []


class _Log(RefusedRows):
    """Refusals of one file; each is also written to a stream, as JSON lines, where there is one."""

    def __init__(self, stream: IO[str] | None) -> None:
        super().__init__()
        self.stream = stream
        self.damage: list[str] = []

    def add(self, origin: str, fault: BadRow) -> None:
        super().add(origin, fault)
        if isinstance(fault, Damaged):
            self.damage.append(f"{origin}: {fault}")
        if self.stream is not None:
            row = {"place": origin, "reason": fault.reason, "detail": fault.detail}
            self.stream.write(json.dumps(row) + "\n")


class _LoggedSource(Source[Any]):
    """A source that goes on where a file breaks off, and refuses into a log of ours."""

    def __init__(self, name: str, kind: Kind | None, log: _Log, format: str | None) -> None:
        self.log = log
        super().__init__(name, kind, format, tolerant=True)

    def _reset(self) -> None:
        super()._reset()
        self.refused = self.log


def _rows_of(stream: IO[str]) -> Iterator[Mapping[str, Any]]:
    stream.seek(0)
    return (json.loads(line) for line in stream)


def _reasons(refused: RefusedRows) -> list[dict[str, Any]]:
    return [
        {
            "reason": reason,
            "count": group.count,
            "examples": [{"place": row.origin, "detail": row.detail} for row in group.examples],
        }
        for reason, group in refused.by_reason().items()
    ]


def _leakage(file: _Examined, held_out: _Examined) -> dict[str, Any]:
    assert file.prints is not None and held_out.prints is not None  # both could be read
    names = {"file": file.report["file"], "held_out": held_out.report["file"]}
    return names | {"prompts": held_out.prints.num_distinct, **shared(held_out.prints, file.prints)}


def _overlap(one: _Examined, other: _Examined) -> dict[str, Any]:
    assert one.prints is not None and other.prints is not None  # both could be read
    return {"file": one.report["file"], "other": other.report["file"], **shared(one.prints, other.prints)}


def _tokenizer(config: CheckConfig) -> "PreTrainedTokenizerBase | None":
    if config.model is None:
        return None
    from lora_rlhf.model.base import load_tokenizer

    return load_tokenizer(config.model, config.trust_remote_code)


def _require_folders(config: CheckConfig) -> None:
    """Before hours of reading: what is to be written has a folder."""
    for flag, path in (("--refused", config.refused), ("--plot", config.plot)):
        if path is not None and not Path(path).parent.is_dir():
            raise UserError(f"{flag} {path}: there is no folder {Path(path).parent}")
