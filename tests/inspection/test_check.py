import gzip
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.configs.stages import RewardConfig, SFTConfig
from lora_rlhf.inspection.check import check_data, run_check
from lora_rlhf.inspection.config import CheckConfig
from lora_rlhf.inspection.text import report_text
from lora_rlhf.inspection.usage import READERS
from lora_rlhf.system.errors import UserError

DEMONSTRATIONS = [{"prompt": f"Question {n}?", "completion": f"Answer {n} is this."} for n in range(40)]
RANKINGS = [
    {"prompt": f"Task {n}", "responses": ["long words", "short", "mid one"], "ranks": [1, 2, 2], "labeler": "ann"}
    for n in range(30)
]
PROMPTS = [{"prompt": f"Ask {n}"} for n in range(20)]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def checked(*files: str, **settings: Any) -> dict[str, Any]:
    return check_data(CheckConfig(files=files, **settings))


def test_files_of_several_kinds_at_once(tmp_path: Path) -> None:
    names = [
        write(tmp_path / "demonstrations.jsonl", DEMONSTRATIONS),
        write(tmp_path / "rankings.jsonl", RANKINGS),
        write(tmp_path / "prompts.jsonl", PROMPTS),
        write(tmp_path / "texts.jsonl", [{"text": "Some plain words."}]),
    ]
    report = checked(*names)
    assert report["ok"]
    assert [file["kinds"] for file in report["files"]] == [
        {"demonstrations": 40},
        {"rankings": 30},
        {"prompts": 20},
        {"texts": 1},
    ]
    assert report["files"][1]["rankings"]["pairs"] == 60
    assert report["files"][1]["rankings"]["longer_wins"]["rate"] == 1
    (sft,), (reward,), (ppo,), (texts,) = (file["stages"] for file in report["files"])
    assert (sft["stage"], sft["used"], sft["refused"]) == (READERS["demonstrations"], 40, 0)
    assert (reward["stage"], reward["used"], reward["tied"]) == (READERS["rankings"], 30, 0)
    assert (ppo["stage"], ppo["different"], ppo["split"]) == (READERS["prompts"], 20, None)
    assert (texts["stage"], texts["used"], texts["split"]) == (READERS["texts"], 1, None)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_every_row_is_counted_and_every_refusal_is_written(tmp_path: Path) -> None:
    bad = [{"prompt": f"p{n}", "completion": ""} for n in range(50)]
    name = write(tmp_path / "mixed.jsonl", [*DEMONSTRATIONS, *bad, "not json", {"prompt": 3, "completion": "x"}])
    target = tmp_path / "refused.jsonl"
    report = checked(name, refused=str(target))
    file = report["files"][0]
    assert file["rows"] == {"read": 92, "used": 40, "refused": 52, "breaks": 0}
    assert [reason["count"] for reason in file["refused"]] == [50, 1, 1]
    assert file["refused"][0]["examples"][0]["place"] == f"{name}:41"
    written = [json.loads(line) for line in target.read_text().splitlines()]
    assert sorted(row["place"] for row in written) == [f"{name}:{number}" for number in range(41, 93)]
    assert {row["reason"] for row in written} == {reason["reason"] for reason in file["refused"]}
    assert report["ok"]


def test_strict_faults_any_refusal(tmp_path: Path) -> None:
    name = write(tmp_path / "mixed.jsonl", [*DEMONSTRATIONS, "not json"])
    report = checked(name, strict=True)
    assert not report["ok"]
    assert report["faults"] == [f"{name}: 1 of 41 rows refused (--strict)"]
    assert checked(write(tmp_path / "good.jsonl", DEMONSTRATIONS), strict=True)["ok"]


