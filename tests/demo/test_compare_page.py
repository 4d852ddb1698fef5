"""The compare tab in a real browser: what a user does with mouse and keys, and what hostile texts cannot do."""

import html
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lora_rlhf_demo import handler
from lora_rlhf_demo.app import launch_app
from lora_rlhf_demo.config import DemoConfig
from lora_rlhf_demo.rows import RowFile
from lora_rlhf_demo.show import safe_html
from playwright.sync_api import Page, Route, ViewportSize, expect

from lora_rlhf.data.sources import read_rankings
from tests.support.demo import HOSTILE, PORT, Served, write

pytestmark = pytest.mark.browser
TURNS = "#talk .turn"
SIZES: list[ViewportSize] = [{"width": w, "height": h} for w, h in ((390, 844), (1280, 800), (1920, 1080))]


def send(page: Page, text: str, turns: int = 1) -> None:
    """Asks with the Enter key, and waits until that many turns are answered."""
    page.fill("#question textarea", text)
    page.press("#question textarea", "Enter")
    if page.locator("#question textarea").input_value() == text:  # a page that has just come may not hear it yet
        page.wait_for_timeout(1000)
        if page.locator("#question textarea").input_value() == text and not page.locator("#live .card").count():
            page.press("#question textarea", "Enter")
    expect(page.locator(TURNS)).to_have_count(turns)


def go_blind(page: Page) -> None:
    page.click("#blind input")
    expect(page.locator("#live .status")).to_contain_text("names are hidden")  # else this would stop the question


def answers(page: Page, turn: int = -1) -> list[str]:
    return page.locator(TURNS).nth(turn).locator(".card .text").all_text_contents()


def wait_until_all_speak(page: Page) -> None:
    page.wait_for_function(
        "(live => live.length && live.every(one => one.textContent.length > 3))"
        "([...document.querySelectorAll('#live .card .text')])"
    )


def titles(page: Page, turn: int = -1) -> list[str]:
    return page.locator(TURNS).nth(turn).locator("h3").all_text_contents()


@pytest.fixture
def pause() -> list[float]:
    """Seconds between two tokens of a slow answer: its only item, which a test may change."""
    return [0.05]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch, pause: list[float]) -> None:
    """Answers take a while, so that a test can act meanwhile."""
    real = handler.stream_mixed

    def stream(*args, **kwargs) -> Iterator:
        for step in real(*args, **kwargs):
            time.sleep(pause[0])
            yield step

    monkeypatch.setattr(handler, "stream_mixed", stream)


def test_all_columns_answer_and_go_on_from_what_they_said(page: Page) -> None:
    send(page, "Who counts the ships?")
    assert titles(page) == ["base", "sft", "policy"]
    assert len(set(answers(page))) == 3
    figures = page.locator(".figures").first
    for name in ("score", "tokens", "tokens/s", "KL"):
        expect(figures.locator("dt", has_text=name).first).to_be_visible()
    send(page, "And then?", turns=2)
    first = answers(page, 0)
    page.locator("[data-edit]").last.click()
    expect(page.locator(TURNS)).to_have_count(1)
    expect(page.locator("#question textarea")).to_have_value("And then?")
    assert answers(page, 0) == first
    send(page, "And before?", turns=2)
    assert page.locator(".question").all_text_contents() == ["Who counts the ships?", "And before?"]
    # the page goes along: nothing of the last answer is under the box to ask in
    page.wait_for_function("document.querySelector('#main').getBoundingClientRect().bottom <= innerHeight + 2")


def test_the_same_seed_says_the_same_and_regenerating_does_not(page: Page) -> None:
    send(page, "Who counts the ships?")
    before = answers(page)
    page.click("#again")
    expect(page.locator("#live .live").first).to_be_attached()
    expect(page.locator("#live .live")).to_have_count(0)
    assert answers(page) != before
    page.click("#new")
    expect(page.locator(TURNS)).to_have_count(0)
    send(page, "Who counts the ships?")
    assert answers(page) == before


