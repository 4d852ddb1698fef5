"""`lora-rlhf gate` from its arguments to its exit status, table and record; what is stale or was changed is refused."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf import __version__
from lora_rlhf.cli.main import main
from lora_rlhf.release.policy import PACKAGED_POLICY
from lora_rlhf.release.record import read_gate_record
from lora_rlhf.runs.folder import adapter_hash
from lora_rlhf.system.errors import UserError
from tests.support.releases import make_report, make_run, make_stage, rate, tensor_file, write_report


def records(run: Path) -> list[Path]:
    return sorted((run / "gate").iterdir()) if (run / "gate").exists() else []


def change_report(run: Path, **sections: Any) -> None:
    write_report(run, json.loads((run / "report.json").read_text()) | sections)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the gate says when it refuses; nothing is recorded then."""
    before = list(Path(".").rglob("gate/*"))
    assert main(["gate", *arguments]) == 2
    assert list(Path(".").rglob("gate/*")) == before
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "names",
    [
        ["--candidate", "first"],
        ["--candidate", "first/"],
        ["--candidate", "first:policy", "--baseline", "first:sft"],
        ["--candidate", "policy", "--baseline", "sft", "--report", "first/report.json"],
        ["--candidate", "policy", "--report", "first"],
        ["--candidate", "first", "--baseline", "base"],
    ],
)
def test_a_candidate_that_passes_exits_with_0(run: Path, names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    report = make_report(run)
    policy = run / "own.yaml"
    policy.write_text("win_rate: {at_least: 0.5}\nguards: [{figure: length, at_most: 30}]\n")
    write_report(run, report)
    assert main(["gate", *names, "--policy", str(policy)]) == 0
    out = capsys.readouterr().out
    baseline = "base" if "base" in names else "sft"
    assert f"policy may replace {baseline}: the win rate and every guard pass." in out
    assert [line for line in out.splitlines() if not line.startswith(" ")][:2] == ["pass  win_rate", "pass  length"]
    assert records(run)[0].name.endswith("-pass.json")


def test_a_candidate_that_fails_exits_with_1_and_says_why(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = make_report(run)
    report["win_rates"]["policy_vs_sft"] |= rate(0.45, 0.4, 0.5)
    report["audit"]["flags"]["length_inflation"] |= {"raised": True, "why": "twice as long"}
    write_report(run, report)
    with pytest.raises(SystemExit) as end:
        main(["gate", "--candidate", "first"])
    assert end.value.code == 1
    out = capsys.readouterr().out
    failed = [line.split()[1] for line in out.splitlines() if line.startswith("FAIL")]
    assert failed == ["win_rate", "audit.flags.length_inflation"]
    assert "FAIL  win_rate\n      needed low end at least 0.5\n      found  0.45 (0.4 to 0.5)\n" in out
    assert (
        "      found  raised: twice as long\n" in out and max(map(len, out.split("policy may")[0].splitlines())) <= 80
    )
    assert "policy may not replace sft: 2 of " in out and "win_rate, audit.flags.length_inflation." in out
    assert records(run)[0].name.endswith("-fail.json")
    assert read_gate_record(records(run)[0])["decision"] == "fail"


def test_the_record_holds_all_that_was_decided_upon(run: Path) -> None:
    assert main(["gate", "--candidate", "first", "--signed_off_by", "Ada"]) == 0
    record = read_gate_record(records(run)[0])
    assert (record["signed_off_by"], record["version"], record["decision"]) == ("Ada", __version__, "pass")
    assert record["report"]["sha256"] == hashlib.sha256((run / "report.json").read_bytes()).hexdigest()
    assert record["policy"]["sha256"] == hashlib.sha256(PACKAGED_POLICY.read_bytes()).hexdigest()
    assert record["policy"]["text"] == PACKAGED_POLICY.read_text()
    assert (record["candidate"]["id"], record["baseline"]["id"]) == ("ppo-id", "sft-id")
    assert record["candidate"]["adapter_sha256"] == adapter_hash(run / "ppo")
    assert record["candidate"]["adapter_compared"] is True
    by_figure = {row["figure"]: row for row in record["rows"]}
    assert by_figure["win_rate"] | {"rule": ""} == {
        **{"rule": "", "figure": "win_rate", "needed": "low end at least 0.5", "found": "0.7 (0.65 to 0.75)"},
        **{"decision": "pass", "value": 0.7, "low": 0.65, "high": 0.75, "is_let_pass": False},
    }
    assert str(run.resolve()) not in records(run)[0].read_text()


def test_a_record_is_never_written_over(run: Path) -> None:
    for _ in range(4):
        assert main(["gate", "--candidate", "first"]) == 0
    assert len(records(run)) == 4  # of which several are of the same second
    assert all(path.name.endswith("-pass.json") for path in records(run))


def test_the_run_of_another_name_is_found_by_its_stage(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path, "second")
    make_stage(other, "ppo", "another-ppo")
    report = make_report(run)
    report["systems"]["second:policy"] = make_report(other)["systems"]["policy"]
    report["win_rates"]["second:policy_vs_policy"] = rate(0.6, 0.55, 0.65)
    for row in report["figures"].values():
        row["second:policy"] = row["policy"]
    write_report(run, report)
    policy = tmp_path / "own.yaml"
    policy.write_text("win_rate: {at_least: 0.5}\nguards: [{figure: length, compare: ratio, at_most: 1.2}]\n")
    for name in ("second", "second:policy"):
        arguments = ["--candidate", name, "--baseline", "policy", "--report", "first/report.json"]
        assert main(["gate", *arguments, "--policy", str(policy)]) == 0
    assert len(records(other)) == 2 and records(run) == []
    assert read_gate_record(records(other)[0])["candidate"]["system"] == "second:policy"


def test_another_stage_on_disk_makes_a_report_stale(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_stage(run, "ppo", "made-anew")
    said = refused(capsys, "--candidate", "first")
    assert "stale" in said and "ppo-id" in said and "made-anew" in said


def test_another_adapter_makes_a_report_stale(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "ppo" / "adapter" / "adapter_model.safetensors").write_bytes(tensor_file(b"other weights"))
    assert "stale: it is about an adapter" in refused(capsys, "--candidate", "first")


def test_an_unfinished_stage_makes_a_report_stale(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_stage(run, "ppo", status="running")
    assert "running" in refused(capsys, "--candidate", "first")


def test_a_baseline_that_was_made_anew_makes_a_report_stale(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_stage(run, "sft", "made-anew")
    assert "stale" in refused(capsys, "--candidate", "first")


def test_a_report_without_adapter_hashes_is_taken_with_a_word(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = make_report(run)
    del report["systems"]["policy"]["adapter_sha256"]
    write_report(run, report)
    assert main(["gate", "--candidate", "first"]) == 0
    assert "only the stage's id was compared" in capsys.readouterr().out
    assert read_gate_record(records(run)[0])["candidate"]["adapter_compared"] is False


def test_a_run_that_moved_with_its_report_is_found(run: Path, tmp_path: Path) -> None:
    shutil.move("first", "moved")
    assert main(["gate", "--candidate", "moved"]) == 0
    assert main(["gate", "--candidate", "policy", "--report", "moved/report.json"]) == 0


def test_prompts_that_were_trained_on_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"prompts": 100, "seen": 3, "stages": []}
    change_report(run, training_data=data)
    assert "3 of 100 prompts stand in training data" in refused(capsys, "--candidate", "first")
    policy = run / "own.yaml"
    for share, status in ((0.03, 0), (0.029, 2)):
        policy.write_text(
            f"win_rate: {{at_least: 0.5}}\nseen_in_training: {{at_most: {share}}}\n"
            "guards: [{figure: length, at_most: 30}]\n"
        )
        assert main(["gate", "--candidate", "first", "--policy", str(policy)]) == status


@pytest.mark.parametrize(
    "data",
    [{}, {"prompts": 100}, {"prompts": 100, "seen": 0, "stages": [{"stage": "sft", "compared": "part"}]}],
)
def test_training_data_that_nobody_could_read_are_refused(
    run: Path, data: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    change_report(run, training_data=data)
    assert "is not known for all training data" in refused(capsys, "--candidate", "first")
    policy = run / "own.yaml"
    policy.write_text(PACKAGED_POLICY.read_text().replace("unknown: refuse", "unknown: pass"))
    assert main(["gate", "--candidate", "first", "--policy", str(policy)]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--candidate", "policy"], "the report must be named: --report RUN/report.json"),
        (["--candidate", "nobody", "--report", "first/report.json"], "is not among its systems: base, sft, policy"),
        (["--candidate", "first", "--baseline", "nobody"], "'nobody' is not among its systems"),
        (["--candidate", "first", "--baseline", "policy"], "candidate and baseline are both policy"),
        (["--candidate", "sft", "--baseline", "sft"], "candidate and baseline are both 'sft'"),
        (["--candidate", "first", "--policy", "none.yaml"], "none.yaml: cannot be read"),
        (["--candidate", "first", "--report", "none.json"], "none.json cannot be used: not there"),
        (["--candidate", " "], "candidate is empty"),
    ],
)
def test_a_mistake_is_named_before_anything_is_written(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *arguments)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 1},
        {"systems": []},
        {"candidate": "nobody"},
        {"figures": {"length": []}},
        {"figures": {"length": {"policy": {"value": "long"}}}},
        {"paired": {"length": {"policy": {"difference": 1, "low": 1}}}},
        {"win_rates": []},
    ],
)
def test_a_report_of_another_shape_is_refused(
    run: Path, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    change_report(run, **change)
    assert "report.json cannot be used" in refused(capsys, "--candidate", "first")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(decision="fail"), "changed after it was signed off"),
        (lambda record: record.update(signed_off_by="Grace"), "changed after it was signed off"),
        (lambda record: record["rows"][0].update(found="0.9"), "changed after it was signed off"),
        (lambda record: record["candidate"].update(id="other"), "changed after it was signed off"),
        (lambda record: record.update(seal="0" * 64), "changed after it was signed off"),
        (lambda record: record.pop("seal"), "'seal' is missing"),
        (lambda record: record.update(format=2), "format is 2, expected 1"),
        (lambda record: record.update(decision="yes"), "'decision' is 'yes', expected pass or fail"),
        (lambda record: record.update(rows=[3]), "expected an object"),
    ],
)
def test_a_changed_record_is_told(run: Path, change: Any, message: str) -> None:
    assert main(["gate", "--candidate", "first"]) == 0
    path = records(run)[0]
    read_gate_record(path)
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="cannot be used") as caught:
        read_gate_record(path)
    assert message in str(caught.value)
