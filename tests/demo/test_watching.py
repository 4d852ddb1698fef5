"""What is watched: files that grow, curves, states and samples of runs, finished or not."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from lora_rlhf_demo import chart
from lora_rlhf_demo.tail import Tail
from lora_rlhf_demo.watch import Watcher, pick_evenly

from lora_rlhf.configs.stages import PPOConfig, SFTConfig
from lora_rlhf.runs.folder import StageFolder, stage_lock
from lora_rlhf.system.errors import UserError

BASE = {
    "name": "m", "revision": None, "quantization": "none", "compute_dtype": "float32", "trust_remote_code": False,
    "source_hash": "0", "chat_template": None,
}  # fmt: skip


def line(**row: Any) -> str:
    return json.dumps(row) + "\n"


def begin(root: Path, run: str = "first", **changes: Any) -> StageFolder:
    """A PPO stage that has begun and logged nothing."""
    folder = StageFolder(PPOConfig(run=str(root / run), prompts="p.jsonl", **changes), "ppo")
    folder.begin(BASE, {}, {})
    return folder


# Files


def test_only_whole_lines_count_and_a_torn_one_counts_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_text(line(step=1) + '{"step": 2, "a')
    assert tail.read() == [{"step": 1}]
    version = tail.version
    assert tail.read() == [{"step": 1}] and tail.version == version
    path.write_text(line(step=1) + '{"step": 2, "a": 3}\n')
    assert tail.read() == [{"step": 1}, {"step": 2, "a": 3}]
    assert tail.version != version


def test_only_what_is_new_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(line(step=step) for step in range(1000)))
    tail = Tail(path)
    tail.read()
    parsed = []
    real = json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(text) or real(text))
    with path.open("a") as file:
        file.write(line(step=1000))
    assert len(tail.read()) == 1001
    assert len(parsed) == 1


def test_a_file_that_was_cut_back_and_written_on_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(step=1, run="old") + line(step=2, run="old"))
    tail = Tail(path)
    tail.read()
    path.write_text(line(step=1, run="old") + line(step=2, run="new") + line(step=3, run="new"))
    assert [row["run"] for row in tail.read()] == ["old", "new", "new"]
    os.truncate(path, len(line(step=1, run="old")))
    assert [row["step"] for row in tail.read()] == [1]
    path.unlink()
    assert tail.read() == []


def test_lines_that_are_no_rows_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'[1]\n{"step": 1}\nnot json\n\xff\xfe\n' + b"[" * 100_000 + b'\n{"step": 2}\n')
    assert Tail(path).read() == [{"step": 1}, {"step": 2}]


# Curves


def test_curves_of_several_runs_with_their_targets(tmp_path: Path) -> None:
    first, second = begin(tmp_path, kl_target=1.5), begin(tmp_path, "second")
    for step in (1, 2):
        first.log(step, {"rollout/kl": 0.5 * step, "rollout/score": float("nan")})
    second.log(1, {"rollout/kl": 3.0, "unknown": 1.0})
    (figure,) = Watcher(tmp_path).read_figures(["first", "second"])
    assert figure.key == "rollout/kl"
    assert [(curve.name, curve.points, curve.target) for curve in figure.curves] == [
        ("first", [(1.0, 0.5), (2.0, 1.0)], 1.5),
        ("second", [(1.0, 3.0)], None),
    ]


def test_nothing_is_new_until_something_is(tmp_path: Path) -> None:
    stage = begin(tmp_path)
    stage.log(1, {"rollout/kl": 0.5})
    watcher = Watcher(tmp_path)
    before = watcher.version(["first"])
    assert watcher.version(["first"]) == before
    stage.log(2, {"rollout/kl": 0.5})
    assert watcher.version(["first"]) != before
    between = watcher.version(["first"])
    stage.finish({})
    assert watcher.version(["first"]) != between


def test_a_run_that_is_half_there_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    stage = begin(tmp_path)
    stage.log(7, {"rollout/kl": 0.5})
    (tmp_path / "first" / "sft").mkdir()
    (tmp_path / "first" / "sft" / "manifest.json").write_text("{")
    watcher = Watcher(tmp_path)
    states = {
        state.stage: (state.state, state.step)
        for state in (watcher.version(["first"]) and watcher.read_states(["first"]))
    }
    assert states["ppo"] == ("running", 7)
    assert "cannot be read" in states["sft"][0]
    assert len(watcher.read_figures(["first"])) == 1
    assert watcher.read_figures(["first", "../first", "gone"])[0].curves[0].name == "first"


def test_a_stage_that_wrote_nothing_for_long_is_said_to_be_quiet(tmp_path: Path) -> None:
    stage = begin(tmp_path)
    stage.log(1, {"rollout/kl": 0.5})
    os.utime(stage.path / "metrics.jsonl", (0, 0))
    (state,) = Watcher(tmp_path).read_states(["first"])
    assert "quiet" in state.state


def test_a_stage_at_work_says_how_far_it_is_and_one_that_was_left_that_it_stopped(tmp_path: Path) -> None:
    stage = begin(tmp_path)
    stage.record_total(100)
    for step in (1, 2, 3):
        stage.log(step, {"rollout/kl": 0.5, "time/elapsed_s": 10.0 + 7.0 * step})
    watcher = Watcher(tmp_path)
    (state,) = watcher.read_states(["first"])
    assert (state.step, state.total, state.seconds_left, state.is_live) == (3, 100, 97 * 7.0, True)
    assert watcher.live_runs(["first"]) == ["first"]
    html = chart.states_table([state])
    assert "3 of 100" in html and "about 11 min" in html
    stage._lock.release()  # as the kernel does when the process dies
    (state,) = watcher.read_states(["first"])
    assert "stopped" in state.state and state.seconds_left is None and not watcher.live_runs(["first"])


def test_looking_at_a_lock_keeps_nobody_from_taking_it(tmp_path: Path) -> None:
    begin(tmp_path)._lock.release()
    watcher, refused = Watcher(tmp_path), []

    def look() -> None:
        while not done.is_set():
            watcher.live_runs(["first"])

    done = threading.Event()
    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(200):
        try:
            lock = stage_lock(tmp_path / "first", "ppo")
            lock.acquire()
            lock.release()
        except UserError as error:
            refused.append(error)
    done.set()
    thread.join()
    assert refused == []


def test_rounds_are_curves_of_the_run_that_is_watched(tmp_path: Path) -> None:
    for run in ("first", "first-round-2", "first-round-3"):
        begin(tmp_path, run)
    for number, rate in ((2, 0.6), (3, 0.55)):
        record = {
            "status": "finished", "number": number, "labels": {"asked": 10 * number}, "trained_on": 40,
            "win_rate": {"rate": rate, "low": rate - 0.1, "high": rate + 0.1},
            "measured": {"before": {"mean": 0.5, "low": 0.4, "high": "?"}, "after": None},
        }  # fmt: skip
        (tmp_path / f"first-round-{number}" / "round.json").write_text(json.dumps(record))
    for run in ("first", "first-round-3"):
        figures = {figure.title: figure.curves[0] for figure in Watcher(tmp_path).read_figures([run])}
        assert {curve.name for curve in figures.values()} == {run}
        wins = figures["Wins against the round before"]
        assert wins.points == [(2.0, 0.6), (3.0, 0.55)] and wins.intervals[0] == pytest.approx((2.0, 0.5, 0.7))
        assert figures["Labels"].points == [(2.0, 20.0), (3.0, 30.0)]
        assert figures["Reward accuracy before"].intervals == () and "Reward accuracy, refreshed" not in figures


def test_other_stages_have_their_own_curves(tmp_path: Path) -> None:
    folder = StageFolder(SFTConfig(run=str(tmp_path / "first"), model="m", demonstrations="d"), "sft")
    folder.begin(BASE, {}, {})
    folder.log(1, {"sft/loss": 2.0})
    folder.log(1, {"sft/validation_loss": 3.0})
    assert [f.key for f in Watcher(tmp_path).read_figures(["first"])] == ["sft/loss", "sft/validation_loss"]


def test_samples_of_one_prompt_stand_together(tmp_path: Path) -> None:
    for run in ("first", "second"):
        stage = begin(tmp_path, run)
        for step in (1, 5):
            stage.sample(step, [{"prompt": f"P{n}", "response": f"{run} {n} {step}"} for n in range(2)])
    watcher = Watcher(tmp_path)
    watcher.version(["first", "second"])
    found = watcher.read_samples(["first", "second"])
    assert [(sample.prompt, sample.run) for sample in found] == [
        ("P0", "first"), ("P0", "second"), ("P1", "first"), ("P1", "second"),
    ]  # fmt: skip
    assert found[3].responses == [(1, "second 1 1"), (5, "second 1 5")]


def test_spread_keeps_the_first_and_the_last() -> None:
    items = [(step, "") for step in range(100)]
    assert [step for step, _ in pick_evenly(items, 4)] == [0, 33, 66, 99]


def test_nothing_of_a_file_becomes_markup(tmp_path: Path) -> None:
    stage = begin(tmp_path)
    stage.sample(1, [{"prompt": "<script>", "response": '<img src=x onerror="x">'}])
    watcher = Watcher(tmp_path)
    watcher.version(["first"])
    html = chart.samples_html(watcher.read_samples(["first"]), has_run_names=True)
    assert "<script" not in html and "<img" not in html and "&lt;img" in html