def test_esc_stops_and_what_was_said_stays(page: Page, slow: None) -> None:
    page.fill("#question textarea", "Who counts the ships?")
    page.press("#question textarea", "Enter")
    wait_until_all_speak(page)
    page.keyboard.press("Escape")
    expect(page.locator("#live .status")).to_have_text("Stopped.")
    expect(page.locator(".figures").first).to_contain_text("(cut)")
    assert all(answers(page))
    expect(page.locator("#send")).to_be_enabled()


def test_an_answer_is_copied_and_the_look_is_switched(page: Page) -> None:
    send(page, "Who counts the ships?")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("[data-copy]").nth(1).click()
    expect(page.locator("[data-copy]").nth(1)).to_have_text("copied")
    assert page.evaluate("navigator.clipboard.readText()") == answers(page)[1]
    dark = "document.body.classList.contains('dark')"
    before = page.evaluate(dark)
    page.click("[data-theme]")
    assert page.evaluate(dark) != before


def test_a_blind_vote_reveals_the_names_and_is_kept(page: Page, served: Served) -> None:
    page.click("#raw input")
    go_blind(page)
    send(page, "Who is blind?")
    assert titles(page) == ["Answer A", "Answer B", "Answer C"]
    expect(page.locator("#talk .figures")).to_have_count(0)
    assert "policy" not in page.locator("#talk").inner_html()
    spoken = answers(page)
    expect(page.locator("#send")).to_be_disabled()
    page.fill("#ranking textarea, #ranking input", "C > A")
    page.press("#ranking textarea, #ranking input", "Enter")
    expect(page.locator("#live .failure")).to_contain_text("not a ranking")
    page.get_by_role("button", name="B is best").click()
    expect(page.locator("#talk h3").first).to_contain_text("(was A, rank 2)")
    expect(page.locator("#standings")).to_contain_text("policy beats sft")
    assert sorted(title.split()[0] for title in titles(page)) == ["base", "policy", "sft"]
    rankings, _ = read_rankings(str(served.root / "first" / "votes.jsonl"), strict=True)
    assert [html.unescape(safe_html(text)) for text in rankings[-1].responses] == spoken
    assert rankings[-1].ranks == (2, 1, 2)
    send(page, "And now?", turns=2)
    assert titles(page) == ["Answer A", "Answer B", "Answer C"]


def test_tokens_are_coloured_where_asked(page: Page) -> None:
    page.click("#raw input")
    send(page, "Who counts the ships?")
    expect(page.locator(".token")).to_have_count(0)
    plain = answers(page)
    page.click("#differences input")
    expect(page.locator(".token").first).to_be_visible()
    for coloured, text in zip(answers(page), plain, strict=True):  # the pieces are those of the text, to the end
        assert coloured.strip().startswith(text)
    assert page.locator(".token.more").count() > 0 and page.locator(".token.less").count() > 0


def test_hostile_words_stay_words(page: Page) -> None:
    page.get_by_text("Settings").click()
    write(page.locator("#system textarea"), HOSTILE)
    send(page, HOSTILE + " مرحبا 👩‍👩‍👧")
    shown = page.locator(".question").text_content() or ""
    assert shown == HOSTILE.replace("\x1b", "␛") + " مرحبا 👩‍👩‍👧"
    assert page.evaluate("window.hacked") is None
    assert page.locator("#talk img, #talk script, #talk a, #live img").count() == 0
    assert page.locator(".question").get_attribute("dir") == "auto"


@pytest.mark.long
def test_a_text_of_100_000_characters_is_refused_with_a_message(page: Page) -> None:
    page.fill("#question textarea", "x" * 100_000)
    page.press("#question textarea", "Enter")
    expect(page.locator("#live .failure")).to_contain_text("100,000 characters; at most 20,000")
    page.wait_for_timeout(1000)  # the page drops a second question that comes before the first has ended
    page.fill("#question textarea", "")
    page.press("#question textarea", "Enter")
    expect(page.locator("#live .failure")).to_contain_text("Write a question first")
    send(page, "Who counts the ships?")


def test_a_run_whose_name_the_browser_lost_still_answers(page: Page) -> None:
    """Updates of a list of choices are lost now and then, by a page that is clicked as soon as it stands."""

    def lose_run(route: Route) -> None:
        values = json.loads(route.request.post_data or "")
        assert "first" in values["data"]
        route.continue_(post_data=values | {"data": [None if value == "first" else value for value in values["data"]]})

    page.route("**/queue/join*", lose_run)
    go_blind(page)
    send(page, "Who counts the ships?")


