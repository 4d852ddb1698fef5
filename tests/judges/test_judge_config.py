"""What can be chosen of a judge, and what is wrong with it."""

import subprocess
import sys
from typing import Any

import pytest

from lora_rlhf.configs.judge import JudgeConfig

ENDPOINT: dict[str, Any] = {"judge": "endpoint", "judge_model": "m", "judge_url": "https://x.org/v1"}


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"judge": "human"}, "--judge human needs --judge_file"),
        ({"judge": "local"}, "--judge local needs --judge_model"),
        ({"judge": "endpoint", "judge_model": "m"}, "--judge endpoint needs --judge_url"),
        (ENDPOINT | {"judge_url": "localhost:8000"}, "judge_url is 'localhost:8000'"),
        (ENDPOINT | {"judge_url": "ftp://x.org/v1"}, "judge_url is 'ftp:"),
        (ENDPOINT | {"judge_url": "http://[::1/v1"}, "judge_url is"),
        (ENDPOINT | {"judge_url": "http://x:port/v1"}, "judge_url is"),
        (ENDPOINT | {"judge_price_in": 1.0}, "give both judge_price_in and judge_price_out"),
        (ENDPOINT | {"judge_price_in": -1.0, "judge_price_out": 1.0}, "judge_price_in is -1.0"),
        (ENDPOINT | {"judge_price_in": 1.0, "judge_price_out": float("nan")}, "judge_price_out is nan"),
        (ENDPOINT | {"judge_concurrency": 0}, "judge_concurrency is 0"),
        (ENDPOINT | {"judge_retries": -1}, "judge_retries is -1"),
        (ENDPOINT | {"judge_timeout": 0.0}, "judge_timeout is 0.0"),
        (ENDPOINT | {"judge_max_tokens": 0}, "judge_max_tokens is 0"),
        ({"judge": "local", "judge_model": "m", "judge_batch_size": 0}, "judge_batch_size is 0"),
    ],
)
def test_faults(values: dict[str, Any], fault: str) -> None:
    faults = JudgeConfig(**values).judge_faults()
    assert len(faults) == 1 and fault in faults[0]


def test_no_faults() -> None:
    for values in ({}, ENDPOINT, ENDPOINT | {"judge_price_in": 0.0, "judge_price_out": 0.5, "judge_retries": 0}):
        assert JudgeConfig(**values).judge_faults() == []


@pytest.mark.parametrize(
    "url", ["https://me:sk-secret@x.org/v1", "https://sk-secret@x.org/v1", "https://x.org/v1?key=sk-secret"]
)
def test_an_address_with_a_secret_is_refused_and_not_repeated(url: str) -> None:
    faults = JudgeConfig(**(ENDPOINT | {"judge_url": url})).judge_faults()
    assert len(faults) == 1 and "judge_url" in faults[0] and "secret" not in "".join(faults)


def test_choosing_loads_no_library_that_is_slow_to_load() -> None:
    code = (
        "import sys, lora_rlhf.configs.judge, lora_rlhf.configs.stages, lora_rlhf.cli.commands;"
        "print([m for m in ('torch', 'transformers', 'httpx2', 'datasets') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
