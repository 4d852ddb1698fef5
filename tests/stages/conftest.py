"""Data files, and one finished SFT and reward stage that the tests of later stages start from."""

from pathlib import Path

import pytest

from lora_rlhf.configs.stages import RewardConfig, SFTConfig
from lora_rlhf.stages import reward, sft
from tests.support.stages import DEMONSTRATIONS, LIMITS, RANKINGS, Models, write_rows


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with demonstrations, rankings, prompts and text; do not write to it."""
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "demonstrations.jsonl", DEMONSTRATIONS)
    write_rows(folder / "rankings.jsonl", RANKINGS)
    write_rows(folder / "prompts.jsonl", ({"prompt": row["prompt"]} for row in DEMONSTRATIONS))
    write_rows(folder / "text.jsonl", ({"text": f"The {row['completion']} " * 6} for row in DEMONSTRATIONS))
    return folder


@pytest.fixture(scope="session")
def parents(tiny_model: Models, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a finished SFT and reward stage on a tiny Llama in 4 bits; do not write to it."""
    run = tmp_path_factory.mktemp("parents")
    model = sft.train(
        SFTConfig(
            run=str(run),
            model=str(tiny_model("llama")),
            demonstrations=str(data / "demonstrations.jsonl"),
            learning_rate=5e-3,
            epochs=2,
            batch_size=8,
            lora_rank=4,
            lora_alpha=8.0,
            **LIMITS,
        )
    )
    reward.train(
        RewardConfig(run=str(run), rankings=str(data / "rankings.jsonl"), learning_rate=2e-3, batch_size=8, **LIMITS),
        model,
    )
    return run