def test_the_conversation_is_exported(page: Page) -> None:
    page.click("#raw input")
    send(page, "Who counts the ships?")
    with page.expect_download() as download:
        page.click("#export")
    found = json.loads(Path(download.value.path()).read_text())
    (turn,) = found["turns"]
    assert (found["run"], turn["question"], turn["seed"]) == ("first", "Who counts the ships?", 0)
    assert [html.unescape(safe_html(answer["text"])) for answer in turn["answers"]] == answers(page)


def test_other_columns_new_and_edit_lose_nothing(page: Page) -> None:
    page.get_by_label("base", exact=True).uncheck()
    for number in range(3):
        send(page, f"Question {number}?", turns=number + 1)
    said = page.locator("#talk .card .text").all_text_contents()
    assert titles(page) == ["sft", "policy"]
    page.get_by_label("base", exact=True).check()
    expect(page.locator("#live")).to_contain_text("what was said stays")
    expect(page.locator(TURNS)).to_have_count(3)
    send(page, "And the base?", turns=4)
    assert titles(page) == ["base", "sft", "policy"]
    assert page.locator("#talk .card .text").all_text_contents()[:6] == said
    page.click("#new")
    expect(page.locator(TURNS)).to_have_count(0)
    page.click("#back")
    expect(page.locator(TURNS)).to_have_count(4)
    page.locator("[data-edit]").nth(1).click()
    expect(page.locator(TURNS)).to_have_count(1)
    expect(page.locator("#question textarea")).to_have_value("Question 1?")
    page.click("#back")
    expect(page.locator(TURNS)).to_have_count(4)
    page.click("#new")
    expect(page.locator(TURNS)).to_have_count(0)
    send(page, "Another talk?")
    page.reload()
    expect(page.locator(TURNS)).to_have_count(1)
    expect(page.locator(".question")).to_have_text("Another talk?")
    page.locator("#history input").click()
    page.get_by_role("option", name="Question 0?").click()
    expect(page.locator(TURNS)).to_have_count(4)
    assert page.locator("#talk .card .text").all_text_contents()[:6] == said


def test_an_example_of_the_run_is_put_into_the_box(served: Served, open_page: Callable[..., Page]) -> None:
    file = served.root / "first" / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": HOSTILE}) + "\n" + json.dumps({"prompt": "Who counts?"}) + "\nno json\n")
    try:
        page = open_page()
        page.get_by_role("button", name="Who counts?").click()
        expect(page.locator("#question textarea")).to_have_value("Who counts?")
        assert page.locator("[data-example]").first.text_content() == HOSTILE.replace("\x1b", "\u241b")
        page.keyboard.press("Enter")
        expect(page.locator(TURNS)).to_have_count(1)
    finally:
        file.unlink()


def test_another_browser_finds_nothing_of_it(page: Page, open_page: Callable[..., Page]) -> None:
    send(page, "Who hears this?")
    expect(page.locator("#history")).to_be_visible()
    other = open_page()
    other.wait_for_selector("#columns input")
    expect(other.locator("#send")).to_be_enabled()
    expect(other.locator(TURNS)).to_have_count(0)
    expect(other.locator("#history")).to_have_count(0)


def test_regenerating_keeps_the_versions(page: Page) -> None:
    send(page, "Who counts the ships?")
    first = answers(page)
    page.click("#again")
    expect(page.locator("[data-version]")).to_contain_text("version 2 of 2")
    second = answers(page)
    assert second != first
    page.click("[data-version]")
    expect(page.locator("[data-version]")).to_contain_text("version 1 of 2")
    assert answers(page) == first
    page.click("[data-version]")
    expect(page.locator("[data-version]")).to_contain_text("version 2 of 2")
    assert answers(page) == second


