"""The browser app on a finished run: how soon the page and the first words are there, and what many users do to it.

    python benchmarks/demo.py --root runs --to benchmarks/results/demo.json

From `lora-rlhf demo` to a drawn page, and from Enter to a first token in every column, in a real browser; all columns
together against one after the other, in pairs that take turns at being first; eight users with 25 prompts each,
with the process's memory meanwhile; and one person's answer while 70 pages of another address ask.
Run it on a quiet machine.

The tiny world's stages end their answers at very unlike lengths, and the longest decides how long all take together: no
batch could be faster than `most_possible`, all tokens over the longest answer's. So the columns are also compared where
each goes on to the same length, as if no token ended an answer.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lora_rlhf_demo import handler
from lora_rlhf_demo.handler import Limits, RequestHandler
from lora_rlhf_demo.loaded_runs import LoadedRuns
from lora_rlhf_demo.requests import Answered, Ask, Column, Open, Opened, Settings
from lora_rlhf_demo.worker import ModelWorker
from playwright.sync_api import Error, Page, sync_playwright
from provenance import provenance

from lora_rlhf.data.schema import Message
from lora_rlhf.system.disk import write_json

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PORT = 18160
QUESTION = "Describe the fox."
LONGEST = 64  # tokens
USERS, PROMPTS = 8, 25
PAGES, NUM_ANSWERS = 70, 9  # of the crowd, and of the person among it
ALL_SPEAK = """() => { const texts = [...document.querySelectorAll("#live .card .text")];
  return texts.length > 0 && texts.every((text) => text.textContent.length > 0) }"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs"))
    parser.add_argument("--run", default="quickstart")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/demo.json"))
    parser.add_argument("--crowd", action="store_true", help="the last alone: one person among 70 pages")
    args = parser.parse_args()
    starts = [] if args.crowd else [first_words(args.root, args.run) for _ in range(3)]
    worker = ModelWorker(lambda: RequestHandler(LoadedRuns(args.root, "cpu"), Limits()))
    opened = end(worker, Open(args.run))
    assert isinstance(opened, Opened), opened
    whole = (
        {}
        if args.crowd
        else {
            "start": {name: [start[name] for start in starts] for name in starts[0]},
            "columns_as_they_end": together(worker, args.run, opened.columns, args.rounds),
            "columns_of_equal_length": endless(worker, args.run, opened.columns, args.rounds),
            "load": load(worker, args.run, opened.columns),
        }
    )
    found = {**whole, "crowd": crowd(worker, args.run, opened.columns)}
    worker.close()
    command = f"python benchmarks/demo.py --root {args.root} --run {args.run} --rounds {args.rounds}"
    command += " --crowd" if args.crowd else ""
    settings = {"torch": torch.__version__, "torch_threads": torch.get_num_threads(), "run": args.run}
    write_json(args.to, {**provenance(command), **settings, **found})
    print(json.dumps(found, indent=2))


def first_words(root: Path, run: str) -> dict[str, float]:
    """Seconds: from the command to the page; to its columns; and, once there, from Enter to words in all columns."""
    started = time.monotonic()
    with served(root, run), sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, BROWSERS)))
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page()
        visit(page, started)
        page.wait_for_selector("#question textarea")
        first_page = time.monotonic() - started
        page.wait_for_selector("#columns input", timeout=120_000)
        columns = time.monotonic() - started
        waits = []
        for number in range(5):
            page.fill("#question textarea", f"{QUESTION} {number}")
            asked = time.monotonic()
            page.press("#question textarea", "Enter")
            page.wait_for_function(ALL_SPEAK, polling=20)
            waits.append(time.monotonic() - asked)
            page.wait_for_selector(f"#talk .turn:nth-child({number + 1}) .figures", timeout=120_000)
        browser.close()
    figures = {"first_page_s": first_page, "columns_s": columns, "first_tokens_s": waits[0]}
    return {name: round(value, 2) for name, value in (figures | {"first_tokens_worst_s": max(waits)}).items()}


