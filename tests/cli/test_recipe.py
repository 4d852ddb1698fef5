"""Recipes: all faults before anything starts, one base for every stage, and going on where an attempt stopped."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_rlhf.cli.main import main
from lora_rlhf.cli.recipe import next_steps_text, read_recipe
from lora_rlhf.cli.recipe_run import run_recipe
from lora_rlhf.configs.stages import PPOConfig, SFTConfig
from lora_rlhf.configs.values import read_yaml
from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.exporting.export import export
from lora_rlhf.model.memory import count_quantized_storages
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.resume import Lock
from lora_rlhf.stages import sft
from lora_rlhf.stages.trainer import Trainer
from lora_rlhf.system.errors import UserError

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"

# The quickstart's shape at the smallest size that goes through every stage.
SMALL: dict[str, dict[str, Any]] = {
    "tinyworld": {
        "num_demonstrations": 48,
        "num_ranking_prompts": 16,
        "num_ppo_prompts": 16,
        "num_evaluation_prompts": 12,
        "num_selection_prompts": 6,
        "num_pretraining": 4,
    },
    "sft": {"epochs": 1, "batch_size": 16},
    "sample": {"min_responses": 2, "max_responses": 3},
    "label": {"overlap": 8},
    "reward": {"batch_size": 8, "validation_fraction": 0.3},
    "ppo": {
        "accept_chance_reward": True,
        "iterations": 2,
        "batch_size": 8,
        "minibatch_size": 8,
        "num_epochs": 1,
        "kl_target": 6.0,
        "kl_horizon": 100,
    },
    "evaluate": {"temperatures": [0.0, 1.0], "probes": "none", "choices": "none", "text": "none"},
    # so little training that an adapter's effect is of the size of rounding to 16 bits
    "export": {"dtype": "float32", "parity_prompts": 2, "parity_tokens": 8},
}


def small_recipe(run: Path) -> dict[str, Any]:
    recipe = read_yaml(QUICKSTART)
    recipe |= {"run": str(run), "micro_batch_size": 8, "device": "cpu", "max_response_tokens": 24}
    for section in SMALL:
        recipe[section].pop("micro_batch_size", None)  # the quickstart's would not divide these small batches
    return recipe | {name: recipe[name] | values for name, values in SMALL.items()}


def write(recipe: dict[str, Any], path: Path) -> list[str]:
    path.write_text(yaml.safe_dump(recipe))
    return ["run", "--config", str(path)]


def faults_of(recipe: dict[str, Any], **overrides: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        read_recipe(recipe, overrides)
    return str(caught.value).splitlines()


def test_the_quickstart_is_without_fault() -> None:
    configs = read_recipe(QUICKSTART)
    assert list(configs) == ["tinyworld", "sft", "sample", "label", "reward", "ppo", "evaluate", "export"]


def test_keys_at_the_top_reach_every_section_and_sections_override_them() -> None:
    recipe = small_recipe(Path("r"))
    recipe["ppo"] = recipe["ppo"] | {"seed": 9, "micro_batch_size": 4}
    configs = read_recipe(recipe, {"run": "other/run", "seed": 7})
    sft, ppo = configs["sft"], configs["ppo"]
    assert isinstance(sft, SFTConfig) and isinstance(ppo, PPOConfig)
    assert (sft.run, sft.seed, sft.model, sft.micro_batch_size) == ("other/run", 7, "tinyworld", 8)
    assert (ppo.run, ppo.seed, ppo.micro_batch_size) == ("other/run", 9, 4)
    assert ppo.prompts == "other/run/data/ppo_prompts.jsonl"
    assert configs["tinyworld"].seed == 7


def test_recipes_with_former_names_are_read_with_one_warning_each(caplog: pytest.LogCaptureFixture) -> None:
    recipe = small_recipe(Path("r"))
    recipe["rollout"] = recipe.pop("engine")
    recipe["label"]["candidates"] = recipe["label"].pop("responses")
    assert read_recipe(recipe) == read_recipe(small_recipe(Path("r")))
    assert caplog.messages == [
        "recipe: rollout is now called engine",
        "recipe: label: candidates is now called responses",
    ]
    recipe["ppo"]["engine"] = "plain"
    ppo = read_recipe(recipe)["ppo"]
    assert isinstance(ppo, PPOConfig) and ppo.engine == "plain"


def test_faults_of_all_sections_come_together() -> None:
    recipe = small_recipe(Path("r"))
    recipe |= {"modle": "x"}
    recipe["sft"] = recipe["sft"] | {"batch_size": 0}
    recipe["ppo"] = recipe["ppo"] | {"iteration": 3, "overwrite": True}
    recipe["label"] = recipe["label"] | {"overlap": 0}
    recipe["reward"] = recipe["reward"] | {"epochs": "one", "los": "listwise"}
    message = "\n".join(faults_of(recipe))
    for fault in (
        "recipe: unknown key 'modle'",
        "sft: batch_size is 0, must be at least 1",
        "recipe: ppo: overwrite has no place here",
        "label: overlap is 0",
        "recipe: reward: epochs is 'one'",
        "recipe: reward: unknown key 'los'",
    ):
        assert fault in message


def test_an_input_that_nobody_writes_is_found_before_the_start() -> None:
    recipe = small_recipe(Path("r"))
    recipe["ppo"] = recipe["ppo"] | {"prompts": "{run}/data/prompts.jsonl"}
    (fault,) = faults_of(recipe)
    assert fault.startswith("recipe: ppo: prompts: r/data/prompts.jsonl: no such file")
    assert fault.endswith("no section before it writes it")
    del recipe["tinyworld"]
    assert len(faults_of(recipe)) == 5  # demonstrations, both kinds of prompts, evaluation and selection


def test_an_export_that_cannot_come_is_found_before_the_start(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path / "run")
    for key in ("folder", "verify"):
        (fault,) = faults_of(recipe | {"export": recipe["export"] | {key: True}})
        assert fault.startswith(f"recipe: export: {key} has no place here; ")
    (fault,) = faults_of({key: value for key, value in recipe.items() if key not in ("ppo", "evaluate")})
    assert fault == f"recipe: export: role is 'policy', but no section makes it, and it is not in {tmp_path / 'run'}"
    (tmp_path / "mine").mkdir()
    (fault,) = faults_of(recipe | {"export": {"to": str(tmp_path / "mine")}})
    assert fault == f"recipe: export: to: {tmp_path / 'mine'} is there and holds no export; remove it, or name another"
    (tmp_path / "mine" / "export.json").write_text("{}")
    read_recipe(recipe | {"export": {"to": str(tmp_path / "mine")}})


def test_what_comes_next_is_said_in_lines_to_paste(monkeypatch: pytest.MonkeyPatch) -> None:
    configs = read_recipe(QUICKSTART)
    monkeypatch.setattr(sys, "argv", [".venv/bin/lora-rlhf"])
    monkeypatch.setattr("shutil.which", lambda _name: None)
    lines = next_steps_text(configs, has_demo=True).splitlines()
    assert lines[1] == "report: runs/quickstart/report.html" and lines[2].startswith("export: runs/quickstart/export (")
    assert lines[3:] == ["next:   .venv/bin/lora-rlhf chat runs/quickstart", "        .venv/bin/lora-rlhf demo"]
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert next_steps_text(configs, has_demo=False).endswith("\nnext:   lora-rlhf chat runs/quickstart")
    moved = read_recipe(QUICKSTART, {"run": "else/where"})
    assert next_steps_text(moved, has_demo=True).endswith("lora-rlhf demo --root else")


@pytest.mark.parametrize("run", [None, "", 3])
def test_a_recipe_needs_a_run(run: Any) -> None:
    assert faults_of(small_recipe(Path("r")) | {"run": run})[0].startswith(f"recipe: run is {run!r}; name a run folder")


def test_a_recipe_needs_a_stage() -> None:
    (fault,) = faults_of({"run": "r", "tinyworld": {"to": "x"}})
    assert "no stage to run" in fault


@pytest.mark.slow
def test_all_stages_from_one_command_and_again_from_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    recipe = small_recipe(run)
    command = write(recipe, tmp_path / "recipe.yaml")
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "[5/8] reward model" in out and str(run / "report.json") in out
    assert out.index("policy") < out.index("KL per token, nats") < out.index("[8/8] export:")  # table, parity, seconds
    assert out.endswith(
        f"\nreport: {run / 'report.html'}\nexport: {run / 'export'} (its README.md says what it is and how to run it)\n"
        f"next:   lora-rlhf chat {run}\n        lora-rlhf demo --root {run.parent}\n"
    )
    assert "| win rate |" in (run / "export" / "README.md").read_text()  # the evaluation came first
    exported = json.loads((run / "export" / "export.json").read_text())
    assert exported["source"]["id"] == json.loads((run / "ppo" / "manifest.json").read_text())["id"]
    report = json.loads((run / "report.json").read_text())
    assert report["base_unchanged"] is True and report["judge"]["name"] == "gold"
    assert {"tinyworld", "sft", "sample", "label", "reward", "ppo", "evaluate"} <= set(report["seconds"])
    stages = {name: (run / name / "manifest.json").read_bytes() for name in ("sft", "reward", "ppo")}

    shutil.rmtree(run / "reward")  # PPO was trained from this reward model: both are made anew, SFT is not
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.count("finished before, skipped") == 4
    remade = {name: (run / name / "manifest.json").read_bytes() for name in stages}
    assert remade["sft"] == stages["sft"] and remade["reward"] != stages["reward"] and remade["ppo"] != stages["ppo"]
    parents = json.loads(remade["ppo"])["parents"]
    assert parents["reward"]["id"] == json.loads(remade["reward"])["id"]
    again = json.loads((run / "report.json").read_text())
    assert again["win_rates"] == report["win_rates"], "a resumed run is the same run"
    export = json.loads((run / "export" / "export.json").read_text())
    assert export["source"]["id"] == json.loads(remade["ppo"])["id"] != exported["source"]["id"]
    assert not list(run.glob(".export*")), "the export of the stages before is gone"

    recipe["sft"]["learning_rate"] = 0.5
    recipe["micro_batch_size"] = 4  # what changes no result may change
    assert main(write(recipe, tmp_path / "recipe.yaml")) == 2
    message = capsys.readouterr().err
    assert "sft: learning_rate is 0.5 now and was 0.002 when this step finished" in message
    assert "micro_batch_size" not in message

    record = run / "recipe.yaml"  # as a version wrote it that had another name for this setting
    record.write_text(record.read_text().replace("  responses:", "  candidates:"))
    recipe["sft"]["learning_rate"] = 2e-3
    recipe["label"]["responses"] = recipe["sample"]["to"] = str(run / "data" / "others.jsonl")
    shutil.copy(run / "data" / "candidates.jsonl", run / "data" / "others.jsonl")
    assert main(write(recipe, tmp_path / "recipe.yaml")) == 2
    assert f"label: responses is '{run}/data/others.jsonl' now and was '{run}/data/cand" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.long
def test_an_export_stands_until_its_stage_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished one is skipped, though the evaluation before it is made anew; where it is written, no base is left."""
    run = tmp_path / "run"
    kept = ("tinyworld", "sft", "evaluate", "export")
    recipe = {key: value for key, value in small_recipe(run).items() if key in kept or key not in SMALL}
    recipe["export"] = recipe["export"] | {"role": "sft", "to": "{run}/exports/first", "parity": "none"}
    bases = []

    def counted_export(config: ExportConfig) -> dict[str, Any]:
        bases.append(count_quantized_storages())
        return export(config)

    monkeypatch.setattr("lora_rlhf.exporting.export.export", counted_export)
    place, manifest = run / "exports" / "first" / "export.json", run / "sft" / "manifest.json"
    run_recipe(recipe)
    run_recipe(recipe)
    assert len(bases) == 1
    (place.parent / "config.json").unlink()
    run_recipe(recipe)
    assert len(bases) == 2 and (place.parent / "config.json").exists()
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"id": "0123456789abcdef"}))
    run_recipe(recipe)
    assert len(bases) == 3 and json.loads(place.read_text())["source"]["id"] == "0123456789abcdef"
    assert set(bases) == {0}
    with pytest.raises(UserError, match="export: dtype is 'bfloat16' now and was 'float32' when this step finished"):
        run_recipe(recipe | {"export": recipe["export"] | {"dtype": "bfloat16"}})