def test_damaged_file_is_reported_beside_the_others(tmp_path: Path) -> None:
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in RANKINGS * 200).encode())
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(packed[: len(packed) // 2])
    good = write(tmp_path / "good.jsonl", DEMONSTRATIONS)
    report = checked(str(broken), good)
    assert not report["ok"]
    assert len(report["faults"]) == 1
    assert report["faults"][0].startswith(f"{broken}:") and "nobody can say how many" in report["faults"][0]
    rows = report["files"][0]["rows"]
    assert 0 < rows["used"] < 6000
    assert rows == {"read": rows["used"], "used": rows["used"], "refused": 0, "breaks": 1}
    assert report["files"][0]["refused"] == []
    assert report["files"][1]["rows"]["used"] == 40


@pytest.mark.parametrize(
    ("content", "fault"),
    [("", "no rows; the file is empty"), ('{"prompt": ""}\n{"prompt": ""}\n', "none of its 2 rows can be used")],
)
def test_file_without_a_usable_row(tmp_path: Path, content: str, fault: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    assert checked(str(path))["faults"] == [f"{path}: {fault}"]


def test_missing_file_does_not_stop_the_others(tmp_path: Path) -> None:
    good = write(tmp_path / "good.jsonl", DEMONSTRATIONS)
    report = checked(str(tmp_path / "gone.jsonl"), good, held_out=(str(tmp_path / "away.jsonl"),))
    assert "no such file" in report["files"][0]["error"]
    assert report["files"][1]["rows"]["used"] == 40
    assert len(report["faults"]) == 2
    assert report["leakage"] == []


def test_leakage_and_overlap(tmp_path: Path) -> None:
    demonstrations = write(tmp_path / "demonstrations.jsonl", DEMONSTRATIONS)
    prompts = write(tmp_path / "prompts.jsonl", [*PROMPTS, {"prompt": "QUESTION 3?"}])
    held_out = write(tmp_path / "held_out.jsonl", [DEMONSTRATIONS[3], DEMONSTRATIONS[5], {"prompt": "New"}])
    report = checked(demonstrations, prompts, held_out=(held_out,))
    assert [(row["file"], row["prompts"], row["exact"]) for row in report["leakage"]] == [
        (demonstrations, 3, 2),
        (prompts, 3, 1),
    ]
    assert [(row["file"], row["other"], row["exact"]) for row in report["overlap"]] == [(demonstrations, prompts, 1)]
    assert report["advice"][0]["file"] == held_out


def test_folder_with_files_that_are_no_data(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", DEMONSTRATIONS)
    write(tmp_path / "b.jsonl", DEMONSTRATIONS[:5])
    (tmp_path / "README.md").write_text("About the data.")
    file = checked(str(tmp_path))["files"][0]
    assert (file["files"], file["skipped"]) == (2, [str(tmp_path / "README.md")])
    assert file["duplicates"]["repeated_rows"] == 5


def test_kind_and_format_that_are_asked_for(tmp_path: Path) -> None:
    name = write(tmp_path / "rankings.jsonl", RANKINGS)
    assert checked(name, kind="prompts")["files"][0]["kinds"] == {"prompts": 30}
    assert "rankin" in checked(name, format="rankin")["files"][0]["error"]


def test_tokens_are_counted_with_a_model(tmp_path: Path) -> None:
    name = write(tmp_path / "demonstrations.jsonl", DEMONSTRATIONS)
    tokens = checked(name, model="tinyworld", max_response_tokens=2, token_rows=16)["files"][0]["tokens"]
    assert not tokens["exact"]
    assert 8 <= tokens["rows"] <= 16
    assert tokens["limits"]["max_response_tokens"]["over"] == tokens["limits"]["max_response_tokens"]["lost"] == 1


def test_nothing_from_the_data_controls_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trick = "\x1b[2J\u202egnp"
    rows = [*DEMONSTRATIONS, {"messages": [{"role": trick, "content": "x"}]}, {trick: 1}, {"prompt": "q", trick: "x"}]
    name = write(tmp_path / "odd\x1b[31m.jsonl", [*rows, {"prompt": "q", "completion": "a", trick: "x"}])
    run_check(CheckConfig(files=(name,)))
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    assert r"\x1b[2J\u202e" in printed
    assert r"odd\x1b[31m.jsonl" in printed


def test_command_prints_json_and_then_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = write(tmp_path / "bad\x1b.jsonl", ["{}"])
    with pytest.raises(UserError, match="not even its only row can be used") as error:
        run_check(CheckConfig(files=(name,), json=True))
    assert "\x1b" not in str(error.value)
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["files"][0]["rows"] == {"read": 1, "used": 0, "refused": 1, "breaks": 0}


def split_as_hashed(rows: list[dict[str, Any]], fraction: float) -> tuple[int, int]:
    """(train, validation) by the hash of the one message's key."""
    keys = [f"user: {row['prompt'].lower()}" for row in rows]
    held_out = sum(int(hashlib.sha256(key.encode()).hexdigest()[:16], 16) / 2**64 < fraction for key in keys)
    return len(rows) - held_out, held_out


PAIRS = [{"prompt": f"Task {n}", "chosen": "long words", "rejected": "short"} for n in range(90)]
MANY = [{"prompt": f"Question {n}?", "completion": f"Answer {n} is this."} for n in range(60)]


def test_a_file_of_several_kinds_tells_what_each_stage_uses_and_why_it_refuses_the_others(tmp_path: Path) -> None:
    name = write(tmp_path / "mixed.jsonl", [*MANY, "not json", *PAIRS])
    file = checked(name)["files"][0]
    assert file["rows"] == {"read": 151, "used": 150, "refused": 1, "breaks": 0}
    sft, reward = file["stages"]
    assert (sft["stage"], sft["used"], sft["refused"]) == (READERS["demonstrations"], 60, 91)
    assert (reward["stage"], reward["used"], reward["refused"]) == (READERS["rankings"], 90, 61)
    assert list(sft["reasons"].values()) == [90, 1]
    assert next(iter(sft["reasons"])).startswith("the row holds rankings, not demonstrations")
    for stage, rows, fraction in ((sft, MANY, 0.05), (reward, PAIRS, 0.1)):
        split = stage["split"]
        assert (split["train"], split["validation"]) == split_as_hashed(rows, fraction)
        assert split["fraction"] == fraction and split["validation"] > 0
    printed = " ".join(report_text(checked(name)).split())
    assert f"for {READERS['demonstrations']} 60 of 151 rows: {60 - sft['split']['validation']} train" in printed
    assert "at fraction 0.1; 60 refused: the row holds demonstrations, not rankings" in printed


def test_stages_split_as_a_training_would(tmp_path: Path) -> None:
    names = write(tmp_path / "d.jsonl", MANY), write(tmp_path / "r.jsonl", PAIRS)
    own = SFTConfig.validation_fraction, RewardConfig.validation_fraction
    for given, fractions in ((None, own), (0.3, (0.3, 0.3))):
        report = checked(*names, validation_fraction=given)
        for file, rows, fraction in zip(report["files"], (MANY, PAIRS), fractions, strict=True):
            (stage,) = file["stages"]
            assert stage["split"]["fraction"] == fraction
            assert (stage["split"]["train"], stage["split"]["validation"]) == split_as_hashed(rows, fraction)
    assert CheckConfig(files=names).faults() == []
    assert "validation_fraction is 20" in CheckConfig(files=names, validation_fraction=20).faults()[0]


def test_rankings_that_are_tied_throughout_are_on_neither_side(tmp_path: Path) -> None:
    tied = [{"prompt": f"Tied {n}", "responses": ["a", "b"], "ranks": [1, 1]} for n in range(7)]
    (stage,) = checked(write(tmp_path / "r.jsonl", [*RANKINGS, *tied]))["files"][0]["stages"]
    assert (stage["used"], stage["tied"]) == (37, 7)
    assert stage["split"]["train"] + stage["split"]["validation"] == 30


def test_rows_that_are_no_rankings_alone_may_be_demonstrations(tmp_path: Path) -> None:
    rows = [{"prompt": f"P {n}", "completion": "x", "label": n % 4 == 0} for n in range(40)]
    report = checked(write(tmp_path / "kto.jsonl", rows))
    sft, reward = report["files"][0]["stages"]
    assert (sft["used"], sft["refused"], sft["reasons"]) == (10, 30, {"the answer is labelled as bad": 30})
    assert (reward["used"], reward["refused"]) == (0, 40)
    assert report["ok"], "one stage can use it"


def test_prompts_count_once_for_ppo(tmp_path: Path) -> None:
    name = write(tmp_path / "prompts.jsonl", [*PROMPTS, *PROMPTS[:5]])
    assert "for ppo 25 rows: 20 different prompts" in " ".join(report_text(checked(name)).split())


def test_one_is_one(tmp_path: Path) -> None:
    ranking = {"prompt": "Task", "responses": ["aa", "b", "c"], "ranks": [1, 2, 2], "labeler": "ann"}
    pair = {"prompt": "Task", "responses": ["aa", "b"], "ranks": [1, 2]}
    names = [write(tmp_path / "three.jsonl", [ranking]), write(tmp_path / "pair.jsonl", [pair] * 2)]
    printed = " ".join(report_text(checked(*names, held_out=(names[1],))).split())
    for said in (
        "2 pairs, 1 tie;",
        "; 1 labeler",
        f"for {READERS['rankings']} 1 row:",
        "holds 1 of 1 held-out prompt of",
    ):
        assert said in printed, printed
    assert "pair.jsonl holds 1 prompt of three.jsonl" in printed
    assert re.search(r"(?<![.\d])1 (pairs|ties|rows|prompts|labelers|held-out prompts)\b", printed) is None


@pytest.mark.parametrize("flag", ["plot", "refused"])
def test_folders_to_write_in_are_there_before_reading(tmp_path: Path, flag: str) -> None:
    with pytest.raises(UserError, match=f"--{flag} .*no such folder"):
        checked(str(tmp_path / "gone.jsonl"), **{flag: str(tmp_path / "none" / "file")})


@pytest.mark.parametrize("flag", ["plot", "refused"])
@pytest.mark.parametrize("role", ["files", "held_out"])
def test_no_input_is_written_over(tmp_path: Path, flag: str, role: str) -> None:
    name = write(tmp_path / "rows.jsonl", DEMONSTRATIONS)
    other = write(tmp_path / "other.jsonl", PROMPTS)
    before = Path(name).read_bytes()
    inputs: dict[str, Any] = {"files": (other,), role: (name,), flag: name}
    with pytest.raises(UserError, match=f"--{flag} .*would destroy it"):
        run_check(CheckConfig(**inputs))
    assert Path(name).read_bytes() == before


@pytest.mark.parametrize(("name", "fits"), [("x.png", True), ("x.PNG", True), ("x.pdf", False), ("png", False)])
def test_a_plot_is_a_png(name: str, fits: bool) -> None:
    faults = CheckConfig(files=("a.jsonl",), plot=name).faults()
    assert bool(faults) is not fits
    assert all(name in fault and ".png" in fault for fault in faults)


def test_plot_of_all_kinds(tmp_path: Path) -> None:
    names = [
        write(tmp_path / "a$x_1$.jsonl", [*RANKINGS, "not json"]),
        write(tmp_path / "b.jsonl", [{"text": "words"}]),
        str(tmp_path / "gone.jsonl"),
    ]
    target = tmp_path / "check.png"
    with pytest.raises(UserError, match="no such file"):
        run_check(CheckConfig(files=tuple(names), plot=str(target)))
    assert target.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_plain_check_needs_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    name = write(tmp_path / "rankings.jsonl", RANKINGS)
    code = (
        "import sys; from lora_rlhf.inspection.config import CheckConfig\n"
        "from lora_rlhf.inspection.check import run_check\n"
        f"run_check(CheckConfig(files=({name!r},)))\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'datasets', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_column_that_is_there_but_empty_is_named(tmp_path: Path) -> None:
    name = write(tmp_path / "rows.jsonl", [{"prompt": f"Ask {n}", "completion": None} for n in range(9)])
    report = checked(name)
    (reason,) = report["files"][0]["refused"]
    assert reason["reason"] == "a needed column is empty" and reason["examples"][0]["detail"] == "completion"
    assert report["faults"] == [f"{name}: none of its 9 rows can be used"]
    assert checked(name, kind="prompts")["files"][0]["rows"]["used"] == 9
    name = write(tmp_path / "prompts.jsonl", [{"prompt": f"Ask {n}", "winner": None} for n in range(9)])
    (piece,) = checked(name)["advice"]
    assert piece["text"] == "column 'winner' is there but empty in 100.0 % of rows, so they are read as prompts."


def test_columns_that_no_format_names_are_named_by_the_flag(tmp_path: Path) -> None:
    rows = [{"ask": f"Ask {n}", "reply": f"Answer {n}", "label": n % 2 == 0} for n in range(20)]
    name = write(tmp_path / "rows.jsonl", rows)
    report = checked(name)
    detail = report["files"][0]["refused"][0]["examples"][0]["detail"]
    assert detail.endswith("try --columns prompt=ask,response=reply")
    sft, _ = checked(name, columns="prompt=ask,response=reply")["files"][0]["stages"]
    assert (sft["used"], sft["reasons"]) == (10, {"the answer is labelled as bad": 10})
    (sft,) = checked(name, columns="prompt=ask,response=reply,ignore=label")["files"][0]["stages"]
    assert sft["used"] == 20


def test_rows_that_are_prompts_alone_are_offered_as_prompts(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"Ask {n}"}]} for n in range(12)]
    file = checked(write(tmp_path / "rows.jsonl", rows))["files"][0]
    sft, ppo = file["stages"]
    assert (sft["used"], ppo["stage"].split(", ")[-1], ppo["used"]) == (0, "ppo", 12)
    assert file["refused"][0]["examples"][0]["detail"] == "a prompt alone is for lora-rlhf ppo --prompts"
