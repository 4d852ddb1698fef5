"""Two hundred run folders that mean harm, through the commands that read runs: each is refused in a line, in time."""

import json
import os
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lora_rlhf_demo.config import DemoConfig
from lora_rlhf_demo.label_session import LabelActions
from lora_rlhf_demo.runs import list_runs, run_summary
from lora_rlhf_demo.tail import Tails

from lora_rlhf.cli.main import main
from lora_rlhf.configs.stages import SFTConfig
from lora_rlhf.runs.folder import ADAPTER, StageFolder
from lora_rlhf.system.errors import UserError

RUNS = 200
MOST_SECONDS, MOST_MIB = 5.0, 500
FILES = (
    *("sft/manifest.json", "sft/config.yaml", "sft/metrics.jsonl", "sft/adapter/adapter_config.json", "recipe.yaml"),
    *("sft/adapter/adapter_model.safetensors", "report.json", "report.md", "candidates.jsonl", "gate/a.json"),
)
YAML_BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))


def write_run(run: Path) -> None:
    """A finished SFT stage whose base is not there."""
    stage = StageFolder(SFTConfig(run=str(run), model="m", demonstrations="d"), "sft")
    base = {"name": "./no/such/base", "quantization": "none", "compute_dtype": "float32", "trust_remote_code": False}
    stage.begin({**base, "source_hash": "0", "chat_template": None}, {}, {})
    (stage.path / ADAPTER).mkdir()
    (stage.path / ADAPTER / "adapter_config.json").write_text("{}")
    (stage.path / ADAPTER / "adapter_model.safetensors").write_bytes(b"\x08" + bytes(7) + b"{}      ")
    stage.finish({})


def link(path: Path, draw: random.Random) -> None:
    path.symlink_to(draw.choice(["../../outside/secret", "/dev/zero", "/etc/passwd", "nowhere", path.name]))


def sparse(path: Path, draw: random.Random) -> None:
    path.touch()
    os.truncate(path, draw.choice([2**41, 2**42]))


def garbage(path: Path, draw: random.Random) -> None:
    texts = (YAML_BOMB, "[" * 10**6, '{"a":' * 10**5, "\x1b[31m\u202e", "a: !!python/object/apply:os.system [id]", "")
    path.write_bytes(draw.choice([*(text.encode() for text in texts), draw.randbytes(1000), b"\xff" * 8 + b"{}"]))


def strange_values(path: Path, draw: random.Random) -> None:
    """A manifest with other values; for other files, unknown keys."""
    values: Any = json.loads(path.read_text()) if path.name == "manifest.json" else {"unknown": 1}
    strange: tuple[Any, ...] = (
        None,
        [],
        {},
        -1,
        1e308,
        "../../outside",
        "/etc",
        "\x1b]0;x\x07",
        "a" * 10**5,
        True,
        "\u202egnp",
    )
    for key in draw.sample([*values, "unknown"], k=min(2, len(values))):
        values[key] = draw.choice(strange)
    path.write_text(json.dumps(values))


def pipe(path: Path, _: random.Random) -> None:
    os.mkfifo(path)


HARM: tuple[Callable[[Path, random.Random], None], ...] = (link, sparse, garbage, strange_values, pipe)


@pytest.mark.slow
def test_hostile_runs_end_in_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text('{"secret": 1}\n')
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    root, draw = tmp_path / "runs", random.Random(0)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(RUNS):
        run = root / f"run{number}"
        write_run(run)
        for name in draw.sample(FILES, k=2):
            harm, path = draw.choice(HARM), run / name
            path.parent.mkdir(exist_ok=True)
            if harm is not strange_values or not path.exists():
                path.unlink(missing_ok=True)
            harm(path, draw)
        commands = (
            ["package", str(run), "--to", str(tmp_path / f"package{number}"), "--with_adapters"],
            ["evaluate", "--run", str(run), "--prompts", str(tmp_path / "prompts.jsonl")],
            ["export", str(run), "--to", str(tmp_path / f"export{number}"), "--role", "sft"],
            ["chat", str(run)],
        )
        for command in commands[:1] if number % 4 else commands:  # the other three import transformers
            started = time.monotonic()
            status = main(command)
            assert status in (0, 1, 2) and (status or command[0] == "package"), command
            output = capfd.readouterr()
            assert "Traceback" not in output.err and "\x1b" not in output.err and "\u202e" not in output.err
            assert time.monotonic() - started < MOST_SECONDS + 10 * (number == 0), command
        started = time.monotonic()
        for look in (
            lambda name: run_summary(root, name),
            LabelActions(DemoConfig(root=str(root))).read_labelling,
            lambda name: Tails().read_tail(root / name / "sft" / "metrics.jsonl"),
        ):
            try:
                look(run.name)
            except UserError:
                continue
        assert time.monotonic() - started < MOST_SECONDS, run
    list_runs(root)
    assert (tmp_path / "outside" / "secret").read_text() == '{"secret": 1}\n'
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["secret"]
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024 < MOST_MIB + 700  # transformers, torch
