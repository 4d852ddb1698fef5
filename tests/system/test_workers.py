"""Two processes started by `accelerate launch` against one, on the same global batches, as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lora_rlhf.system import workers

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("workers")]  # one worker makes the runs

# Sums in another order: gradients are equal to 1e-6, and what Adam makes of them to 1e-5 of the largest weight.
GRADIENT, WEIGHT = 1e-6, 1e-5
FIRST_MOMENT = 0.1  # of the first gradient: 1 - beta1

LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2")
PLAIN = ("--mixed_precision", "no", "--dynamo_backend", "no")
TITLES = ["one", "two"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same recipe run by one process and by two."""
    folder = tmp_path_factory.mktemp("workers")
    words = [f"{one} {two}" for one in ("red", "blue", "green") for two in "fox hare owl cat dog cow hen".split()]
    (folder / "demonstrations.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Say {word}?", "completion": f"The {word}."}) + "\n" for word in words)
    )
    (folder / "text.txt").write_text("\n".join(f"The {word} is here. It was there." for word in words))
    for title, launcher in zip(TITLES, ((), (*LAUNCH, *PLAIN)), strict=True):
        path = folder / f"{title}.yaml"
        path.write_text(yaml.safe_dump(recipe(folder, folder / title)))
        command = [sys.executable, *launcher, "-m", "lora_rlhf.cli", "run", "--config", str(path)]
        done = subprocess.run(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("[1/4]") == 2, "one process alone speaks: when a step begins, and when it ends"
    return folder


def recipe(data: Path, run: Path) -> dict[str, object]:
    """All stages that train, batches that no number of processes divides, every part of PPO in use."""
    demonstrations = str(data / "demonstrations.jsonl")
    return {
        **{"run": str(run), "max_prompt_tokens": 48, "max_response_tokens": 12, "save_every": 1},
        "keep_checkpoints": 100,
        "sft": {
            **{"model": "tinyworld", "demonstrations": demonstrations, "batch_size": 7, "epochs": 1, "lora_rank": 4},
            "validation_fraction": 0.2,
        },
        "sample": {
            **{"prompts": demonstrations, "to": "{run}/candidates.jsonl", "min_responses": 2, "max_responses": 4},
            "temperature": 1.5,
            "engine": "plain",
        },
        "reward": {
            **{"rankings": str(rankings(data)), "batch_size": 5, "validation_fraction": 0.2},
        },
        "ppo": {
            **{
                "prompts": demonstrations,
                "iterations": 3,
                "batch_size": 10,
                "minibatch_size": 5,
                "num_epochs": 1,
                "engine": "plain",
            },
            **{
                "kl_target": 1.0,
                "kl_horizon": 100.0,
                "pretraining_text": str(data / "text.txt"),
                "ptx_block_tokens": 16,
            },
            **{"ptx_batch_size": 3, "warmup_iterations": 0},
        },
    }


def rankings(data: Path) -> Path:
    path = data / "rankings.jsonl"
    lines = (data / "demonstrations.jsonl").read_text().splitlines()
    rows = [
        {**json.loads(line), "responses": ["No.", json.loads(line)["completion"], "Why?"], "ranks": [2, 1, 2]}
        for line in lines
    ]
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "completion"}) + "\n" for row in rows))
    return path


def manifest(run: Path, stage: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / stage / "manifest.json").read_text())
    return found


def largest_difference(runs: Path, file: str, part: str = "") -> tuple[float, float]:
    """Over all tensors whose name holds `part`: the largest difference, and the largest value."""
    one, two = (load_file(runs / title / file) for title in TITLES)
    assert one.keys() == two.keys()
    names = [name for name in one if part in name]
    assert names
    return (
        max(float((one[name] - two[name]).abs().max()) for name in names),
        max(float(one[name].abs().max()) for name in names),
    )


@pytest.mark.parametrize(("stage", "role"), [("sft", "sft"), ("reward", "reward"), ("ppo", "policy"), ("ppo", "value")])
def test_the_first_gradient_is_that_of_one_process(runs: Path, stage: str, role: str) -> None:
    assert [manifest(runs / title, stage)["processes"] for title in TITLES] == [1, 2]
    file = f"{stage}/checkpoints/step-00000001/state.safetensors"
    difference, largest = largest_difference(runs, file, f"{role}.exp_avg.")
    assert difference / FIRST_MOMENT <= GRADIENT
    assert largest / FIRST_MOMENT > 1e-3, "the gradient that is compared is one"


@pytest.mark.parametrize("file", ["sft/adapter", "reward/adapter", "ppo/adapter", "ppo/value_adapter"])
def test_final_adapters_are_those_of_one_process(runs: Path, file: str) -> None:
    difference, largest = largest_difference(runs, f"{file}/adapter_model.safetensors")
    assert difference <= WEIGHT * max(1.0, largest)


def test_what_is_sampled_and_recorded_is_the_same(runs: Path) -> None:
    one, two = ((runs / title / "candidates.jsonl").read_text() for title in TITLES)
    assert one == two and len(one.splitlines()) > 5
    for stage in ("sft", "reward", "ppo"):
        rows = [
            [json.loads(line) for line in (runs / title / stage / "metrics.jsonl").read_text().splitlines()]
            for title in TITLES
        ]
        assert len(rows[0]) == len(rows[1])
        for here, there in zip(*rows, strict=True):
            for key, value in here.items():
                if not key.startswith(("time/", "memory/")) and "deviation" not in key:
                    assert value == pytest.approx(there[key], rel=1e-3, abs=1e-4), (stage, key)


def test_shares_are_put_together_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    items, parts = list(range(7)), []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        parts.append(workers.share_of_process(items))
    assert parts == [[0, 3, 6], [1, 4], [2, 5]]
    monkeypatch.setattr(workers, "_all_gather_objects", lambda own: parts)
    assert workers.gather(parts[0]) == items


def test_one_process_alone_needs_no_other() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    workers.sum_gradients([weight])
    assert weight.grad is None
    assert workers.is_main() and workers.share_of_process([1, 2]) == workers.gather([1, 2]) == [1, 2]
    assert workers.from_main(lambda: 3) == 3 and not workers.any_of(False)
