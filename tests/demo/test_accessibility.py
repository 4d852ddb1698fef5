"""On every tab, in light and dark, on a phone and a screen: axe-core finds nothing, and a finger can hit everything."""

from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from lora_rlhf_demo.rows import RowFile
from playwright.sync_api import Page, expect

from tests.support.demo import Served, write

# Whatever a finger is to hit on a phone, and is less than 44 px high; a box of Gradio's counts with its frame
SMALL = """() => [...document.querySelectorAll("button, summary, textarea, input, label:has(input)")].filter((one) => {
  if (!one.checkVisibility() || one.closest(".sr-only, .visually-hidden, .tab-container[aria-hidden]")) return false;
  const whole = one.matches("input") ? one.closest("label, .wrap, .block") ?? one : one;
  const height = whole.getBoundingClientRect().height;
  return height > 0 && height < 43.5;
}).map((one) => one.outerHTML.slice(0, 200))"""

pytestmark = [pytest.mark.browser, pytest.mark.long]


def compare(page: Page) -> None:
    page.click("#differences input")
    page.fill("#question textarea", "Who counts?")
    page.press("#question textarea", "Enter")
    expect(page.locator(".token").last).to_be_attached()
    page.get_by_text("Past votes").click()
    page.get_by_text("Settings").click()


def label(page: Page) -> None:
    write(
        page.get_by_label("Your name"), page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches ? 'D' : 'L'")
    )
    page.click("#begin")
    expect(page.locator(".choice")).to_have_count(4)
    for key in "ba?":
        page.keyboard.press(key)
    page.locator(".choice summary").first.click()


def people(page: Page) -> None:
    page.locator(".dispute summary", has_text="Dispute?").click()
    expect(page.locator(".dispute td").first).to_be_visible()


def watch(page: Page) -> None:
    expect(page.locator(".chart polyline").first).to_be_visible()


def reward(page: Page) -> None:
    write(page.locator("#reward-prompt textarea"), "Who counts?")
    for letter, text in (("A", "One by one."), ("B", "Nobody."), ("A", "All of them.")):
        write(page.locator(f"#reward-answer-{letter} textarea"), text)
    expect(page.locator(".scores :is(.up, .down)").first).to_be_visible()


def train(page: Page) -> None:
    expect(page.locator("#train-form input").first).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(labelled: Served, open_page: Callable[..., Page], scheme: str) -> None:
    file = RowFile(labelled.root / "first" / "rankings.jsonl")
    row = {"prompt": "Dispute?", "responses": ["left " * 40, "right"], "task": "t", "saved": 1.0, "seconds": 0.2}
    for name, ranks in (("Ann", [1, 2]), ("Ben", [2, 1])):
        file.add(row | {"labeler": name, "ranks": ranks, "comment": "why"})
    page = open_page(labelled.url, viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    page.wait_for_selector("#columns input")
    found = []
    for fill in (compare, label, people, watch, reward, train):
        name = fill.__name__.title()
        page.get_by_role("tab", name=name).click()
        fill(page)
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            for fault in Axe().run(page).response["violations"]:
                found += [f"{name}, {width} px: {fault['id']}: {node['html'][:200]}" for node in fault["nodes"]]
        found += [f"{name}, less than 44 px high: {one}" for one in page.evaluate(SMALL)]
        page.set_viewport_size({"width": 1280, "height": 900})
    assert not found, found
