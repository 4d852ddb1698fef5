"""Label, watch and reward in a real browser: what a labeler does with mouse, finger and keys, and plots that grow."""

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lora_rlhf_demo.app import launch_app
from lora_rlhf_demo.config import DemoConfig
from lora_rlhf_demo.rows import RowFile
from playwright.sync_api import Page, expect

from lora_rlhf.data.sources import read_rankings
from lora_rlhf.system.disk import append_row
from tests.support.demo import HOSTILE, PORT, RIGHT_TO_LEFT, Served, write

pytestmark = pytest.mark.browser
ORDER = """[...document.querySelectorAll('.ranker .group')].map(group =>
  [...group.querySelectorAll('.letter')].map(letter => letter.textContent).join('=')).join(' > ')"""
expect.set_options(timeout=20_000)  # ms, for a busy machine


def rankings(served: Served) -> RowFile:
    return RowFile(served.root / "first" / "rankings.jsonl")


@pytest.fixture
def label(labelled: Served, open_page: Callable[..., Page]) -> Callable[..., Page]:
    """label(name, **context) -> a page on which that labeler has begun."""

    def begin(name: str, **context: object) -> Page:
        page = open_page(labelled.url, **({"viewport": {"width": 1280, "height": 900}} | context))
        page.get_by_role("tab", name="Label").click()
        write(page.get_by_label("Your name"), name)
        page.click("#begin")
        expect(page.locator(".choice")).to_have_count(4)
        return page

    return begin


def card(page: Page, place: int) -> str:
    return f'.choice[data-place="{place}"]'


def order(page: Page) -> str:
    return page.evaluate(ORDER)


@pytest.mark.long
def test_ranking_by_keys_alone(label: Callable[..., Page], labelled: Served) -> None:
    page = label("Keys")
    assert order(page) == "A=B=C=D"
    expect(page.locator(".ranker .place")).to_have_text(["not ranked yet"] * 4)
    page.keyboard.press("c")
    assert order(page) == "C > A=B=D"
    expect(page.locator(".ranker .place")).to_have_text(["", *["not ranked yet"] * 3])
    page.keyboard.press("a")
    page.keyboard.press("=")
    assert order(page) == "A=C > B=D"
    expect(page.locator(".ranker [aria-live]")).to_have_text("Answer A: rank 1 of 2, tied with C")
    page.keyboard.press("ArrowUp")
    assert order(page) == "A > C > B=D"
    page.keyboard.press("b")
    page.keyboard.press("4")
    assert order(page) == "A > C > B > D"
    page.keyboard.press("Backspace")
    assert order(page) == "A > C > B=D"
    page.focus(card(page, 2))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.dataset.place") == "2", "there and back"
    page.keyboard.press("Shift+Digit6")
    page.focus("#skip")  # keys act from anywhere
    page.keyboard.press("d")
    page.keyboard.press("3")
    assert order(page) == "A > C > D > B"
    page.keyboard.press("?")
    expect(page.locator(".ranker .help")).to_be_visible()
    page.locator(".written textarea").first.fill("a, b and = are letters here")
    page.locator(".written textarea").first.press("Control+Enter")
    expect(page.locator("#label-note")).to_contain_text("Saved")
    (row,) = [row for row in rankings(labelled).rows() if row["labeler"] == "Keys"]
    assert [row["ranks"][place] for place in row["shown"]] == [1, 4, 2, 3]
    assert [row["ratings"][place] for place in row["shown"]] == [None, None, 6, None]
    assert row["comment"] == "a, b and = are letters here"
    page.keyboard.press("u")
    expect(page.locator("#label-note")).to_contain_text("Taken back")
    assert order(page) == "A > C > D > B"


def drag(page: Page, place: int, y: float) -> None:
    grip = page.locator(f"{card(page, place)} .letter").bounding_box()
    assert grip is not None
    page.mouse.move(grip["x"] + 3, grip["y"] + 3)
    page.mouse.down()
    page.mouse.move(grip["x"] + 6, grip["y"] - 10, steps=3)
    page.mouse.move(grip["x"] + 6, y, steps=6)
    page.mouse.up()


