"""`lora-rlhf package`: what is in it, that it is the same each time, tells no secrets or places, and can be checked."""

import csv
import hashlib
import json
import os
import shutil
import stat
import subprocess
import zipfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_rlhf.cli.main import main
from lora_rlhf.data.schema import Prompt, choose_split
from tests.support.releases import BASE, make_report, make_stage, paired, write_report

QUESTIONS = [f"What is {number} and {number}?" for number in range(40)]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settle(run: Path, stage: str, data: dict[str, Path], **config: Any) -> None:
    """The stage with these data on record, each by the path that was given, and this configuration."""
    record = {name: {"path": str(path), "sha256": sha256(path)} for name, path in data.items()}
    results = {"offset": 0.0, "label_agreement": 0.75, "label_agreement_pairs": 4}
    make_stage(run, stage, data=record, versions={"python": "3.11", "torch": "2.0"}, results=results)
    values = {"run": str(run), "seed": 0, "report_to": ["wandb"], "overwrite": True, **config}
    values |= {name: str(path) for name, path in data.items()}
    (run / stage / "config.yaml").write_text(yaml.safe_dump(values))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run in a folder of somebody's home, called by its absolute path, with data inside and beside it."""
    home = tmp_path / "home" / "somebody"
    run = home / "runs" / "mine"
    run.mkdir(parents=True)
    monkeypatch.chdir(home)
    demonstrations = write_rows(
        home / "private" / "rows.jsonl", [{"prompt": q, "completion": "No."} for q in QUESTIONS]
    )
    ranking = {"prompt": "Who?", "responses": ["a", "b", "c"]}
    labels = [("Ada", [1, 2, 3]), ("Bob", [1, 3, 2])]
    rankings = write_rows(run / "data" / "rankings.jsonl", [{**ranking, "ranks": r, "labeler": n} for n, r in labels])
    prompts = write_rows(run / "data" / "prompts.jsonl", [{"prompt": "Where to?"}])
    asked = write_rows(run / "data" / "evaluation.jsonl", [{"prompt": "How so?"}])
    settle(run, "sft", {"demonstrations": demonstrations}, validation_fraction=0.2, model="tinyworld")
    settle(run, "reward", {"rankings": rankings}, validation_fraction=0.0)
    settle(run, "ppo", {"prompts": prompts}, kl_coef=0.1, temperature=1.0, model=str(home / "models" / "base"))
    rows = [{"step": n, "ppo/kl_coef": 0.1 * n, "rollout/kl": 1.5, "rollout/score": 0.2} for n in (1, 2)]
    write_rows(run / "ppo" / "metrics.jsonl", rows)
    write_rows(run / "ppo" / "samples.jsonl", [{"step": 1, "prompt": "Where to?", "response": "To /usr/share/doc."}])
    write_rows(run / "evaluation_samples.jsonl", [{"prompt": "Is it in /etc/passwd?", "responses": {"policy": "No."}}])
    (run / "report.md").write_text(f"# Evaluation of {run}\n\nPrompts from `{asked}`, text from /srv/data/text.txt.\n")
    report = make_report(run)
    report["config"] = {"run": str(run), "prompts": str(asked), "text": "/srv/data/text.txt", "overwrite": True}
    report["sets"] = {"prompts": {"path": str(asked), "sha256": sha256(asked), "content_hash": "c" * 64}}
    report["audit"]["highest_reward"] = [{"prompt": "Is it in /etc/passwd?", "response": "See /srv/here.", "score": 1}]
    report["paired"]["sycophancy"]["policy"] = paired(0.05, 0.01, 0.09)
    report["paired"]["eos_rate"]["policy"] = paired(0.02, 0.01, 0.03)
    write_report(run, report)
    recipe = {"label": {"candidates": str(run / "data" / "candidates.jsonl"), "overlap": 2}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return run


def packed(run: Path, *flags: str, to: str = "out") -> Path:
    assert main(["package", str(run), "--to", to, *flags]) == 0
    return Path(to)


def test_data_recorded_by_a_relative_path_are_found_from_another_folder(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = load(made / "sft" / "manifest.json")
    manifest["data"]["demonstrations"] |= {"path": "private/rows.jsonl", "from_run": "../../private/rows.jsonl"}
    (made / "sft" / "manifest.json").write_text(json.dumps(manifest))
    (made.parents[1] / "elsewhere").mkdir()
    monkeypatch.chdir(made.parents[1] / "elsewhere")
    facts = next(facts for facts in load(packed(made) / "data" / "files.json") if facts["stage"] == "sft")
    assert facts["rows"]["used"] == len(QUESTIONS) and facts["file"] == "private/rows.jsonl"


def load(place: Path) -> Any:
    return json.loads(place.read_text())


def test_every_part_is_there(made: Path) -> None:
    out = packed(made)
    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert there == {
        *("MANIFEST.json", "commands.md", "repeat.sh", "release_note.md", "environment.json", "inputs.sha256"),
        "bill_of_materials.cdx.json",
        *(f"config/{name}.yaml" for name in ("recipe", "sft", "label", "reward", "ppo", "evaluate")),
        *("config/sampling.json", "config/kl_schedule.csv", "data/files.json", "labelling/protocol.json"),
        *(f"data/splits/{name}.jsonl" for name in ("sft_demonstrations", "reward_rankings", "ppo_prompts")),
        "data/splits/evaluate_prompts.jsonl",
        *("evaluation/report.json", "evaluation/report.md", "evaluation/evaluation_samples.jsonl"),
        *(f"stages/{stage}/manifest.json" for stage in ("sft", "reward", "ppo")),
        *("stages/ppo/metrics.jsonl", "stages/ppo/samples.jsonl"),
    }
    hashes = load(out / "MANIFEST.json")["files"]
    assert hashes.keys() == there - {"MANIFEST.json"}
    assert all(record["sha256"] == sha256(out / name) for name, record in hashes.items())


def test_the_bill_of_materials_lists_what_is_installed_and_the_base(made: Path) -> None:
    bill = load(packed(made) / "bill_of_materials.cdx.json")
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    model, *libraries = bill["components"]
    assert (model["type"], model["name"], model["version"]) == (
        "machine-learning-model",
        BASE["name"],
        BASE["source_hash"],
    )
    purls = {library["purl"] for library in libraries}
    torch_version = version("torch").replace("+", "%2B")
    assert {f"pkg:pypi/torch@{torch_version}", f"pkg:pypi/typing-extensions@{version('typing_extensions')}"} <= purls


def test_split_lists_hold_the_hashes_that_the_stages_split_by(made: Path) -> None:
    out = packed(made)
    rows = [json.loads(line) for line in (out / "data/splits/sft_demonstrations.jsonl").read_text().splitlines()]
    keys = [hashlib.sha256(f"user: {question.casefold()}".encode()).hexdigest() for question in QUESTIONS]
    assert [row["key"] for row in rows] == keys
    assert [row["split"] for row in rows] == [choose_split(Prompt.of(question).opening, 0.2) for question in QUESTIONS]
    assert set(Counter(row["split"] for row in rows)) == {"train", "validation"}
    assert [set(row) for row in rows] == [{"key", "split"}] * len(QUESTIONS)
    assert json.loads((out / "data/splits/evaluate_prompts.jsonl").read_text())["split"] == "evaluation"


def test_texts_are_packed_only_when_asked_for(made: Path) -> None:
    out = packed(made)
    assert not any("What is 7" in path.read_text() for path in out.rglob("*") if path.is_file())
    out = packed(made, "--with_texts", to="texts")
    rows = [json.loads(line) for line in (out / "data/splits/sft_demonstrations.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == QUESTIONS


def test_data_are_told_by_hash_schema_and_counts(made: Path) -> None:
    files = {(row["stage"], row["name"]): row for row in load(packed(made) / "data/files.json")}
    row = files["sft", "demonstrations"]
    assert row["file"] == "inputs/rows.jsonl" and row["sha256"] == sha256(Path("private/rows.jsonl"))
    assert row["columns"] == {"completion": ["text"], "prompt": ["text"]}
    assert row["rows"] == {"read": 40, "used": 40, "refused": 0} and sum(row["prompts"].values()) == 40
    row = files["reward", "rankings"]
    assert row["file"] == "mine/data/rankings.jsonl"
    assert row["columns"]["ranks"] == ["list of whole number"] and row["columns"]["responses"] == ["list of text"]
    assert files["evaluate", "prompts"]["prompts"] == {"evaluation": 1}


def test_data_that_changed_or_are_gone_are_left_out_by_name(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(made / "data" / "rankings.jsonl", "a") as file:
        file.write("\n")
    shutil.rmtree("private")
    out = packed(made)
    left = load(out / "MANIFEST.json")["left_out"]
    assert "has changed since reward read it" in left["data of reward: rankings"]
    assert "data of sft: demonstrations" in left
    assert "data of sft: demonstrations" in capsys.readouterr().out
    assert "data of reward: rankings" in (out / "release_note.md").read_text()


def test_how_labelers_worked_is_told_without_their_names(made: Path) -> None:
    Path("guide.md").write_text("# Rank by truth first\n")
    out = packed(made, "--guidelines", "guide.md", "--guidelines_version", "3.1")
    protocol = load(out / "labelling/protocol.json")
    assert protocol["guidelines"] == {"sha256": sha256(Path("guide.md")), "version": "3.1"}
    assert (out / "labelling/guidelines.md").read_text() == "# Rank by truth first\n"
    rankings = protocol["rankings"]
    assert (rankings["rankings"], rankings["prompts"], rankings["labelers"]) == (2, 1, 2)
    # of the pairs ab, ac and bc, the two order the last one apart
    assert rankings["agreement"] == {"rate": pytest.approx(2 / 3, abs=1e-12), "pairs": 3}
    assert protocol["measured_by_the_reward_stage"]["label_agreement"] == 0.75
    assert not any("Ada" in path.read_text() for path in out.rglob("*") if path.is_file())


def test_the_kl_schedule_is_that_of_the_metrics(made: Path) -> None:
    rows = list(csv.DictReader((packed(made) / "config/kl_schedule.csv").read_text().splitlines()))
    assert [(row["step"], row["ppo/kl_coef"], row["rollout/kl"]) for row in rows] == [
        ("1", "0.1", "1.5"),
        ("2", "0.2", "1.5"),
    ]


def test_the_release_note_names_what_got_measurably_worse(made: Path) -> None:
    note = (packed(made) / "release_note.md").read_text()
    worse, better = note.split("## Measured regressions")[1].split("## Measured improvements")
    assert "sycophancy (share): +0.05 (+0.01 to +0.09)" in worse and "ended by itself" not in worse
    assert "ended by itself (share): +0.02" in better.split("##")[0]
    assert "repetition" not in worse + better.split("##")[0]  # its interval holds 0
    assert "length" not in worse  # of which nobody says which way is better
    assert "policy beats sft on 70 % of prompts." in note and "Win rate up on new prompts? **yes**" in note


def test_gate_records_are_packed_as_they_are(made: Path) -> None:
    report = load(made / "report.json")
    report["paired"]["sycophancy"]["policy"] = paired(0.0, -0.1, 0.1)
    write_report(made, report)
    assert main(["gate", "--candidate", str(made), "--signed_off_by", "Ada"]) == 0
    (made / "gate" / "20260101T000000Z-pass.json").write_text('{"format": 1, "decision": "pass"}')
    out = packed(made)
    record = next((out / "gate").iterdir())
    assert (
        len(list((out / "gate").iterdir())) == 1 and record.read_bytes() == (made / "gate" / record.name).read_bytes()
    )
    assert f"{record.name}: pass on" in (out / "release_note.md").read_text()
    assert "gate record 20260101T000000Z-pass.json" in load(out / "MANIFEST.json")["left_out"]


def test_configurations_begin_afresh_in_the_packages_folder(made: Path) -> None:
    out = packed(made)
    sft = yaml.safe_load((out / "config/sft.yaml").read_text())
    assert (sft["run"], sft["demonstrations"], sft["model"]) == ("mine", "inputs/rows.jsonl", "tinyworld")
    assert (sft["report_to"], sft["overwrite"], sft["validation_fraction"]) == ([], False, 0.2)
    evaluate = yaml.safe_load((out / "config/evaluate.yaml").read_text())
    assert (evaluate["prompts"], evaluate["text"]) == ("mine/data/evaluation.jsonl", "inputs/text.txt")
    assert (out / "inputs.sha256").read_text() == f"{sha256(Path('private/rows.jsonl'))}  inputs/rows.jsonl\n"
    page = (out / "commands.md").read_text()
    commands = [line for line in page.splitlines() if line.startswith("lora-rlhf ")]
    assert commands == [
        f"lora-rlhf {command} --config config/{name}.yaml"
        for command, name in [
            *(("sft", "sft"), ("tinyworld label", "label"), ("reward", "reward"), ("ppo", "ppo")),
            ("evaluate", "evaluate"),
        ]
    ]
    assert [line for line in (out / "repeat.sh").read_text().splitlines() if line.startswith("lora-rlhf ")] == commands
    assert "`inputs/rows.jsonl`: sha256" in page and "torch 2.0" in page


def test_the_script_stops_at_inputs_that_are_others(made: Path, tmp_path: Path) -> None:
    out = packed(made)
    tool = tmp_path / "bin" / "lora-rlhf"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "$@" >> "$LOG"\n')
    tool.chmod(0o755)
    log = tmp_path / "log"
    environment = {**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}", "LOG": str(log)}
    (out / "inputs").mkdir()
    shutil.copy("private/rows.jsonl", out / "inputs")
    subprocess.run([out / "repeat.sh"], check=True, env=environment, capture_output=True)
    assert len(log.read_text().splitlines()) == 5
    (out / "inputs" / "rows.jsonl").write_text("{}\n")
    assert subprocess.run([out / "repeat.sh"], env=environment, capture_output=True).returncode != 0
    assert len(log.read_text().splitlines()) == 5


def test_no_place_of_this_machine_is_told(made: Path, tmp_path: Path) -> None:
    out = packed(made, "--with_adapters")
    people_wrote = {"evaluation/evaluation_samples.jsonl", "stages/ppo/samples.jsonl"}
    for path in out.rglob("*"):
        name = path.relative_to(out).as_posix()
        if path.is_file() and name not in people_wrote:
            text = path.read_text()
            assert str(tmp_path) not in text and "somebody" not in text and "/srv/data" not in text, name
    assert "/usr/share/doc" in (out / "stages/ppo/samples.jsonl").read_text()
    assert "/etc/passwd" in (out / "evaluation/evaluation_samples.jsonl").read_text()
    row = load(out / "evaluation/report.json")["audit"]["highest_reward"][0]
    assert (row["prompt"], row["response"]) == ("Is it in /etc/passwd?", "See /srv/here.")
    assert (out / "evaluation/report.md").read_text() == (
        "# Evaluation of mine\n\nPrompts from `mine/data/evaluation.jsonl`, text from inputs/text.txt.\n"
    )
    rewritten = load(out / "MANIFEST.json")["rewritten"]
    assert rewritten["evaluation/report.json"] == sha256(made / "report.json")
    assert rewritten["evaluation/report.md"] == sha256(made / "report.md")


def test_weights_are_packed_only_when_asked_for(made: Path) -> None:
    (made / "ppo" / "adapter" / "adapter_config.json").write_text(
        json.dumps({"r": 2, "base_model_name_or_path": "/home/somebody/base"})
    )
    assert not (packed(made) / "adapters").exists()
    out = packed(made, "--with_adapters", to="weights")
    assert (out / "adapters/ppo/adapter/adapter_model.safetensors").read_bytes().endswith(b"weights of ppo")
    noted = load(out / "adapters/ppo/adapter/adapter_config.json")
    assert noted == {"r": 2, "base_model_name_or_path": BASE["name"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf_" + "a" * 34, "what looks like a key"),
        ("sk-" + "b" * 24, "what looks like a key"),
        ("https://me:word@host/v1", "what looks like a key"),
        ("very-secret-word", "the value of $OWN_API_KEY"),
    ],
)
def test_a_secret_is_refused(
    made: Path, text: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OWN_API_KEY", "very-secret-word")
    (made / "report.md").write_text(f"judged by {text}")
    assert main(["package", str(made), "--to", "out.zip"]) == 2
    said = capsys.readouterr().err
    assert "evaluation/report.md" in said and message in said and text not in said
    assert not Path("out.zip").exists()


def test_the_same_run_packs_to_the_same_bytes(made: Path) -> None:
    one, other = packed(made, to="one.zip"), packed(made, to="other.zip")
    assert one.read_bytes() == other.read_bytes()
    folder = packed(made, to="folder")
    with zipfile.ZipFile(one) as archive:
        assert archive.testzip() is None
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        for name in archive.namelist():
            assert archive.read(name) == (folder / name).read_bytes()
    shutil.copytree(made, made.parent.parent / "elsewhere" / "mine")
    os.utime(made / "report.md", (0, 0))
    assert packed(made, to="third.zip").read_bytes() == one.read_bytes()


def test_a_moved_run_is_packed_with_its_own_data(made: Path) -> None:
    moved = Path("elsewhere") / "theirs"
    shutil.move(made, moved.parent.parent / "parked")
    moved.parent.mkdir()
    shutil.move("parked", moved)
    out = packed(moved)
    files = {(row["stage"], row["name"]): row for row in load(out / "data/files.json")}
    assert files["reward", "rankings"]["file"] == "theirs/data/rankings.jsonl"
    assert (out / "data/splits/reward_rankings.jsonl").is_file()
    assert yaml.safe_load((out / "config/reward.yaml").read_text())["rankings"] == "theirs/data/rankings.jsonl"


@pytest.mark.parametrize("to", ["out.zip", "out"])
def test_a_package_can_be_checked(made: Path, to: str, capsys: pytest.CaptureFixture[str]) -> None:
    packed(made, to=to)
    told = capsys.readouterr().out
    assert main(["package", "--verify", to]) == 0
    assert told.split("MANIFEST.json: ")[1].split()[0] in capsys.readouterr().out


def changed_zip(path: Path, change: Any) -> None:
    """The zip again, with another set of files."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files.update({"repeat.sh": b"rm -rf ."}), "repeat.sh: its content has changed"),
        (lambda files: files.pop("environment.json"), "environment.json: is not there"),
        (lambda files: files.update({"more.txt": b""}), "more.txt: is not of the package"),
    ],
)
def test_a_changed_package_is_told(made: Path, change: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    changed_zip(packed(made, to="out.zip"), change)
    with pytest.raises(SystemExit) as end:
        main(["package", "--verify", "out.zip"])
    assert end.value.code == 1 and message in capsys.readouterr().out


def test_a_flipped_byte_is_told(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = packed(made, to="out.zip")
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"# How to repeat") + 3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(SystemExit):
        main(["package", "--verify", "out.zip"])
    assert "commands.md: its content has changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files.pop("MANIFEST.json"), "holds no MANIFEST.json"),
        (lambda files: files.update({"MANIFEST.json": b"[]"}), "expected an object"),
        (lambda files: files.update({"MANIFEST.json": b'{"format": 2}'}), "format is 2"),
        (
            lambda files: files.update({"MANIFEST.json": b'{"format": 1, "files": {"../x": {"sha256": "0"}}}'}),
            "leads out of the package",
        ),
    ],
)
def test_what_is_no_package_is_refused(
    made: Path, change: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changed_zip(packed(made, to="out.zip"), change)
    assert main(["package", "--verify", "out.zip"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["package"], "name a run and where to"),
        (["package", "{run}"], "name a run and where to"),
        (["package", "none", "--to", "out"], "none: holds no stage"),
        (["package", "{run}", "--to", "none/out.zip"], "the folder none is not there"),
        (["package", "{run}", "--to", "there"], "there: is there already; --overwrite replaces it"),
        (["package", "{run}", "--to", "runs", "--overwrite"], "holds the run itself"),
        (["package", "{run}", "--to", "out", "--report", "none.json"], "there is no such report"),
        (["package", "{run}", "--to", "out", "--guidelines", "none.md"], "none.md: cannot be read"),
        (["package", "{run}", "--to", "out", "--guidelines_version", "1"], "without guidelines"),
        (["package", "{run}", "--verify", "there"], "leave out folder"),
        (["package", "--verify", "none.zip"], "none.zip: cannot be read"),
        (["package", "--verify", "there"], "there: holds no MANIFEST.json"),
        (["package", "--verify", "guide.md"], "not a zip that can be read"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(
    made: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("there").mkdir()
    Path("guide.md").write_text("# Guide")
    assert main([argument.format(run=made) for argument in arguments]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists() and list(Path("there").iterdir()) == []


def test_an_older_report_is_packed_and_the_note_says_so(made: Path) -> None:
    (made / "report.json").write_text(json.dumps({"config": {"run": str(made), "prompts": "x/y"}, "stages": ["base"]}))
    out = packed(made)
    assert load(out / "evaluation/report.json")["stages"] == ["base"]
    assert "figures in the release note" in load(out / "MANIFEST.json")["left_out"]
    assert "No figures" in (out / "release_note.md").read_text()


@pytest.mark.parametrize(("name", "most"), [("report.json", 2**24), ("report.md", 2**22)])
def test_a_text_of_terabytes_is_not_read(made: Path, name: str, most: int, capsys: pytest.CaptureFixture[str]) -> None:
    (made / name).touch()
    os.truncate(made / name, most + 1)
    assert main(["package", str(made), "--to", "out"]) == 2
    assert f"{name} cannot be used: {most + 1:,} bytes, more than the {most:,}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        *("ppo/adapter/adapter_model.safetensors", "ppo/adapter/notes.bin", "ppo/samples.jsonl", "ppo/metrics.jsonl"),
        "evaluation_samples.jsonl",
    ],
)
def test_a_gibibyte_of_zeros_is_not_copied(made: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (made / name).write_bytes(b"")
    os.truncate(made / name, 2**30 - 1)
    assert main(["package", str(made), "--to", "out", "--with_adapters"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{made / name}" in said and not Path("out").exists()


def test_metrics_that_a_kill_cut_off_are_named(made: Path) -> None:
    with open(made / "ppo" / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "ppo/kl_')
    out = packed(made)
    assert "ppo/metrics.jsonl cannot be read" in load(out / "MANIFEST.json")["left_out"]["KL schedule"]
    assert not (out / "config/kl_schedule.csv").exists() and (out / "stages/ppo/metrics.jsonl").exists()


@pytest.mark.parametrize(
    "report", [{"config": 3, "sets": []}, {"config": {"prompts": "none.jsonl"}, "sets": {"prompts": 1}}]
)
def test_a_report_of_any_shape_ends_in_a_package(made: Path, report: dict[str, Any]) -> None:
    (made / "report.json").write_text(json.dumps(report))
    assert load(packed(made) / "evaluation/report.json") == report


def test_a_package_is_replaced_only_when_asked_for(made: Path) -> None:
    packed(made)
    before = (Path("out") / "MANIFEST.json").read_bytes()
    assert main(["package", str(made), "--to", "out"]) == 2
    assert (Path("out") / "MANIFEST.json").read_bytes() == before
    packed(made, "--with_texts", "--overwrite")
    assert (Path("out") / "MANIFEST.json").read_bytes() != before


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("tool", stat.S_IFREG | stat.S_ISUID | 0o755, "no plain file"),
        ("tool", stat.S_IFREG | stat.S_ISGID | 0o755, "no plain file"),
        ("tool", stat.S_IFLNK | 0o777, "no plain file"),
        ("tool", stat.S_IFIFO | 0o644, "no plain file"),
        ("..\\\\tool", stat.S_IFREG | 0o644, "no plain file"),
        ("line\nbreak", stat.S_IFREG | 0o644, "no plain file"),
        ("unlisted/", stat.S_IFDIR | 0o755, "unlisted/: is not of the package"),
    ],
)
def test_entries_that_a_package_never_has_are_refused(
    made: Path, name: str, mode: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    packed(made, to="out.zip")
    with zipfile.ZipFile("out.zip", "a") as archive:
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, mode << 16
        archive.writestr(info, b"")
    if "unlisted" in name:
        with pytest.raises(SystemExit):
            main(["package", "--verify", "out.zip"])
    else:
        assert main(["package", "--verify", "out.zip"]) == 2
    output = capsys.readouterr()
    assert message in output.out + output.err


def test_a_package_in_a_folder_holds_plain_files_in_listed_folders(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = packed(made)
    assert main(["package", "--verify", "out"]) == 0
    (out / "unlisted").mkdir()
    with pytest.raises(SystemExit):
        main(["package", "--verify", "out"])
    assert "unlisted/: is not of the package" in capsys.readouterr().out
    (out / "unlisted").rmdir()
    (out / "repeat.sh").chmod(0o4755)
    assert main(["package", "--verify", "out"]) == 2
    (out / "repeat.sh").chmod(0o755)
    (out / "link").symlink_to("/etc")
    assert main(["package", "--verify", "out"]) == 2