def test_one_recipe_at_a_time_in_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    command = write(small_recipe(run), tmp_path / "recipe.yaml")
    run.mkdir()
    lock = Lock(run / ".recipe.lock")
    lock.acquire()
    assert main(command) == 2
    assert f"{run}: another process is at work there (process {os.getpid()}" in capsys.readouterr().err
    assert [path.name for path in run.iterdir()] == [".recipe.lock"]


def test_what_a_killed_recipe_left_half_is_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "data").mkdir(parents=True)
    left = [run / ".recipe.yaml.0123abcd.tmp", run / "data" / ".demonstrations.jsonl.0123abcd.tmp"]
    for path in left:
        path.write_text("half")
    left_out = ("sample", "label", "reward", "ppo", "evaluate", "export")
    run_recipe({key: value for key, value in small_recipe(run).items() if key not in left_out})
    assert not any(path.exists() for path in left)


@pytest.mark.slow
def test_ctrl_c_after_the_last_step_of_a_stage_stops_the_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    recipe = {
        key: value
        for key, value in small_recipe(run).items()
        if key not in ("label", "reward", "ppo", "evaluate", "export")
    }
    command = write(recipe, tmp_path / "recipe.yaml")
    boundary = Trainer.save_or_stop

    def late(self: Trainer, step: int, of: int, *args: Any, **kwargs: Any) -> None:
        boundary(self, step, of, *args, **kwargs)
        if step == of:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save_or_stop", late)
        assert main(command) == 130
    said = capsys.readouterr()
    assert "stopped after supervised fine-tuning, which is finished. Give the same command again to go on" in said.err
    assert not (run / "data" / "candidates.jsonl").exists()
    assert main(command) == 0
    assert "supervised fine-tuning: finished before, skipped" in capsys.readouterr().out
    assert (run / "data" / "candidates.jsonl").exists()


def test_a_stage_that_writes_to_the_base_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(config: SFTConfig, model: SharedModel) -> SharedModel:
        next(model.causal.parameters()).data.view(-1)[0] += 1
        return model

    monkeypatch.setattr(sft, "train", train)
    recipe = small_recipe(tmp_path / "run")
    with pytest.raises(RuntimeError, match="the base model was written to"):
        run_recipe({name: value for name, value in recipe.items() if name not in SMALL or name in ("tinyworld", "sft")})