def test_ranking_by_dragging(label: Callable[..., Page], labelled: Served) -> None:
    page = label("Mouse")
    first = page.locator(card(page, 0)).bounding_box()
    assert first is not None
    drag(page, 2, first["y"] + 4)  # above the first
    assert order(page) == "C > A=B=D"
    first = page.locator(card(page, 2)).bounding_box()
    assert first is not None
    drag(page, 1, first["y"] + first["height"] / 2)  # onto it: a tie
    assert order(page) == "B=C > A=D"
    drag(page, 3, page.locator(card(page, 0)).bounding_box()["y"] + 60)  # among those that nobody has placed
    expect(page.locator(".ranker .waiting .choice")).to_have_count(2)
    page.click(f"{card(page, 1)} summary")
    page.get_by_label("Hallucination").first.check()
    page.locator(f"{card(page, 1)} .rating button").nth(4).click()
    page.keyboard.press("Enter")  # saves, and does not press the button that the mouse has pressed once more
    expect(page.locator("#label-note")).to_contain_text("Saved")
    (row,) = [row for row in rankings(labelled).rows() if row["labeler"] == "Mouse"]
    assert [row["ranks"][place] for place in row["shown"]] == [2, 1, 1, 2]
    assert [row["flags"][place] for place in row["shown"]] == [[], ["hallucination"], [], []]
    assert [row["ratings"][place] for place in row["shown"]] == [None, 5, None, None]
    assert read_rankings(str(rankings(labelled).path))[1].count == 0


