"""Which prompts an export is measured on: files that the run recorded, wherever they lie, and nothing else."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.exporting.prompts import _read_prompts
from lora_rlhf.exporting.source import Source
from lora_rlhf.runs.folder import data_record


def origin_of(run: Path, record: Any) -> str:
    run.mkdir(parents=True, exist_ok=True)
    (run / "report.json").write_text(json.dumps({"sets": {"prompts": record}}))
    config = ExportConfig(folder=str(run), to="out")
    return _read_prompts(config, cast(Source, SimpleNamespace(run=run)))[1]


def test_the_prompts_of_the_evaluation_count_wherever_they_lie(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "held_out.jsonl"
    elsewhere.parent.mkdir()
    elsewhere.write_text('{"prompt": "What is red?"}\n')
    run = tmp_path / "runs" / "mine"
    record = data_record(str(elsewhere), str(run))
    assert origin_of(run, record) == f"the prompts that the run was evaluated on ({elsewhere})"
    elsewhere.write_text('{"prompt": "What is blue?"}\n')
    assert origin_of(run, record) == "neutral prompts of this package", "its content has changed"


@pytest.mark.parametrize(
    "record",
    [
        {"path": "/etc/hostname", "sha256": "0" * 64},  # the run's writer has not seen it
        {"path": "/etc/hostname"},
        {"path": ["x"], "sha256": "0" * 64},
        {"path": "x", "from_run": 3, "sha256": "0" * 64},
        {"path": "/etc", "sha256": "0" * 64},
        [],
        None,
    ],
)
def test_a_strangers_record_opens_nothing_else(record: Any, tmp_path: Path) -> None:
    assert origin_of(tmp_path / "run", record) == "neutral prompts of this package"
