"""What a person waits for in the browser app: the page, first words, the next prompt to rank, an earlier conversation.

    python benchmarks/pages.py --root runs --to benchmarks/results/pages.json

Each in a real browser on a copy of a finished run, with two conversations of 20 turns kept, and with 200. Run it on a
quiet machine.
"""

import argparse
import json
import secrets
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, sync_playwright
from provenance import provenance

from demo import ALL_SPEAK, BROWSERS, QUESTION, served, visit
from lora_rlhf.system.disk import json_line, write_json

TARGETS = {"first_page_s": 4.0, "first_words_s": 0.3, "next_prompt_s": 0.4}
CONVERSATIONS, TURNS = 200, 20
STARTS = 3
SHOWN = "(text) => document.querySelector('{}')?.textContent.includes(text)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs"))
    parser.add_argument("--run", default="quickstart")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/pages.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(args.root / args.run, Path(folder) / args.run)
        found = measure(Path(folder), args.run, args.rounds)
    command = f"python benchmarks/pages.py --root {args.root} --run {args.run} --rounds {args.rounds}"
    medians = {name: round(statistics.median(values), 2) for name, values in found.items()}
    figures = {"targets": TARGETS, "medians": medians, "seconds": found}
    write_json(args.to, {**provenance(command), "conversations": CONVERSATIONS, "turns": TURNS, **figures})
    print(json.dumps(medians, indent=2))


def measure(root: Path, run: str, rounds: int) -> dict[str, list[float]]:
    """{what a person waits for: seconds}, with everything that is warm after a first visit warm."""
    with sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, BROWSERS)))
        page = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"]).new_page()
        starts = [seconds_to_first_page(page, root, run) for _ in range(STARTS)]
        with served(root, run):
            visit(page, time.monotonic())
            page.wait_for_selector("#columns input", timeout=120_000)
            return {"after_the_command_s": starts, **waits(page, root, run, rounds)}


def seconds_to_first_page(page: Page, root: Path, run: str) -> float:
    """From the command to the page."""
    began = time.monotonic()
    with served(root, run):
        visit(page, began)
        page.wait_for_selector("#question textarea", timeout=120_000)
        return round(time.monotonic() - began, 2)


def waits(page: Page, root: Path, run: str, rounds: int) -> dict[str, list[float]]:
    """The seconds of one page, opened on a server that has been running for a while."""
    found = {"first_words_s": [seconds_until_words(page, number) for number in range(rounds + 1)][1:]}
    found["next_prompt_s"] = next_prompts(page, rounds)
    folder = next((root / run / "conversations").iterdir())
    for count in (2, CONVERSATIONS):
        store(folder, count)
        found[f"first_page_s with {count}"] = [first_page(page) for _ in range(rounds)]
        found[f"history_s with {count}"] = [open_earlier(page, count - number % 2) for number in range(rounds)]
    found["first_page_s"] = found[f"first_page_s with {CONVERSATIONS}"]
    return found


def seconds_of(page: Page, act: Callable[[], object], condition: str, argument: str = "") -> float:
    """Seconds from an act until a condition of the page, in JavaScript, holds."""
    began = time.monotonic()
    act()
    page.wait_for_function(condition, arg=argument, polling=20, timeout=120_000)
    return round(time.monotonic() - began, 3)


def seconds_until_words(page: Page, number: int) -> float:
    """From Enter to words in all columns."""
    page.fill("#question textarea", f"{QUESTION} {number}")
    seconds = seconds_of(page, lambda: page.press("#question textarea", "Enter"), ALL_SPEAK)
    page.wait_for_selector(f"#talk .turn:nth-child({number + 1}) .figures", timeout=120_000)
    return seconds


def next_prompts(page: Page, rounds: int) -> list[float]:
    """From Save to the next prompt and its answers."""
    page.get_by_role("tab", name="Label").click()
    page.fill("#labeler :is(input, textarea)", "Somebody new")
    page.click("#begin")
    seconds = []
    for _ in range(rounds):
        page.wait_for_selector(".choice")
        page.keyboard.press("b")
        page.wait_for_timeout(500)
        prompt = page.locator("#label-prompt").text_content() or ""
        is_next = "(old) => !document.querySelector('#label-prompt').textContent.includes(old.trim())"
        seconds.append(seconds_of(page, lambda: page.keyboard.press("Enter"), is_next, prompt))
    page.get_by_role("tab", name="Compare").click()
    return seconds


def store(folder: Path, count: int) -> None:
    """Keeps this many conversations of the browser, made of the one that it had."""
    for number in range(len(list(folder.glob("*.jsonl"))), count + 1):
        source = max(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
        talk = json.loads(source.read_text(encoding="utf-8").split("\n")[1])
        talk["id"], title = secrets.token_hex(6), f"Conversation {number} of many"
        talk["turns"] = [{**talk["turns"][0], "question": title}] * TURNS
        text = json_line({"title": title, "turns": TURNS}) + json_line(talk)
        (folder / f"{talk['id']}.jsonl").write_bytes(text)


def first_page(page: Page) -> float:
    """From a reload to the columns that can be asked and the conversation that was shown last."""
    is_there = "() => document.querySelector('#columns input') && document.querySelector('#talk .turn')"
    return seconds_of(page, page.reload, is_there)


def open_earlier(page: Page, number: int) -> float:
    """From the choice of another conversation to its turns."""
    title = f"Conversation {number} of many"
    page.wait_for_selector("#about .line")  # the list is drawn anew until the run is open
    page.locator("#history input").click()
    option = page.get_by_role("option", name=f"{title} ({TURNS})", exact=True)
    return seconds_of(page, option.click, SHOWN.format("#talk .turn:nth-child(20)"), title)


if __name__ == "__main__":
    main()