@pytest.mark.long
def test_ranking_by_a_finger_on_a_phone(label: Callable[..., Page]) -> None:
    page = label("Finger", viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing is cut off"
    page.locator(card(page, 1)).get_by_role("button", name="Answer B: better").tap()
    assert order(page) == "B > A=C=D"
    page.evaluate(f"document.querySelector('{card(page, 2)}').scrollIntoView({{block: 'center'}})")
    grip = page.locator(f"{card(page, 2)} .letter").bounding_box()
    upper = page.locator(card(page, 0)).bounding_box()
    assert grip is not None and upper is not None
    touch = page.context.new_cdp_session(page)

    def send(kind: str, y: float) -> None:
        points = [] if kind == "touchEnd" else [{"x": grip["x"] + 4, "y": y}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    send("touchStart", grip["y"] + 4)
    for part in range(1, 6):
        send("touchMove", grip["y"] + (upper["y"] + 4 - grip["y"]) * part / 5)
    send("touchEnd", 0)
    page.wait_for_function(f"({ORDER}) === 'B > C > A=D'")


@pytest.mark.long
def test_labelling_goes_on_after_a_reload(label: Callable[..., Page]) -> None:
    page = label("Reload")
    page.focus(card(page, 1))
    page.keyboard.press("ArrowUp")
    page.click("#save")
    expect(page.locator("#label-progress")).to_contain_text("1 of 3")
    page.click("#skip")
    expect(page.locator("#label-progress")).to_contain_text("1 skipped")
    page.reload()  # the address names the tab
    expect(page.get_by_label("Your name")).to_have_value("Reload")
    expect(page.locator("#label-progress")).to_contain_text("1 of 3")
    expect(page.locator("#label-prompt")).to_contain_text("Question 2")
    page.click("#undo")
    expect(page.locator("#label-prompt")).to_contain_text("Question 1")
    page.click("#undo")
    expect(page.locator("#label-prompt")).to_contain_text("Question 0")
    assert order(page) == "B > A=C=D"
    expect(page.locator("#label-progress")).to_contain_text("0 of 3")


def test_texts_of_models_and_files_are_shown_and_never_run(label: Callable[..., Page]) -> None:
    page = label("Safe")
    page.click("#skip")
    expect(page.locator("#label-prompt")).to_contain_text("Question 1 <script>")
    shown = page.locator(".choice .text").all_text_contents()
    assert HOSTILE.replace("\x1b", "\u241b") in shown
    assert "**bold** " * 50 in shown and RIGHT_TO_LEFT.replace("\u202e", r"\u202e") in shown
    assert page.evaluate("window.hacked") is None
    assert page.locator(".ranker img, .ranker script, .ranker a, #label-prompt img, #label-prompt a").count() == 0


def test_live_answers_are_ranked_and_saved(label: Callable[..., Page], labelled: Served) -> None:
    page = label("Live")
    page.get_by_text("Live answers").click()
    write(page.locator("#live-prompt textarea"), "Who counts the ships?")
    page.click("#draw")
    expect(page.locator("#label-prompt")).to_contain_text("Who counts the ships?")
    expect(page.locator(".choice").nth(1)).to_be_visible()
    page.focus(card(page, 1))
    page.keyboard.press("1")
    page.click("#save")
    expect(page.locator("#label-note")).to_contain_text("Saved")
    (row,) = [row for row in rankings(labelled).rows() if row["labeler"] == "Live"]
    assert row["prompt"] == "Who counts the ships?"
    assert len(set(row["responses"])) == len(row["responses"]) >= 2


@pytest.fixture
def serve_alone(tmp_path: Path, open_page: Callable[..., Page]) -> Iterator[Callable[..., Page]]:
    """serve_alone(rows) -> the page of `demo --label` on these rows, on which Ann has begun."""
    with contextlib.ExitStack() as stack:

        def serve(rows: list[dict[str, Any]], **context: Any) -> Page:
            folder = tmp_path / "runs" / "first"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "candidates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            config = DemoConfig(root=str(tmp_path / "runs"), port=PORT + 500, label=True)
            blocks = stack.enter_context(launch_app(config))
            page = open_page(blocks.local_url, **({"viewport": {"width": 1280, "height": 800}} | context))
            write(page.get_by_label("Your name"), "Ann")
            page.click("#begin")
            expect(page.locator(".choice").first).to_be_visible()
            return page

        yield serve


LONG = " ".join(f"Sentence number {number} says a little more about ships and harbours." for number in range(1, 91))
IS_IN_VIEW = """([selector, where]) => {
  const head = document.querySelector("#label-head").getBoundingClientRect();
  const rect = document.querySelector(selector).getBoundingClientRect();
  return where === "top" ? rect.top >= 0 && rect.top < 60 : rect.top >= head.bottom - 1 && rect.top < innerHeight - 40;
}"""


def test_five_rankings_of_seven_by_keys_each_begin_at_the_top_with_the_first_answer(
    serve_alone: Callable[..., Page], tmp_path: Path
) -> None:
    rows = [{"prompt": f"Question {n}?", "responses": [f"{c}{n} " + "word " * 60 for c in "tuvwxyz"]} for n in range(6)]
    page = serve_alone(rows)
    for tab in ("Compare", "Watch", "Reward"):
        expect(page.get_by_role("tab", name=tab)).to_have_count(0)
    for number in range(5):
        expect(page.locator("#label-prompt")).to_contain_text(f"Question {number}?")
        page.wait_for_function("document.activeElement.dataset.place === '0'")
        assert page.evaluate(IS_IN_VIEW, ["#label-prompt", "top"])
        assert page.evaluate(IS_IN_VIEW, ['.choice[data-place="0"]', "answers"])
        keys = [*"gfedcba", "Enter"] if number % 2 else [*"7654321", "Enter"]
        assert len(keys) <= 16
        for key in keys:
            page.keyboard.press(key)
            if key == keys[3]:
                assert page.evaluate(IS_IN_VIEW, ["#label-prompt", "top"]), "the prompt sticks"
                assert page.locator("#save").bounding_box()["y"] < 400
    expect(page.locator("#label-prompt")).to_contain_text("Question 5?")
    saved = RowFile(tmp_path / "runs" / "first" / "rankings.jsonl").rows()
    assert [[row["ranks"][place] for place in row["shown"]] for row in saved] == [[7, 6, 5, 4, 3, 2, 1]] * 5
    for key in "cae":  # the best three, the others alike
        page.keyboard.press(key)
    assert order(page) == "C > A > E > B=D=F=G"


def test_a_long_answer_is_read_whole_or_asked_about(serve_alone: Callable[..., Page]) -> None:
    rows = [{"prompt": "Long?", "responses": [LONG, "short", "shorter"]}, {"prompt": "Next?", "responses": ["a", "b"]}]
    page = serve_alone(rows)
    whole = page.locator(".choice .whole:visible")
    expect(whole).to_have_count(1)
    expect(whole).to_contain_text("Show all 990 words")
    page.keyboard.press("b")
    page.keyboard.press("Enter")
    expect(page.locator("#label-note")).to_contain_text("not opened 1 answer to the end")
    whole.click()
    expect(whole).to_have_count(0)
    clipped = "[...document.querySelectorAll('.choice .text')].some(text => text.scrollHeight > text.clientHeight + 1)"
    assert page.evaluate(clipped) is False
    page.keyboard.press("Enter")
    expect(page.locator("#label-prompt")).to_contain_text("Next?")
    assert page.locator(".choice").first.bounding_box()["y"] == page.locator(".choice").last.bounding_box()["y"]
    page.keyboard.press("2")  # one key for two answers
    expect(page.locator("#label-note")).to_contain_text("You have ranked everything")


def test_an_answer_that_was_cut_is_said_to_be(serve_alone: Callable[..., Page]) -> None:
    page = serve_alone([{"prompt": "Cut?", "responses": ["whole one", "half of a", "b"], "ended": [True, False, True]}])
    expect(page.locator(".choice .cut")).to_have_count(1)
    assert "half of a" in page.locator(".choice:has(.cut)").inner_text()


def test_a_draft_outlives_a_reload_a_tab_change_and_a_killed_server(
    tmp_path: Path, open_page: Callable[..., Page]
) -> None:
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    rows = [{"prompt": f"Question {n}?", "responses": ["w", "x", "y", "z"]} for n in range(3)]
    (folder / "candidates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "lora_rlhf.cli", "demo", "--label", "--root", str(tmp_path / "runs")]

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen([*command, "--port", str(PORT + 600)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and any("http://" in line for line in process.stdout)
        return process

    def begin_again(page: Page) -> None:
        expect(page.locator("#label-prompt")).to_contain_text("Question 1?")
        expect(page.locator(".choice")).to_have_count(4)
        assert order(page) == "D > B > A=C"
        expect(page.locator(".written textarea").first).to_have_value("half a com")

    process = start()
    try:
        page = open_page(f"http://127.0.0.1:{PORT + 600}")
        write(page.get_by_label("Your name"), "Ann")
        page.click("#begin")
        expect(page.locator(".choice")).to_have_count(4)
        for key in ("a", "Enter"):
            page.keyboard.press(key)
        expect(page.locator("#label-prompt")).to_contain_text("Question 1?")
        for key in "db":
            page.keyboard.press(key)
        page.locator(".written textarea").first.fill("half a com")
        page.reload()
        begin_again(page)
        process.kill()
        process.wait(30)
        process = start()
        page.goto(f"http://127.0.0.1:{PORT + 600}")
        begin_again(page)
        page.keyboard.press("Enter")
        expect(page.locator("#label-prompt")).to_contain_text("Question 2?")
    finally:
        process.kill()
        process.wait(30)
    saved = RowFile(folder / "rankings.jsonl").rows()
    assert [row["comment"] for row in saved if row["prompt"] == "Question 1?"] == ["half a com"]
    assert len(saved) == 2


def test_whoever_runs_it_sees_people_and_removes_one(labelled: Served, open_page: Callable[..., Page]) -> None:
    file = rankings(labelled)
    row = {"prompt": "Dispute?", "responses": ["left " * 40, "right"], "task": "t", "saved": 1.0, "seconds": 0.2}
    for name, ranks in (("Quick", [1, 2]), ("Slow", [2, 1])):
        file.add(row | {"labeler": name, "ranks": ranks, "comment": HOSTILE})
    page = open_page(labelled.url)
    page.get_by_role("tab", name="People").click()
    expect(page.locator(".people-page")).to_contain_text("Quick")
    expect(page.locator(".people-page")).to_contain_text("/first/sft --rankings ")
    dispute = page.locator(".dispute", has_text="Dispute?")
    dispute.locator("summary").click()
    expect(dispute).to_contain_text("0 % of 1 pairs alike")
    assert page.evaluate("window.hacked") is None
    page.locator("#remove button, #remove .label-wrap").first.click()
    page.locator("#remove-name input").click()
    page.get_by_role("option", name="Quick").click()
    page.click("#remove-button")
    expect(page.locator("#people-note")).to_contain_text("Write why")
    write(page.locator("#remove-reason textarea, #remove-reason input"), "did not read")
    page.click("#remove-button")
    expect(page.locator("#people-note")).to_contain_text("1 rankings of Quick")
    assert [row for row in file.rows() if row["labeler"] == "Quick"] == []
    (removed,) = RowFile(file.path.with_name("rankings.removed.jsonl")).rows()
    assert (removed["labeler"], removed["reason"]) == ("Quick", "did not read")


def test_plots_grow_while_a_run_writes(labelled: Served, open_page: Callable[..., Page]) -> None:
    metrics = labelled.root / "first" / "ppo" / "metrics.jsonl"
    page = open_page(labelled.url)
    page.get_by_role("tab", name="Watch").click()
    line = page.locator(".chart polyline").first
    expect(page.locator(".chart").first).to_contain_text("0.5")
    assert len((line.get_attribute("points") or "").split()) == 5
    for step in range(6, 9):
        append_row(metrics, {"step": step, "rollout/score": 0.1 * step, "rollout/kl": 0.2})
        time.sleep(0.2)
    with metrics.open("a") as file:
        file.write('{"step": 9, "rollout/sc')  # a row that is being written
    expect(line).to_have_attribute("points", re.compile(r"^(\S+ ?){8}$"))
    expect(page.locator(".chart")).to_have_count(2)


def test_scores_follow_what_is_typed(labelled: Served, open_page: Callable[..., Page]) -> None:
    page = open_page(labelled.url)
    page.get_by_role("tab", name="Reward").click()
    write(page.locator("#reward-prompt textarea"), "Who counts?")
    write(page.locator("#reward-answer-A textarea"), "One by one.")
    write(page.locator("#reward-answer-B textarea"), f"Nobody {HOSTILE}")
    bars = page.locator(".scores li")
    expect(bars).to_have_count(2)
    before = page.locator(".scores").inner_text()
    page.locator("#reward-answer-A textarea").press_sequentially(" The sailors do.")
    expect(page.locator(".scores")).to_contain_text("The sailors do.")
    assert page.locator(".scores").inner_text() != before
    scores = [float(text) for text in page.locator(".scores .score").all_text_contents()]
    assert scores == sorted(scores, reverse=True)
    assert page.evaluate("window.hacked") is None


def test_a_root_without_runs_explains_itself_on_every_tab(tmp_path: Path, open_page: Callable[..., Page]) -> None:
    with launch_app(DemoConfig(root=str(tmp_path), port=PORT + 400)) as blocks:
        page = open_page(blocks.local_url)
        page.get_by_role("tab", name="Label").click()
        write(page.get_by_label("Your name"), "Ann")
        page.click("#begin")
        expect(page.locator("#label-note")).to_contain_text("run")
        page.get_by_role("tab", name="Watch").click()
        expect(page.locator("#watch-plots")).to_contain_text("No metrics yet")
