"""A tiny run, the app that serves it, and a browser that looks at it."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from lora_rlhf_demo.app import launch_app
from lora_rlhf_demo.config import DemoConfig
from lora_rlhf_demo.worker import ModelWorker
from playwright.sync_api import Browser, Page, expect, sync_playwright

from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.disk import append_row
from tests.support.demo import HOSTILE, PORT, RIGHT_TO_LEFT, Served, save_run, trained, worker_of

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 30_000  # ms: how long a page may take, on a busy machine
expect.set_options(timeout=SECONDS)


@pytest.fixture(scope="session")
def model(tiny_model: Callable[[str], Path]) -> SharedModel:
    """What the runs were saved from; do not add roles to it."""
    return trained(tiny_model("llama"))


@pytest.fixture
def root(model: SharedModel, tmp_path: Path) -> Path:
    """A run root with one finished run, "first"."""
    save_run(model, tmp_path / "runs" / "first")
    return tmp_path / "runs"


@pytest.fixture
def worker(root: Path) -> Iterator[ModelWorker]:
    """A worker of that root."""
    opened = worker_of(root)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def served(model: SharedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The app on a root of its own with the run "first"; for tests that leave both as they were."""
    root = tmp_path_factory.mktemp("served") / "runs"
    save_run(model, root / "first")
    # short answers: a random model hardly ever ends one itself
    with launch_app(DemoConfig(root=str(root), port=PORT, max_response_tokens=40)) as blocks:
        yield Served(str(blocks.local_url), root)


@pytest.fixture(scope="session")
def labelled(model: SharedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The app on a run with candidates to rank and metrics of its own."""
    root = tmp_path_factory.mktemp("labelled") / "runs"
    save_run(model, root / "first")
    rows = [{"prompt": f"Question {n} {HOSTILE}", "responses": [f"{c}{n}" for c in "wxyz"]} for n in range(3)]
    rows[1]["responses"] = [HOSTILE, RIGHT_TO_LEFT, "**bold** " * 50, "plain"]
    (root / "first" / "candidates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in range(1, 6):
        append_row(root / "first" / "ppo" / "metrics.jsonl", {"step": step, "rollout/score": 0.1 * step})
    with launch_app(DemoConfig(root=str(root), port=PORT + 300)) as blocks:
        yield Served(str(blocks.local_url), root)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium. Skips where there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--host-resolver-rules=MAP rebound.test 127.0.0.1"]
        )
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Browser, served: Served) -> Iterator[Callable[..., Page]]:
    """open_page(url=None, **context) -> a page. No request may leave the machine, no script fail."""
    contexts, faults = [], []

    def note(request_url: str) -> None:
        parts = urlsplit(request_url)
        if parts.scheme not in ("data", "blob", "about") and parts.hostname != "127.0.0.1":
            faults.append(f"a request to {request_url}")

    def open_one(url: str | None = None, **context: Any) -> Page:
        contexts.append(browser.new_context(**context))
        page = contexts[-1].new_page()
        page.set_default_timeout(SECONDS)
        page.on("request", lambda request: note(request.url))
        page.on("websocket", lambda socket: note(socket.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(url or served.url)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    """A page on the run "first", ready to ask."""
    opened = open_page(viewport={"width": 1280, "height": 900})
    opened.wait_for_selector("#columns input")
    return opened
