"""Watch in a real browser: a stage at work, what left its target, and the values of its curves."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lora_rlhf_demo.app import launch_app
from lora_rlhf_demo.config import DemoConfig
from playwright.sync_api import Page, expect

from lora_rlhf.runs.folder import StageFolder
from tests.demo.test_watching import begin
from tests.support.demo import PORT, Served

pytestmark = pytest.mark.browser
STEPS = 30


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
