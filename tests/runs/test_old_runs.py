"""A run that version 0.1.0 made (commit a15017e) and left unfinished: it loads, continues, is evaluated and exported.

`run_of_0_1` holds the run, its data, and the metrics of the iterations that were left, as that version computed them.
"""

import json
import shutil
from pathlib import Path

import pytest

from lora_rlhf import load_run
from lora_rlhf.cli.main import main

FOLDER = Path(__file__).parent / "run_of_0_1"
# Estimated from the sampled tokens' log-probabilities, unless they are scored (--old_logprobs).
ESTIMATED = ("rollout/entropy", "samples/entropy", "ppo/entropy")
# The command that began the run, in the words of its time.
PPO = (
    "ppo --run run --prompts data/ppo_prompts.jsonl --iterations 4 --batch_size 8 --minibatch_size 4 --num_epochs 1 "
    "--save_every 1 --keep_checkpoints 1 --max_prompt_tokens 96 --max_response_tokens 32 --rollout plain "
    "--decode_weights adapter --sample_every 10 --device cpu --seed 3 --policy_learning_rate 2e-3 --kl_target 1.0 "
    "--kl_horizon 64"
).split()


@pytest.fixture
def old_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def require_expected_figures(run: Path, but: tuple[str, ...] = ()) -> None:
    """The metrics of the iterations that were left are those that version 0.1.0 computed."""
    rows = [json.loads(line) for line in (run / "ppo" / "metrics.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (FOLDER / "expected_metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row, known in zip(rows[2:], expected, strict=True):
        assert row.keys() >= known.keys()
        for name in known.keys() - set(but):
            if not name.startswith(("time/", "memory/")):
                assert row[name] == pytest.approx(known[name], rel=1e-3, abs=1e-4), name


@pytest.mark.slow
def test_with_scored_log_probabilities_every_figure_is_the_old_one(old_run: Path) -> None:
    assert main([*PPO, "--old_logprobs", "scored", "--allow_changes"]) == 0
    require_expected_figures(old_run)


@pytest.mark.slow
def test_an_old_run_continues_to_the_same_figures_and_serves(old_run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its newest checkpoint stands in the middle of an iteration, which is done again from the one before."""
    with caplog.at_level("WARNING"):
        assert main(PPO) == 0
    assert "step-00000002+1 stands in the middle of an iteration: taking the one before" in caplog.text
    assert "rollout is now called engine" in caplog.text
    require_expected_figures(old_run, but=ESTIMATED)

    evaluation = "evaluate run --prompts data/evaluation_prompts.jsonl --device cpu --max_response_tokens 16"
    assert main([*evaluation.split(), "--overwrite"]) == 0
    report = json.loads((old_run / "report.json").read_text())
    assert report["format"] == 2 and set(report["systems"]) == {"base", "sft", "policy"}
    assert main("export run --role policy --to out --dtype float32 --device cpu --parity_prompts 4".split()) == 0
    assert (old_run.parent / "out" / "model.safetensors").is_file()
    with load_run("run", device="cpu") as loaded:
        assert loaded.roles == ("base", "sft", "reward", "policy")
        (answer,) = loaded.generate(["Where does the fox live?"], max_response_tokens=8)
        assert len(loaded.score("Where does the fox live?", [answer])) == 1
