"""The pictures of the app in README and docs: every tab at three widths, in light and dark.

    python benchmarks/pictures.py --root runs

on a copy of the finished quickstart, in which the tiny world's simulated labelers are those whom People shows. Writes
docs/pictures/TAB-WIDTH-SCHEME.png, each with few colours. Look at every one before it is committed.
"""

import argparse
import io
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from demo import BROWSERS, served, visit
from lora_rlhf.system.disk import json_line

TO = Path(__file__).resolve().parent.parent / "docs" / "pictures"
SIZES = {390: 844, 1280: 800, 2560: 1300}  # CSS pixels: width and height
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
COLOURS = 128
QUESTIONS = ("Describe the fox.", "Write to Nora about the rabbit. Use at most three sentences.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs"))
    parser.add_argument("--run", default="quickstart")
    parser.add_argument("--tabs", nargs="+", choices=list(SCENES), default=list(SCENES))
    args = parser.parse_args()
    TO.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "runs" / args.run
        shutil.copytree(args.root / args.run, run)
        write_rankings(run)
        os.chdir(folder)  # paths on the page are those of a user
        with served(Path("runs"), args.run), sync_playwright() as playwright:
            path = next(filter(None, map(shutil.which, BROWSERS)))
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            for scheme in SCHEMES:
                for width in SIZES:
                    take(browser, scheme, width, args.tabs)


def write_rankings(run: Path) -> None:
    """The rankings of the five simulated labelers who ranked the first prompt."""
    rows = list(map(json.loads, (run / "data" / "agreement.jsonl").read_text(encoding="utf-8").splitlines()))
    names = {row["labeler"] for row in rows if row["prompt"] == rows[0]["prompt"]}
    (run / "rankings.jsonl").write_bytes(b"".join(json_line(row) for row in rows if row["labeler"] in names))


def take(browser: Browser, scheme: Scheme, width: int, tabs: list[str]) -> None:
    """The pictures of one width and scheme, in a browser that was not here before."""
    size: ViewportSize = {"width": width, "height": SIZES[width]}
    context = browser.new_context(viewport=size, color_scheme=scheme, has_touch=width < 500)
    page = context.new_page()
    visit(page, time.monotonic())
    page.wait_for_selector("#about .line", timeout=120_000)
    for tab in tabs:
        page.get_by_role("tab", name=TAB.get(tab, tab).title()).click()
        SCENES[tab](page)
        page.mouse.move(0, 0)
        page.wait_for_timeout(600)
        with Image.open(io.BytesIO(page.screenshot())) as picture:
            small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
            small.save(TO / f"{tab}-{width}-{scheme}.png", optimize=True)
    context.close()


def ask(page: Page, number: int) -> None:
    """Asks a question of the tiny world, and waits for all answers."""
    page.fill("#question textarea", QUESTIONS[number])
    page.press("#question textarea", "Enter")
    page.wait_for_selector(f"#talk .turn:nth-child({number + 1}) .card", timeout=120_000)
    page.wait_for_timeout(500)


def compare(page: Page) -> None:
    """Two questions to base, SFT model and policy, tokens coloured."""
    page.check("#differences input")
    ask(page, 0)
    ask(page, 1)
    page.evaluate("scrollTo(0, 0)")


def blind(page: Page) -> None:
    """A vote on three answers without names."""
    page.click("#new")
    page.uncheck("#differences input")
    page.check("#blind input")
    ask(page, 0)
    page.get_by_role("button", name="Rank by dragging").scroll_into_view_if_needed()


def rank(page: Page) -> None:
    """The same, ranked by keys."""
    page.get_by_role("button", name="Rank by dragging").click()
    page.wait_for_selector(".choice:visible")
    for key in "ba":
        page.keyboard.press(key)


def label(page: Page) -> None:
    """Answers to a prompt, three of them ranked and two of these tied, with a quality."""
    for names in Path("runs").glob("*/rankings.labelers.jsonl"):
        names.unlink()  # else the page asks whether Ann of another browser is the same Ann
    page.fill("#labeler :is(input, textarea)", "Ann")
    page.click("#begin")
    page.wait_for_selector("#ranker .choice:visible")
    for key in "bad=":
        page.keyboard.press(key)
    page.locator("#ranker .choice:visible .rating button").nth(5).click()
    page.evaluate("document.querySelector('#label-head').parentElement.scrollIntoView()")


def people(page: Page) -> None:
    """Who ranked how much, and a prompt to discuss."""
    page.locator(".dispute summary").first.click()
    page.evaluate("scrollTo(0, 0)")


def watch(page: Page) -> None:
    """The curves of all stages."""
    page.wait_for_selector(".chart polyline")


def reward(page: Page) -> None:
    """A prompt, two answers and their scores."""
    page.fill("#reward-prompt textarea", "Who owns the lamp? Begin with: Gladly.")
    for letter, text in (("A", "Gladly. The lamp belongs to David."), ("B", "I do not know."), ("B", "Sure. David.")):
        page.fill(f"#reward-answer-{letter} textarea", text)
        page.wait_for_timeout(2500)


def train(page: Page) -> None:
    """The form of a stage, and its command line."""
    for name, text in (("model", "tinyworld"), ("demonstrations", "runs/quickstart/data/demonstrations.jsonl")):
        page.fill(f"#start-{name}", text)
        page.press(f"#start-{name}", "Tab")
    page.wait_for_timeout(1500)
    page.evaluate("scrollTo(0, 0)")


SCENES = {scene.__name__: scene for scene in (compare, blind, rank, label, people, watch, reward, train)}
TAB = {"blind": "compare", "rank": "compare"}

if __name__ == "__main__":
    main()
