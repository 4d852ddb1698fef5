"""The zoo's checkpoints through the whole path: each works, or is refused before anything begins."""

from pathlib import Path

import pytest

from tests.zoo.checkpoints import CHECKPOINTS
from tests.zoo.walk import walk

# One of each kind that has needed its own code; all of them take half an hour: scripts/test.sh --zoo.
A_DOZEN = (
    *("opt", "lfm2", "falcon_h1", "granitemoehybrid", "qwen3_moe", "deepseek_v3", "gpt_oss", "mixtral"),
    *("gemma3", "qwen3_vl", "qwen3_5", "llama4"),
)
SOME_OF_THEM = ("falcon_h1", "deepseek_v3", "gpt_oss", "gemma3", "qwen3_5")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SOME_OF_THEM else pytest.mark.long) for name in A_DOZEN]
)
def test_a_dozen_train(name: str, tmp_path: Path) -> None:
    outcome = walk(name, tmp_path, without=("plan", "static", "export", "export reload", "reward export"))
    assert {step: result for step, result in outcome.steps.items() if result != "works"} == {}


@pytest.mark.zoo
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_checkpoint_works_or_is_refused_before_it_begins(name: str, tmp_path: Path) -> None:
    outcome = walk(name, tmp_path)
    assert {step: result for step, result in outcome.steps.items() if result.startswith("breaks")} == {}
    assert outcome.works or outcome.is_refused, outcome.steps
