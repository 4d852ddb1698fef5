"""A run that was stopped, killed or damaged goes on to bit-identical results; what cannot go on says why."""

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_rlhf.configs.stages import PPOConfig, RewardConfig, SFTConfig
from lora_rlhf.model import decode_weights
from lora_rlhf.runs.folder import StageFolder
from lora_rlhf.stages import ppo, reward, sft
from lora_rlhf.stages.trainer import Trainer
from lora_rlhf.system.errors import Stopped, UserError
from tests.support.pretended_cuda import pretended
from tests.support.stages import LIMITS, Models, manifest, rows_of

pytestmark = pytest.mark.slow

TRAIN: dict[str, Callable[[Any], Any]] = {"sft": sft.train, "reward": reward.train, "ppo": ppo.train}
Make = Callable[..., Any]


@pytest.fixture
def config(tiny_model: Models, data: Path, parents: Path, tmp_path: Path) -> Make:
    """config(stage, run, **changes) -> settings of a stage of 6 steps that saves after each second one."""

    def make(stage: str, run: str = "run", **changes: Any) -> Any:
        usual: dict[str, Any] = {"run": str(tmp_path / run), "save_every": 2, **LIMITS}
        if stage == "sft":
            usual |= {
                **{"model": str(tiny_model("llama")), "demonstrations": str(data / "demonstrations.jsonl")},
                **{"batch_size": 9, "epochs": 2, "lora_rank": 4, "lora_dropout": 0.1, "learning_rate": 5e-3},
                **{"validation_fraction": 0.1},
            }
            return SFTConfig(**(usual | changes))
        usual |= {"sft": str(parents / "sft")}
        if stage == "reward":
            usual |= {"rankings": str(data / "rankings.jsonl"), "batch_size": 5, "learning_rate": 2e-3}
            return RewardConfig(**(usual | changes))
        usual |= {
            **{
                "reward": str(parents / "reward"),
                "prompts": str(data / "prompts.jsonl"),
                "iterations": 6,
                "engine": "static",
            },
            **{"batch_size": 8, "minibatch_size": 4, "num_epochs": 2, "max_response_tokens": 8},
            **{"kl_target": 0.5, "kl_horizon": 32.0, "warmup_iterations": 3, "sample_every": 2},
            **{"pretraining_text": str(data / "text.jsonl"), "ptx_block_tokens": 16, "ptx_shuffle_blocks": 5},
            **{"policy_learning_rate": 2e-3, "value_learning_rate": 2e-3, "max_kl": None},
        }
        return PPOConfig(accept_chance_reward=True, **(usual | changes))

    return make


def interrupt_at(monkeypatch: pytest.MonkeyPatch, count: int, number: int = signal.SIGINT) -> None:
    """Sends this process the signal when it comes to the boundary of that number."""
    boundary, seen = Trainer.save_or_stop, []

    def counting(self: Trainer, *args: Any, **kwargs: Any) -> None:
        seen.append(1)
        if len(seen) == count:
            os.kill(os.getpid(), number)
        boundary(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "save_or_stop", counting)