@pytest.mark.parametrize("last", [3, pytest.param(10, marks=pytest.mark.long)])
def test_a_blind_vote_is_in_view_after_1_3_and_10_questions_at_every_width(page: Page, last: int) -> None:
    assert page.evaluate("scrollY") == 0, "it opens at its top"
    go_blind(page)
    for number in range(1, last + 1):
        send(page, f"Question {number}? " + "more " * 40, turns=number)
        for size in SIZES if number in (1, 3, 10) else ():
            page.set_viewport_size(size)
            check_that_a_vote_is_in_view(page)
        page.get_by_role("button", name="A is best").click()
        expect(page.locator("#talk h3").last).to_contain_text("(was C")


def check_that_a_vote_is_in_view(page: Page) -> None:
    best = page.get_by_role("button", name="A is best")
    for button in (best, page.locator("#tie"), page.locator("#all-bad")):
        expect(button).to_be_in_viewport()
    box = best.bounding_box()
    assert box is not None
    on_top = "([x, y]) => document.elementFromPoint(x, y).textContent.trim()"
    assert page.evaluate(on_top, [box["x"] + 20, box["y"] + box["height"] / 2]) == "A is best"
    placeholder = page.locator("#question textarea").get_attribute("placeholder")
    assert placeholder is not None and "Vote first" in placeholder
    area, size = page.locator("#asking").bounding_box(), page.viewport_size
    assert area is not None and size is not None
    assert area["height"] < size["height"] / 3 or size["width"] > 700, "the answers have the most of a phone's screen"


def test_all_bad_is_a_tie_and_a_vote_is_taken_back(page: Page, served: Served) -> None:
    votes = RowFile(served.root / "first" / "votes.jsonl")
    before = len(votes.rows())
    go_blind(page)
    send(page, "Who is bad?")
    page.click("#all-bad")
    expect(page.locator("#talk h3").first).to_contain_text("rank 1")
    row = votes.rows()[-1]
    assert (row["ranks"], row["all_bad"], len(row["ended"])) == ([1, 1, 1], True, 3)
    page.click("#unvote")
    expect(page.locator("#live")).to_contain_text("The vote is removed")
    assert len(votes.rows()) == before
    expect(page.locator("#unvote")).to_have_count(0)
    send(page, "And again?", turns=2)
    page.get_by_text("All as good").click()
    expect(page.locator("#unvote")).to_be_visible()