@contextmanager
def served(root: Path, run: str) -> Iterator[None]:
    """`lora-rlhf demo` in a process of its own."""
    command = [sys.executable, "-m", "lora_rlhf.cli", "demo", "--root", str(root), "--run", run, "--port", str(PORT)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def visit(page: Page, started: float) -> None:
    """Opens the page as soon as there is one."""
    while time.monotonic() - started < 120:
        try:
            page.goto(f"http://127.0.0.1:{PORT}/")
            return
        except Error:  # not there yet
            time.sleep(0.1)
    raise SystemExit("the app did not start")


def endless(worker: ModelWorker, run: str, columns: tuple[str, ...], rounds: int) -> dict[str, object]:
    """`together` where no token ends an answer."""
    with patch.object(handler, "stop_ids", lambda tokenizer: []):
        return together(worker, run, columns, rounds)


def together(worker: ModelWorker, run: str, columns: tuple[str, ...], rounds: int) -> dict[str, object]:
    """Seconds of all columns in one batch, and one after the other; each answer has LONGEST tokens at most."""
    seconds: dict[str, list[float]] = {"together": [], "one after the other": []}
    possible = []
    for number in range(rounds + 1):
        asked: dict[str, list[tuple[str, ...]]] = {
            "together": [columns],
            "one after the other": [(column,) for column in columns],
        }
        for name in list(asked)[:: 1 if number % 2 else -1]:
            started = time.perf_counter()
            answered = [end(worker, question(run, stages, QUESTION, LONGEST, number)) for stages in asked[name]]
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
        tokens = [answer.num_tokens for event in answered for answer in event.answers]
        possible.append(sum(tokens) / max(tokens))
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    return {
        "times_as_fast": round(statistics.median(ratios), 2),
        "most_possible": round(statistics.median(possible[1:]), 2),
        "tokens": LONGEST,
        "ratios": [round(ratio, 2) for ratio in ratios],
        "seconds": {name: round(statistics.median(values), 3) for name, values in seconds.items()},
    }


def load(worker: ModelWorker, run: str, columns: tuple[str, ...]) -> dict[str, object]:
    """Every user asks one prompt after the other, all at once: answers that came, and memory after every 20th."""
    answered: list[str] = []
    memory: list[float] = []
    lock, started = threading.Lock(), time.monotonic()

    def chat(user: int) -> None:
        for number in range(PROMPTS):
            prompt = f"User {user}, prompt {number}: {QUESTION}"
            if isinstance(end(worker, question(run, columns, prompt, 32, number)), Answered):
                with lock:
                    answered.append(prompt)
                    if len(answered) % 20 == 0:
                        memory.append(resident_mib())

    users = [threading.Thread(target=chat, args=(user,)) for user in range(USERS)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    asked = {"users": USERS, "prompts": USERS * PROMPTS, "answered": len(set(answered))}
    return asked | {"seconds": round(time.monotonic() - started, 1), "resident_mib": memory}


def crowd(worker: ModelWorker, run: str, columns: tuple[str, ...]) -> dict[str, object]:
    """Seconds of one person's answer, alone, and while many pages of one other address ask without end."""
    is_over = threading.Event()

    def ask_on(page: int) -> None:
        while not is_over.is_set():
            list(worker.submit(question(run, columns, f"Page {page}: {QUESTION}", 32, page), "crowd").events())
            time.sleep(0.1)

    def answer(number: int) -> float:
        started = time.perf_counter()
        *_, last = worker.submit(question(run, columns, QUESTION, 32, number), "person").events()
        assert isinstance(last, Answered), last
        return time.perf_counter() - started

    alone = [answer(number) for number in range(NUM_ANSWERS + 1)][1:]
    pages = [threading.Thread(target=ask_on, args=(page,)) for page in range(PAGES)]
    for page in pages:
        page.start()
    time.sleep(2)
    among = [answer(number) for number in range(1, NUM_ANSWERS + 1)]
    is_over.set()
    for page in pages:
        page.join()
    seconds = {"alone": alone, "among_the_pages": among}
    rounded = {name: [round(value, 2) for value in values] for name, values in seconds.items()}
    return {
        "pages": PAGES,
        "seconds": rounded,
        "medians": {k: round(statistics.median(v), 2) for k, v in seconds.items()},
    }


def question(run: str, columns: tuple[str, ...], text: str, length: int, seed: int) -> Ask:
    """One question to those columns."""
    return Ask(run, tuple(Column(stage, (Message("user", text),)) for stage in columns), Settings(1.0, length, seed))


def end(worker: ModelWorker, request: Open | Ask) -> Any:
    """How a request ends."""
    *_, last = worker.submit(request).events()
    return last


def resident_mib() -> float:
    """Memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


if __name__ == "__main__":
    main()