def contents(run: str | Path, stage: str) -> dict[str, Any]:
    """Everything that a finished stage leaves, but for times, memory, names and dates."""
    folder = Path(run) / stage
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        found |= {f"{path.relative_to(folder)}:{name}": value for name, value in load_file(path).items()}
    plain = ("time/", "memory/")
    found["metrics"] = [
        {key: value for key, value in row.items() if not key.startswith(plain)} for row in rows_of(run, stage)
    ]
    if (folder / "samples.jsonl").exists():
        found["samples"] = rows_of(run, stage, "samples.jsonl")
    skipped = ("seconds", "peak_rss_gib", "peak_gpu_gib")
    found["results"] = {k: v for k, v in manifest(run, stage)["results"].items() if k not in skipped}
    return found


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Bit for bit, also in the checkpoints of a step that both still have."""
    assert {name for name in one.keys() ^ other.keys() if not name.startswith("checkpoints/")} == set()
    assert any(name.startswith("checkpoints/step-00000004/state") for name in one.keys() & other.keys())
    for name in one.keys() & other.keys():
        value = one[name]
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[name]), name
        elif name == "metrics":
            for here, there in zip(value, other[name], strict=True):
                assert here == there, {key: (here[key], there.get(key)) for key in here if here[key] != there.get(key)}
        else:
            assert value == other[name], name


@pytest.fixture
def undisturbed(config: Make) -> Callable[[str], dict[str, Any]]:
    def make(stage: str) -> dict[str, Any]:
        settings = config(stage, "undisturbed")
        TRAIN[stage](settings)
        return contents(settings.run, stage)

    return make


@pytest.mark.parametrize(
    ("stage", "at"),
    [
        *(("sft", 3), ("reward", 3), ("ppo", 2)),
        *(
            pytest.param(stage, at, marks=pytest.mark.long)
            for stage in ("sft", "ppo")
            for at in (1, 3, 5)
            if (stage, at) != ("sft", 3)
        ),
    ],
)
def test_a_run_that_is_stopped_goes_on_bit_for_bit(
    config: Make, undisturbed: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, stage: str, at: int
) -> None:
    expected, settings = undisturbed(stage), config(stage)
    with monkeypatch.context() as patch:
        interrupt_at(patch, at)
        with pytest.raises(Stopped, match=r"everything is saved\. Give the same command again") as caught:
            TRAIN[stage](settings)
    assert caught.value.status == 130
    assert manifest(settings.run, stage)["status"] == "running"
    TRAIN[stage](settings)
    assert_same(contents(settings.run, stage), expected)
    assert len(manifest(settings.run, stage)["resumed"]) == 1


@pytest.mark.slow
def test_a_moving_baseline_goes_on(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    reinforce: dict[str, Any] = {"advantage": "reinforce", "missing_eos_score": None}
    whole, stopped = config("ppo", "whole", **reinforce), config("ppo", "stopped", **reinforce)
    TRAIN["ppo"](whole)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        interrupt_at(patch, 2)
        TRAIN["ppo"](stopped)
    TRAIN["ppo"](stopped)
    assert_same(contents(stopped.run, "ppo"), contents(whole.run, "ppo"))


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_a_run_that_died_goes_on_from_its_last_checkpoint_bit_for_bit(
    config: Make, undisturbed: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """What was logged after the checkpoint is written again, not twice."""
    expected, settings = undisturbed(stage), config(stage)
    log = StageFolder.log

    def die(self: StageFolder, step: int, metrics: Any) -> None:
        log(self, step, metrics)
        if step == 5:
            raise KeyboardInterrupt  # a second Ctrl-C

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StageFolder, "log", die)
        TRAIN[stage](settings)
    assert rows_of(settings.run, stage)[-1]["step"] == 5
    TRAIN[stage](settings)
    assert_same(contents(settings.run, stage), expected)


def test_a_terminal_that_closes_saves_as_well(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config("reward", save_every=100)
    with monkeypatch.context() as patch, pytest.raises(Stopped) as caught:
        interrupt_at(patch, 2, signal.SIGHUP)
        TRAIN["reward"](settings)
    assert caught.value.status == 129
    assert [path.name for path in (Path(settings.run) / "reward" / "checkpoints").iterdir()] == ["step-00000002"]


def test_a_run_that_was_moved_goes_on(config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config("reward")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        interrupt_at(patch, 3)
        TRAIN["reward"](settings)
    Path(settings.run).rename(tmp_path / "moved")
    TRAIN["reward"](dataclasses.replace(settings, run=str(tmp_path / "moved")))
    assert len(manifest(tmp_path / "moved", "reward")["resumed"]) == 1


@pytest.mark.parametrize(
    "damage",
    ["flipped", "record", *(pytest.param(how, marks=pytest.mark.long) for how in ("truncated", "missing", "adapter"))],
)
def test_a_damaged_checkpoint_is_passed_over(
    config: Make,
    undisturbed: Callable[[str], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    expected, settings = undisturbed("reward"), config("reward")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        interrupt_at(patch, 5, signal.SIGTERM)
        reward.train(settings)
    folder = Path(settings.run) / "reward" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000004", "step-00000005"]
    newest = folder / "step-00000005"
    file = {"record": newest / "checkpoint.json", "adapter": newest / "reward" / "adapter_model.safetensors"}.get(
        damage, newest / "state.safetensors"
    )
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[:-1])
    elif damage == "missing":
        file.unlink()
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    with caplog.at_level("INFO"):
        reward.train(settings)
    assert "step-00000005 is damaged" in caplog.text and "going on from" in caplog.text
    found = contents(settings.run, "reward")
    assert_same(found, expected)


def test_without_a_whole_checkpoint_nothing_is_thrown_away(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = stopped(config("reward"), monkeypatch)
    for path in (Path(settings.run) / "reward" / "checkpoints").rglob("state.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of the checkpoints there is whole; --overwrite begins again"):
        reward.train(settings)
    assert len(rows_of(settings.run, "reward")) == 3


def stopped(settings: Any, monkeypatch: pytest.MonkeyPatch, stage: str = "reward", at: int = 3) -> Any:
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        interrupt_at(patch, at)
        TRAIN[stage](settings)
    return settings


def test_other_settings_are_refused_with_every_difference(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = stopped(config("reward"), monkeypatch)
    changed = dataclasses.replace(settings, learning_rate=1e-3, batch_size=6, micro_batch_size=3, save_every=1)
    with pytest.raises(UserError) as caught:
        reward.train(changed)
    for part in ("learning_rate: 0.002 then, 0.001 now", "batch_size: 5 then, 6 now", "--allow_changes", "--overwrite"):
        assert part in str(caught.value)
    assert "save_every" not in str(caught.value) and "\n  micro_batch_size" not in str(caught.value)
    reward.train(dataclasses.replace(changed, allow_changes=True, batch_size=5))
    (resumed,) = manifest(settings.run, "reward")["resumed"]
    assert resumed["changes"] == {"learning_rate": {"before": 0.002, "now": 0.001}}


def test_other_data_is_refused(config: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    shutil.copy(data / "rankings.jsonl", mine)
    settings = stopped(config("reward", rankings=str(mine)), monkeypatch)
    lines = mine.read_text().splitlines(keepends=True)
    mine.write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match=r"the data has changed .*rankings \(.*mine\.jsonl\).*--allow_changes"):
        reward.train(settings)
    mine.write_text("".join(lines))
    reward.train(settings)


def test_another_parent_is_refused(config: Make, monkeypatch: pytest.MonkeyPatch, parents: Path) -> None:
    settings = stopped(config("reward"), monkeypatch)
    path = Path(settings.run) / "reward" / "manifest.json"
    text = json.loads(path.read_text())
    text["parents"]["sft"]["id"] = "another"
    path.write_text(json.dumps(text))
    with pytest.raises(UserError, match="began with other parents"):
        reward.train(dataclasses.replace(settings, allow_changes=True))


def test_nothing_to_resume(config: Make) -> None:
    settings = config("reward", resume=True)
    with pytest.raises(UserError, match="nothing to resume: no unfinished run is there; leave --resume out"):
        reward.train(settings)
    assert not Path(settings.run).exists()


def test_overwrite_begins_an_unfinished_run_again(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = stopped(config("reward"), monkeypatch)
    reward.train(dataclasses.replace(settings, overwrite=True, batch_size=9))
    assert "resumed" not in manifest(settings.run, "reward")
    assert [row["step"] for row in rows_of(settings.run, "reward")] == [1, 2, 3]


def test_a_corrupt_configuration_is_named(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = stopped(config("reward"), monkeypatch)
    (Path(settings.run) / "reward" / "config.yaml").write_text("run: [")
    with pytest.raises(UserError, match=r"config\.yaml: not YAML"):
        reward.train(settings)


def test_a_second_process_is_kept_out(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config("reward")
    tried: list[int] = []

    def second(self: Trainer, *args: Any, **kwargs: Any) -> None:
        if not tried:
            tried.append(1)
            with pytest.raises(UserError, match=rf"another process is at work there \(process {os.getpid()} on"):
                reward.train(settings)

    monkeypatch.setattr(Trainer, "save_or_stop", second)
    reward.train(settings)
    assert tried
    with pytest.raises(UserError, match=r"finished already; use --overwrite, or another --run with --sft .*/sft$"):
        reward.train(settings)


def test_the_newest_checkpoints_and_the_best_are_kept(config: Make) -> None:
    settings = config("ppo", save_every=1, keep_checkpoints=1, max_response_tokens=4)
    ppo.train(settings)
    rows = rows_of(settings.run, "ppo")[:5]
    gains = [row["rollout/score"] - row["ppo/kl_coef"] * row["rollout/kl"] for row in rows]
    best = 1 + gains.index(max(gains))
    names = {path.name for path in (Path(settings.run) / "ppo" / "checkpoints").iterdir()}
    assert names == {f"step-{step:08d}" for step in {best, 5}}


def test_what_a_killed_process_was_writing_is_removed(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = stopped(config("reward"), monkeypatch)
    half = Path(settings.run) / "reward" / "checkpoints" / ".step-00000009.abcd.tmp"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    (Path(settings.run) / "reward" / ".manifest.json.abcd.tmp").write_text("{")
    reward.train(settings)
    assert not list((Path(settings.run) / "reward").rglob("*.tmp"))


@pytest.mark.parametrize("merges", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_run_goes_on_decoding_as_it_began_whatever_memory_is_free_by_then(
    config: Make, undisturbed: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, merges: bool
) -> None:
    free = {True: 2**40, False: 0}
    used: list[str] = []
    merged = decode_weights.use_merged_weights
    monkeypatch.setattr(decode_weights, "use_merged_weights", lambda *given: used.append("merged") or merged(*given))
    monkeypatch.setattr(decode_weights, "free_bytes", lambda _device: free[merges])
    expected, settings = undisturbed("ppo"), config("ppo")
    assert bool(used) is merges
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises(Stopped):
            ppo.train(settings)
    used.clear()
    monkeypatch.setattr(decode_weights, "free_bytes", lambda _device: free[not merges])
    ppo.train(settings)
    assert bool(used) is merges
    assert_same(contents(settings.run, "ppo"), expected)


def test_a_run_with_moments_in_8_bits_goes_on_bit_for_bit_and_with_no_other_optimizer(
    config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    eight = {"optimizer": "adamw_8bit"}
    ppo.train(config("ppo", "undisturbed", **eight))
    settings = config("ppo", **eight)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises(Stopped):
            ppo.train(settings)
    with pytest.raises(UserError, match="give the --optimizer that the run began with"):
        ppo.train(dataclasses.replace(settings, optimizer="adamw", allow_changes=True))
    ppo.train(dataclasses.replace(settings, allow_changes=True))
    assert_same(contents(settings.run, "ppo"), contents(Path(settings.run).parent / "undisturbed", "ppo"))


@pytest.mark.parametrize("stage", ["sft", pytest.param("ppo", marks=pytest.mark.long)])
def test_a_gpu_that_fails_leaves_the_last_checkpoint(stage: str, config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    boundary = Trainer.save_or_stop
    with pretended() as played, monkeypatch.context() as patch:

        def failing_later(self: Trainer, done: int, *args: Any, **kwargs: Any) -> None:
            boundary(self, done, *args, **kwargs)
            if done == 3:
                played.operations_left = 100

        patch.setattr(Trainer, "save_or_stop", failing_later)
        message = (
            r"the GPU failed after \w+ 3 \(CUDA error: unspecified launch failure\); the checkpoint of \w+ 2 is kept"
        )
        with pytest.raises(Stopped, match=message):
            TRAIN[stage](config(stage, device="cuda"))
    with pretended():
        TRAIN[stage](config(stage, device="cuda"))
    assert manifest(config(stage).run, stage)["status"] == "finished"
    assert len(rows_of(config(stage).run, stage)) >= 6