def test_prompts_of_a_file_are_voted_on_in_turn_and_the_votes_read_searched_and_removed(
    served: Served, tmp_path: Path, open_page: Callable[..., Page]
) -> None:
    shutil.copytree(served.root / "first" / "sft", tmp_path / "runs" / "one" / "sft")
    prompts = [f"Who is {HOSTILE}?", "What else?"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    config = DemoConfig(
        root=str(tmp_path / "runs"), prompts=str(tmp_path / "p.jsonl"), port=PORT, max_response_tokens=8
    )
    with launch_app(config) as blocks:
        page = open_page(blocks.local_url)
        expect(page.locator("#about")).to_contain_text("Base")
        go_blind(page)
        for number, prompt in enumerate(prompts, start=1):
            page.click("#next")
            expect(page.locator("#live")).to_contain_text(f"Prompt {number} of 2. With a vote: {number - 1}.")
            assert page.locator("#question textarea").input_value() == prompt
            page.click("#send")
            page.get_by_role("button", name="A is best").click()
            expect(page.locator("#talk h3").first).to_contain_text("was A")
        page.click("#next")
        expect(page.locator("#live")).to_contain_text("All 2 prompts have a vote.")
        page.get_by_text("Past votes").click()
        expect(page.locator(".past-vote")).to_have_count(2)
        search = page.locator("#past-search textarea, #past-search input")
        write(search, "window.HACKED who")
        search.press("Enter")
        expect(page.locator(".past-vote")).to_have_count(1)
        page.click(".past-vote summary")
        expect(page.locator(".past-answer")).to_have_count(2)
        page.once("dialog", lambda dialog: dialog.accept())
        page.click("[data-remove-vote]")
        expect(page.locator("#past-votes .line").first).to_have_text("0 of 1 votes")
        assert page.evaluate("window.hacked") is None
    folder = tmp_path / "runs" / "one"
    assert [row["prompt"] for row in RowFile(folder / "votes.jsonl").rows()] == ["What else?"]
    assert [row["prompt"] for row in RowFile(folder / "votes.removed.jsonl").rows()] == [prompts[0]]


def test_a_cut_answer_goes_on_and_stays_hidden(page: Page) -> None:
    page.click("#raw input")
    go_blind(page)
    send(page, "What goes on?")
    before = answers(page)
    page.locator("[data-go-on='1']").click()
    page.wait_for_function(
        "length => (document.querySelectorAll('#talk .card .text')[1]?.textContent.length ?? 0) > length",
        arg=len(before[1]) + 3,
    )
    expect(page.locator("#live .card")).to_have_count(0)
    expect(page.locator("#vote")).to_be_visible()
    after = answers(page)
    assert len(after[1]) > len(before[1]) + 3
    assert after[1].startswith(before[1][:-1]) and [after[0], after[2]] == [before[0], before[2]]
    assert titles(page) == ["Answer A", "Answer B", "Answer C"]
    page.click("#tie")
    expect(page.locator("#talk h3").first).to_contain_text("rank 1")
    expect(page.locator("[data-go-on]")).to_have_count(0)


def test_a_vote_by_dragging_and_by_keys(page: Page, served: Served) -> None:
    page.click("#raw input")
    go_blind(page)
    send(page, "Who is dragged?")
    spoken = answers(page)
    page.get_by_text("Rank by dragging or by keys").click()
    expect(page.locator("#drag .choice")).to_have_count(3)
    assert page.locator("#drag .choice .text").all_text_contents() == spoken
    page.click("#rank")
    expect(page.locator("#live .failure")).to_contain_text("Drag an answer to its place first")
    grip = page.locator('#drag .choice[data-place="2"] .letter').bounding_box()
    first = page.locator('#drag .choice[data-place="0"]').bounding_box()
    assert grip is not None and first is not None
    page.mouse.move(grip["x"] + 3, grip["y"] + 3)
    page.mouse.down()
    page.mouse.move(grip["x"] + 3, first["y"] + 2, steps=6)
    page.mouse.up()
    page.keyboard.press("a")
    page.keyboard.press("Enter")
    expect(page.locator("#talk h3").first).to_contain_text("(was A, rank 2)")
    row = RowFile(served.root / "first" / "votes.jsonl").rows()[-1]
    assert (row["prompt"], row["ranks"]) == ("Who is dragged?", [2, 3, 1])
    expect(page.locator("#drag")).to_have_count(0)


def test_presets_and_the_last_settings_outlive_a_reload(page: Page) -> None:
    page.get_by_text("Settings").click()
    write(page.locator("#system textarea"), "Be short.")
    for name, value in (("#top-p", "0.5"), ("#temperature", "0.7")):
        page.fill(f"{name} input[type=number]", value)
        page.press(f"{name} input[type=number]", "Enter")
    page.fill("#presets input", "short")
    page.click("#keep-preset")
    write(page.locator("#system textarea"), "Be long.")
    send(page, "Who is set?")
    page.reload()
    expect(page.locator(TURNS)).to_have_count(1)
    page.get_by_text("Settings").click()
    expect(page.locator("#system textarea")).to_have_value("Be long.")
    expect(page.locator("#top-p input[type=number]")).to_have_value("0.5")
    page.locator("#presets input").click()
    page.get_by_role("option", name="short").click()
    expect(page.locator("#system textarea")).to_have_value("Be short.")


@pytest.mark.long  # tests of the worker show the same
def test_two_pages_at_once_see_only_their_own_words(
    open_page: Callable[..., Page], slow: None, pause: list[float]
) -> None:
    pages = [open_page(), open_page()]
    pause[0] = 0.5  # so that the second has to wait long enough to be told so
    for opened, text in zip(pages, ("first user's words", "second user's words"), strict=True):
        opened.wait_for_selector("#columns input")
        opened.fill("#question textarea", text)
    pages[0].press("#question textarea", "Enter")
    expect(pages[0].locator("#live .text").nth(1)).not_to_be_empty()  # else the second may come before it
    pages[1].press("#question textarea", "Enter")
    expect(pages[1].locator("#live .status")).to_contain_text("In the queue")
    pages[0].click("#stop")
    expect(pages[0].locator(TURNS)).to_have_count(1)
    pause[0] = 0.05
    expect(pages[1].locator("#live .text").nth(1)).not_to_be_empty()
    pages[1].keyboard.press("Escape")
    expect(pages[1].locator(TURNS)).to_have_count(1)
    for opened, foreign in zip(pages, ("second user", "first user"), strict=True):
        assert foreign not in opened.locator("#main").inner_html()


@pytest.mark.long
def test_a_question_stopped_while_it_waits_comes_back(
    open_page: Callable[..., Page], slow: None, pause: list[float]
) -> None:
    pages = [open_page(), open_page()]
    pause[0] = 0.5
    for opened, text in zip(pages, ("at work", "in the queue"), strict=True):
        opened.wait_for_selector("#columns input")
        opened.fill("#question textarea", text)
    pages[0].press("#question textarea", "Enter")
    expect(pages[0].locator("#live .text").nth(1)).not_to_be_empty()
    pages[1].press("#question textarea", "Enter")
    expect(pages[1].locator("#live .status")).to_contain_text("In the queue")
    pages[1].keyboard.press("Escape")
    pages[0].click("#stop")
    expect(pages[1].locator("#live .status")).to_have_text("Stopped.")
    expect(pages[1].locator("#question textarea")).to_have_value("in the queue")
    expect(pages[1].locator(TURNS)).to_have_count(0)


def test_a_question_that_a_change_of_columns_stops_comes_back(page: Page, slow: None) -> None:
    send_at = "#question textarea"
    page.fill(send_at, "Who counts?")
    page.press(send_at, "Enter")
    wait_until_all_speak(page)
    page.click("#blind input")
    expect(page.locator(send_at)).to_have_value("Who counts?")
    expect(page.locator("#live .status")).to_contain_text("names are hidden")


@pytest.mark.long  # tests of the worker show the same
def test_a_page_closed_in_the_middle_frees_the_model(open_page: Callable[..., Page], slow: None) -> None:
    leaving = open_page()
    leaving.wait_for_selector("#columns input")
    leaving.fill("#question textarea", "I am leaving")
    leaving.press("#question textarea", "Enter")
    wait_until_all_speak(leaving)
    leaving.close()
    staying = open_page()
    staying.wait_for_selector("#columns input")
    began = time.monotonic()
    staying.fill("#question textarea", "I stay")
    staying.press("#question textarea", "Enter")
    wait_until_all_speak(staying)
    assert time.monotonic() - began < 5  # all of the other's answer would take 6.4 s
    staying.keyboard.press("Escape")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_and_wide_light_and_dark(open_page: Callable[..., Page], scheme: str) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page.wait_for_selector("#columns input")
    send(page, "Who counts the ships? " + "x" * 300)
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        expect(page.locator("#question")).to_be_in_viewport()
        expect(page.locator("#send")).to_be_in_viewport()
    places = page.locator(".card").evaluate_all("cards => cards.map(card => card.getBoundingClientRect().top)")
    assert len(set(places)) == 1  # side by side
    ink, ground = (
        sum(map(int, page.evaluate(f"getComputedStyle(document.querySelector('.card')).{name}")[4:-1].split(",")))
        for name in ("color", "backgroundColor")
    )
    assert (ink > ground) == (scheme == "dark")


@pytest.mark.long
def test_without_a_run_the_page_says_how_to_make_one_and_finds_it_later(
    open_page: Callable[..., Page], served: Served, tmp_path: Path
) -> None:
    root = tmp_path / "none"
    (root / "half" / "sft").mkdir(parents=True)
    (root / "half" / "sft" / "manifest.json").write_text('{"status": "run')
    with launch_app(DemoConfig(root=str(root), port=PORT + 100)) as blocks:
        page = open_page(blocks.local_url)
        expect(page.locator("#no-runs")).to_contain_text("scripts/quickstart.sh")
        expect(page.locator("#no-runs")).to_contain_text("half: sft cannot be read")
        shutil.copytree(served.root / "first", root / "first")
        page.reload()
        page.wait_for_selector("#columns input")
        send(page, "Who counts the ships?")
        page.close()
