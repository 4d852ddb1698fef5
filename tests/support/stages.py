"""Data, files and arithmetic for the tests of the stages."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_rlhf.data.encode import EncodedRanking
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.shared import SharedModel

Models = Callable[[str], Path]

LIMITS: dict[str, Any] = {"max_prompt_tokens": 48, "max_response_tokens": 24}
WORDS = "night boat note bread river baker question students sailors ships".split()
ASKED = {"Say the": "The", "Is it the": "No, the", "Count the": "One"}
DEMONSTRATIONS = [
    {"prompt": f"{asks} {word}?", "completion": f"{answers} {word}."}
    for asks, answers in ASKED.items()
    for word in WORDS
]
RANKINGS: list[dict[str, Any]] = [
    {
        "prompt": row["prompt"],
        "responses": ["What?", row["completion"], "Say thank you", f"{row['completion']} brave!"],
        "ranks": [3, 1, 3, 2],
    }
    for row in DEMONSTRATIONS
]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def manifest(run: str | Path, stage: str) -> dict[str, Any]:
    return json.loads((Path(run) / stage / "manifest.json").read_text())


def results(run: str | Path, stage: str) -> dict[str, Any]:
    return manifest(run, stage)["results"]


def rows_of(run: str | Path, stage: str, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(run) / stage / name).read_text().splitlines()]


def open_model(folder: Path, quantization: str = "nf4") -> SharedModel:
    """The base alone, without any role."""
    return SharedModel(load_base(BaseSpec(str(folder), quantization), "cpu"))


def gradients(model: SharedModel, role: str) -> dict[str, Tensor]:
    """The gradients that the last update left."""
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters_of(role)}


def random_rankings(count: int, size: int, seed: int) -> list[EncodedRanking]:
    """Rankings of random tokens: nothing to know, only to remember. Every response ends in EOS (id 0)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(5, 300, (length,), generator=generator).tolist()

    return [
        EncodedRanking(
            draw(3, 10),
            [[*draw(2, 8), 0] for _ in range(size)],
            [1 + i for i in torch.randperm(size, generator=generator)],
        )
        for _ in range(count)
    ]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
