"""Watch and Train in a real browser: a stage at work and the values of its curves; a run that is started there."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lora_rlhf_demo.app import launch_app
from lora_rlhf_demo.config import DemoConfig
from playwright.sync_api import Page, expect

from lora_rlhf.runs.folder import StageFolder
from tests.demo.test_watching import begin
from tests.support.demo import PORT, Served
from tests.support.stages import write_rows

pytestmark = pytest.mark.browser
STEPS = 30
LONG = 120_000  # ms: to start a process that trains, on a busy machine


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> StageFolder:
    """PPO at work, at five times its KL target, beside a run that was begun before and stopped."""
    root = tmp_path_factory.mktemp("watched") / "runs"
    working = begin(root, "working", kl_target=6.0)
    working.record_total(100)
    for step in range(1, STEPS + 1):
        metrics = {"rollout/kl": float(step), "rollout/score": 0.01 * step * (-1) ** step, "time/elapsed_s": 6.0 * step}
        working.log(step, metrics)
    begin(root, "left").log(1, {"rollout/kl": 1.0})
    return working


@pytest.fixture(scope="module")
def watched(stage: StageFolder) -> Iterator[Served]:
    root = stage.path.parents[1]
    with launch_app(DemoConfig(root=str(root), port=PORT + 500)) as blocks:
        yield Served(str(blocks.local_url), Path(root))


def test_the_run_at_work_is_watched_and_its_values_read_by_keyboard_and_pointer(
    watched: Served, stage: StageFolder, open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{watched.url}#watch", viewport={"width": 390, "height": 900})
    states = page.locator("#watch-states")
    expect(states).to_contain_text(f"{STEPS} of 100")
    expect(states).to_contain_text("about 7 min")
    expect(states).not_to_contain_text("left")  # the live run alone is chosen
    off = page.locator(".chart.off")
    expect(off).to_have_count(1)
    expect(off).to_contain_text("mean of the last 10: 25.5, 4.2 times the target of 6")

    kl, at = off.locator("svg"), off.locator(".at")
    kl.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(at).to_have_text("step 2:2")
    stage.log(STEPS + 1, {"rollout/kl": 50.0, "rollout/score": 0.1})
    expect(states).to_contain_text(f"{STEPS + 1} of 100")
    expect(at).to_have_text("step 2:2")  # the chart is another, and the cursor and the focus are where they were
    page.keyboard.press("End")
    expect(at).to_have_text(f"step {STEPS + 1}:50")
    assert kl.get_attribute("aria-valuetext") == f"step {STEPS + 1}: 50"
    page.keyboard.press("Escape")
    expect(at).to_be_hidden()
    page.locator('.chart[data-key="rollout/score"] svg').hover(position={"x": 50, "y": 40})
    expect(page.locator('.chart[data-key="rollout/score"] .at')).to_contain_text("step")

    page.get_by_label("Log scale").check()
    expect(page.locator('.chart[data-key="rollout/score"]')).to_contain_text("not on a log scale")
    expect(off).not_to_contain_text("not on a log scale")
    page.locator("#watch-smoothing input[type=number]").fill("0.2")
    expect(page.locator("polyline.raw")).to_have_count(2)


@pytest.mark.long
def test_a_run_is_started_stopped_and_continued(
    tmp_path: Path, tiny_model: Callable[[str], Path], open_page: Callable[..., Page]
) -> None:
    rows = ({"prompt": f"Question {n}", "response": f"Answer {n % 7}."} for n in range(400))
    data = Path(write_rows(tmp_path / "d.jsonl", rows))
    with launch_app(DemoConfig(root=str(tmp_path / "runs"), port=PORT + 550)) as blocks:
        page = open_page(f"{blocks.local_url}#train", viewport={"width": 1280, "height": 900})
        command, state = page.locator("#train-command pre"), page.locator("#train-state")
        given = {
            "model": str(tiny_model("llama")), "demonstrations": str(data), "quantization": "none", "device": "cpu",
            "epochs": "many", "batch_size": "2", "max_prompt_tokens": "64",
            "max_response_tokens": "16", "validation_fraction": "0",
        }  # fmt: skip
        page.get_by_text("flags of sft").click()
        for name, text in given.items():
            box = page.locator(f"#start-{name}")
            if name == "quantization":
                box.select_option(text)
            else:
                box.fill(text)
                box.press("Tab")
        faults = page.locator("#train-command .faults")
        expect(faults).to_contain_text("sft: epochs is 'many', expected a whole number")
        expect(page.locator("#train-start")).to_be_disabled()
        page.locator("#start-epochs").fill("1")
        expect(faults).to_have_count(0)  # while the field is still being written
        expect(page.locator("#train-start")).to_be_enabled()
        page.locator("#start-epochs").press("Tab")
        expect(command).to_contain_text(f"lora-rlhf sft --run {tmp_path}/runs/mine")
        expect(page.locator("#train-peak")).to_contain_text("Memory at its peak")
        page.locator("#train-start").click()
        expect(state).to_contain_text("sft of mine: at work")
        expect(state).to_contain_text("share this machine's memory")
        page.locator("#train-start").click()
        expect(page.locator("#train-faults")).to_contain_text("sft of mine is at work; one run is trained at a time")
        expect(state).to_contain_text(re.compile(r"[1-9]\d* of 200"), timeout=LONG)
        page.locator("#train-stop").click()
        expect(state).to_contain_text("sft of mine: stopped", timeout=LONG)
        expect(state).to_contain_text("everything is saved")
        page.reload()
        page.locator("#train-continue").click()
        expect(state).to_contain_text("sft of mine: finished", timeout=LONG)
        expect(page.locator("#train-continue")).to_be_hidden()
    manifest = json.loads((tmp_path / "runs" / "mine" / "sft" / "manifest.json").read_text())
    assert manifest["status"] == "finished" and len(manifest["resumed"]) == 1
    assert (tmp_path / "runs" / "mine" / "sft" / "curves.svg").is_file()
