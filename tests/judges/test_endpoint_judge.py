"""A judge behind an API: a server on this machine that answers well, late, badly or not at all."""

import asyncio
import dataclasses
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.configs.judge import JudgeConfig
from lora_rlhf.judges import endpoint
from lora_rlhf.judges.asking import Asker
from lora_rlhf.judges.cache import Cache
from lora_rlhf.judges.choose import open_judge
from lora_rlhf.judges.endpoint import Endpoint, remove_key
from lora_rlhf.judges.judge import Judge, Verdicts
from lora_rlhf.judges.pairwise import PairwiseJudge
from lora_rlhf.judges.question import read_questions
from lora_rlhf.system.errors import UserError
from tests.support.fake_api import Raw, longer_wins, says, serve, sides
from tests.support.judges import QUESTIONS, answers, asked

KEY = "sk-very-secret-0123456789"
FIRST = ("long answer, really", "short", "same", "same")
SECOND = ("short", "long answer, really", "same", "size")
PROMPTS = asked(*QUESTIONS[:4])
Open = Callable[..., Judge]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def open_at(tmp_path: Path) -> Open:
    """open_at(url, **changes) -> a judge that keeps its verdicts in this test's folder."""

    def make(url: str, **changes: Any) -> Judge:
        values: dict[str, Any] = {"judge": "endpoint", "judge_model": "m", "judge_url": url, "judge_retries": 2}
        config = JudgeConfig(**(values | changes))
        assert config.judge_faults() == []
        cache = Cache(tmp_path / "judgements.jsonl")
        asker = Asker("endpoint", Endpoint(config), cache, budget=config.judge_budget)
        return PairwiseJudge(asker, read_questions(config.judge_instructions))

    return make


def compare(judge: Judge, first: tuple[str, ...] = FIRST, second: tuple[str, ...] = SECOND) -> Verdicts:
    return judge.compare(asked(*QUESTIONS[: len(first)]), answers(*first), answers(*second))


def many(number: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Answers of which the first is longer."""
    return tuple(f"answer {i} that wins" for i in range(number)), tuple(f"answer {i}" for i in range(number))


def test_each_pair_is_asked_in_both_orders_and_nothing_is_asked_twice(open_at: Open) -> None:
    with serve(longer_wins) as api:
        judge = open_at(api.url, judge_price_in=2.0, judge_price_out=6.0)
        verdicts = compare(judge)
        assert (verdicts.outcomes, verdicts.failures, verdicts.inconsistent) == ([1.0, 0.0, 0.5, 0.5], 0, 0)
        asked_about = Counter(sides(question) for question in api.questions)
        pairs = [(a, b) for a, b in zip(FIRST, SECOND, strict=True) if a != b]
        assert asked_about == Counter([*pairs, *((b, a) for a, b in pairs)])
        about = judge.describe()
        assert verdicts.cost == about["cost"] == pytest.approx(6 * (100 * 2 + 10 * 6) / 1e6, rel=1e-12)
        assert (about["pairs"], about["identical"], about["calls"], about["cached"]) == (4, 1, 6, 0)
        assert (about["tokens_in"], about["tokens_out"], about["inconsistent_share"]) == (600, 60, 0.0)
        assert {"name": "endpoint", "model": "m", "failures": 0}.items() <= about.items()

        reopened = open_at(api.url, judge_price_in=2.0, judge_price_out=6.0)
        assert compare(reopened).outcomes == verdicts.outcomes
        assert compare(reopened, SECOND, FIRST).outcomes == [0.0, 1.0, 0.5, 0.5], "the swapped pair is the same content"
        assert len(api.bodies) == 6, "a second evaluation of the same content makes no calls"
        assert (reopened.describe()["cached"], reopened.describe()["calls"], reopened.describe()["cost"]) == (
            12,
            0,
            0.0,
        )


def test_it_can_be_asked_where_an_event_loop_runs_already(open_at: Open) -> None:
    async def cell_of_a_notebook(url: str) -> Verdicts:
        return compare(open_at(url))

    with serve(longer_wins) as api, ThreadPoolExecutor(1) as thread:
        verdicts = thread.submit(asyncio.run, cell_of_a_notebook(api.url)).result()
    assert verdicts.outcomes == [1.0, 0.0, 0.5, 0.5]


def test_a_judge_is_asked_one_plain_question_when_it_is_opened_for_the_first_time(tmp_path: Path) -> None:
    replies = iter([says("Verdict: A"), Raw(401), says("What?"), says("What?")])
    with serve(lambda question: next(replies)) as api:

        def opened(**changes: Any) -> Judge:
            config = JudgeConfig(judge="endpoint", judge_model="m", judge_url=api.url, judge_retries=1)
            return open_judge(dataclasses.replace(config, **changes), str(tmp_path / "run"), "cpu", False)

        assert opened().describe()["calls"] == 1 and sides(api.questions[0])[0] == "A week has seven days."
        assert opened().describe()["calls"] == 0, "it was asked before"
        with pytest.raises(UserError, match="HTTP 401: it refuses the key"):
            opened(judge_model="n")
        with pytest.raises(UserError, match=r"n gave no verdict \(1 question asked\).*What\?"):
            opened(judge_model="n")
        assert len(api.bodies) == 4


def test_another_model_instructions_or_limit_asks_anew(open_at: Open, tmp_path: Path) -> None:
    (tmp_path / "criteria.txt").write_text("The ruder answer is better.")
    with serve(longer_wins) as api:
        compare(open_at(api.url))
        for changes in (
            {"judge_model": "m2"},
            {"judge_instructions": str(tmp_path / "criteria.txt")},
            {"judge_max_tokens": 99},
        ):
            before = len(api.bodies)
            compare(open_at(api.url, **changes))
            assert len(api.bodies) == before + 6, changes
        assert "The ruder answer is better." in api.questions[-7] and api.bodies[-1]["max_tokens"] == 99


@pytest.mark.parametrize(("side", "first", "second"), [("A", 3, 0), ("B", 0, 3)])
def test_a_judge_that_prefers_a_position_finds_ties_that_are_counted(
    open_at: Open, side: str, first: int, second: int
) -> None:
    with serve(lambda question: says(f"Verdict: {side}")) as api:
        judge = open_at(api.url)
        verdicts = compare(judge)
    assert verdicts.outcomes == [0.5] * 4 and verdicts.inconsistent == 3
    about = judge.describe()
    assert (about["inconsistent"], about["inconsistent_share"]) == (3, 1.0)
    assert (about["inconsistent_for_first"], about["inconsistent_for_second"]) == (first, second)


def test_a_verdict_in_one_order_alone_is_a_tie(open_at: Open) -> None:
    with serve(lambda question: says("Verdict: A" if sides(question)[0] in FIRST[:2] else "Verdict: tie")) as api:
        judge = open_at(api.url)
        verdicts = compare(judge, ("one", "long answer, really"), ("two", "three"))
    about = judge.describe()
    assert verdicts.outcomes == [0.5, 0.5] and verdicts.inconsistent == 1 and about["inconsistent_share"] == 0.5
    assert (about["inconsistent_for_first"], about["inconsistent_for_second"]) == (0, 0)


BAD = {
    "no verdict in its last line": says("I like both."),
    "an answer that is no JSON object": Raw(body=b"<html>busy</html>"),
    "an answer without text": Raw(body=b'{"choices": []}'),
    "an answer of more than 4,194,304 bytes": Raw(body=b" " * (4 * 2**20 + 1)),
    "the connection failed": Raw(status=0),
    "HTTP 500": Raw(500, b"oops"),
    "HTTP 400": Raw(400, b'{"error": {"message": "too long"}}'),
    "no answer within 1 s": Raw(200, b"", seconds=3),
    "cut off by --judge_max_tokens": says("Verdict: A", finish="length"),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_is_no_verdict_is_a_failure_and_never_guessed(open_at: Open, fault: str) -> None:
    limit = 1 if fault.startswith("no answer") else 60
    with serve(lambda question: BAD[fault] if "bad" in sides(question) else longer_wins(question)) as api:
        judge = open_at(api.url, judge_retries=1, judge_timeout=limit)
        verdicts = compare(judge, ("winner", "bad", "x"), ("loser", "other", "y z"))
        tries = 1 if fault in ("HTTP 400", "cut off by --judge_max_tokens") else 2
        assert verdicts.outcomes == [1.0, None, 0.0] and verdicts.failures == 1
        about = judge.describe()
        assert about["faults"] == {fault: 2} and about["failures"] == 1
        assert about["calls"] == len(api.bodies) == 4 + 2 * tries
        reopened = open_at(api.url, judge_retries=0, judge_timeout=limit)
        assert compare(reopened, ("winner", "bad", "x"), ("loser", "other", "y z")).outcomes == [1.0, None, 0.0]
        assert len(api.bodies) == 4 + 2 * tries + 2, "a failure is not kept: it is asked again, the others are not"


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"[" * 10_000,
        b'{"choices": 3}',
        b'{"choices": [null]}',
        b'{"choices": [{"message": {"content": null}}]}',
        b'{"choices": [{"message": {"content": ["Verdict: A"]}}]}',
        b'{"error": {"message": "overloaded"}}',
        b"\xff\xfe",
        b'{"choices": [{"message": "Verdict: A"}]}',
    ],
)
def test_answers_of_another_shape_are_failures(open_at: Open, body: bytes) -> None:
    with serve(lambda question: Raw(body=body) if "bad" in sides(question) else longer_wins(question)) as api:
        assert compare(open_at(api.url), ("bad", "xx"), ("other", "y")).outcomes == [None, 1.0]


@pytest.mark.parametrize("position", [0, 1])
def test_one_failed_order_leaves_no_outcome(open_at: Open, position: int) -> None:
    with serve(lambda question: says("?") if sides(question)[position] == "bad" else longer_wins(question)) as api:
        assert compare(open_at(api.url), ("bad", "xx"), ("other", "y")).outcomes == [None, 1.0]


def test_usage_that_is_missing_or_absurd_is_counted_as_unknown(open_at: Open) -> None:
    usages = iter(
        [None, {"prompt_tokens": "many"}, {"prompt_tokens": -1, "completion_tokens": 2}, {"prompt_tokens": 1}]
    )
    with serve(lambda question: says("Verdict: tie", usage=next(usages))) as api:
        judge = open_at(api.url, judge_concurrency=1)
        assert compare(judge, ("a", "b"), ("c", "d")).outcomes == [0.5, 0.5]
    about = judge.describe()
    assert (about["without_usage"], about["tokens_in"], about["cost"]) == (4, 0, None)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(open_at: Open, status: int) -> None:
    seen: Counter[str] = Counter()

    def reply(question: str) -> Raw:
        seen[question] += 1
        return Raw(status, b"later") if seen[question] == 1 else longer_wins(question)

    with serve(reply) as api:
        judge = open_at(api.url)
        assert compare(judge).outcomes == [1.0, 0.0, 0.5, 0.5]
    about = judge.describe()
    assert about["calls"] == 12 and about["faults"] == {}


def test_a_server_that_names_a_time_is_left_alone_until_then_but_not_for_hours(
    open_at: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = iter(["0.4", "86400"])
    times: list[float] = []

    def reply(question: str) -> Raw:
        times.append(time.monotonic())
        wait = next(waits, None)
        return Raw(429, b"", {"Retry-After": wait}) if wait else says("Verdict: tie")

    monkeypatch.setattr(endpoint, "MAX_PAUSE", 0.8)
    with serve(reply) as api:
        assert compare(open_at(api.url, judge_concurrency=1), ("a",), ("b",)).outcomes == [0.5]
    assert 0.4 <= times[1] - times[0] < 0.8 <= times[2] - times[1] < 5


@pytest.mark.parametrize(("value", "seconds"), [(None, 0), ("7", 7), ("1.5", 1.5), ("soon", 0), ("-3", 0), ("nan", 0)])
def test_retry_delay(value: str | None, seconds: float) -> None:
    assert endpoint._retry_delay(value) == seconds


def test_retry_after_as_a_date() -> None:
    assert 28 < endpoint._retry_delay(formatdate(time.time() + 30, usegmt=True)) <= 30
    assert endpoint._retry_delay(formatdate(time.time() - 30, usegmt=True)) == 0


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405, 301])
def test_a_judge_that_cannot_work_ends_it_after_the_first_calls(open_at: Open, status: int) -> None:
    first, second = many(12)
    with serve(lambda _: Raw(status, json.dumps({"error": {"message": f"no: {KEY}"}}).encode())) as api:
        with pytest.raises(UserError, match=f"answers HTTP {status}.*from OPENAI_API_KEY; model 'm'.*no: ") as caught:
            compare(open_at(api.url, judge_concurrency=3), first, second)
        assert len(api.bodies) <= 3 and KEY not in str(caught.value)


def test_a_judge_that_talks_nonsense_from_the_start_ends_it_after_a_few_questions(open_at: Open) -> None:
    first, second = many(12)
    with serve(lambda _: says("As an assistant I like both.")) as api:
        with pytest.raises(UserError, match=r"m gave no verdict \(5 questions asked\).*I like both"):
            compare(open_at(api.url, judge_concurrency=2, judge_retries=1), first, second)
        assert 10 <= len(api.bodies) <= 14
        with pytest.raises(UserError, match=r"no verdict \(2 questions asked\)"):
            compare(open_at(api.url), ("a",), ("b",))


def test_a_server_that_is_not_there(open_at: Open) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        judge = open_at(f"http://127.0.0.1:{bound.getsockname()[1]}/v1", judge_retries=9)
        with pytest.raises(UserError, match=r"cannot be reached.*correct --judge_url"):
            compare(judge)


def test_a_server_that_dies_on_the_way_ends_it_and_what_it_said_is_kept(open_at: Open) -> None:
    first, second = many(12)
    count = iter(range(1000))

    def reply(question: str) -> Raw:
        return longer_wins(question) if next(count) < 6 else Raw(503)

    with serve(reply) as api:
        with pytest.raises(UserError, match=r"answered none of the last 2 questions \(HTTP 503.*same command later"):
            compare(open_at(api.url, judge_concurrency=1, judge_retries=0), first, second)
        assert len(api.bodies) == 8
        count = iter([-1] * 1000)
        before = len(api.bodies)
        assert compare(open_at(api.url), first, second).outcomes == [1.0] * 12
        assert len(api.bodies) - before == 24 - 6


def test_a_key_that_is_refused_in_the_middle_ends_it(open_at: Open) -> None:
    first, second = many(6)
    count = iter(range(100))
    with (
        serve(lambda question: longer_wins(question) if next(count) < 4 else Raw(401, b"{}")) as api,
        pytest.raises(UserError, match="refuses the key"),
    ):
        compare(open_at(api.url, judge_concurrency=1), first, second)


def test_no_more_calls_at_a_time_than_allowed(open_at: Open) -> None:
    first, second = many(8)

    def slowly(question: str) -> Raw:
        time.sleep(0.03)
        return longer_wins(question)

    with serve(slowly) as api:
        assert compare(open_at(api.url, judge_concurrency=3), first, second).outcomes == [1.0] * 8
    assert api.most_at_once == 3


@pytest.mark.parametrize(
    ("message", "refused", "kept"),
    [
        (
            "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
            "max_tokens",
            "max_completion_tokens",
        ),
        ("'temperature' does not support 0 with this model.", "temperature", "max_tokens"),
    ],
)
def test_settings_that_a_server_refuses_are_left_out(open_at: Open, message: str, refused: str, kept: str) -> None:
    def reply(question: str) -> Raw:
        with api.lock:
            body = next(body for body in reversed(api.bodies) if body["messages"][0]["content"] == question)
        if refused in body:
            return Raw(400, json.dumps({"error": {"message": message}}).encode())
        return longer_wins(question)

    with serve(reply) as api:
        judge = open_at(api.url, judge_concurrency=2)
        assert compare(judge).outcomes == [1.0, 0.0, 0.5, 0.5]
    assert refused not in api.bodies[-1] and api.bodies[-1][kept] == 512
    assert len(api.bodies) <= 6 + 2 and judge.describe()["faults"] == {}


def test_the_key_goes_into_the_header_and_nowhere_else(
    open_at: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)

    def reply(question: str) -> Raw:
        if "bad" in sides(question):
            return Raw(400, f"your key {KEY} is fine, your question is not".encode())
        return says(f"{KEY}\nVerdict: A") if "echo" in sides(question) else longer_wins(question)

    with serve(reply) as api:
        judge = open_at(api.url)
        compare(judge, ("aa", "bad", "echo"), ("b", "c", "d"))
        assert {headers["Authorization"] for headers in api.headers} == {f"Bearer {KEY}"}
        assert KEY not in json.dumps(api.bodies)
    texts = [json.dumps(judge.describe()), repr(vars(judge)), caplog.text, *capfd.readouterr()]
    for status, body in ((401, f"bad key {KEY}"), (200, f"nonsense {KEY}")):
        with serve(lambda _: Raw(status, body.encode()) if status != 200 else says(body)) as api:  # noqa: B023
            try:
                compare(open_at(api.url))
            except UserError as error:
                texts += [str(error), *traceback.format_exception(error)]
            else:
                raise AssertionError("it works")
    texts += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(KEY in text for text in texts)
    assert sum("(the key)" in text for text in texts) >= 2, "the key is replaced where it stood"


def test_pieces_of_a_key_are_masked_too() -> None:
    key = "sk-proj-abcdEFGH1234ijklWXYZ"
    for shown in (
        *(
            key,
            key[:9],
            key[-8:],
            key[5:14],
            "sk-proj-********WXYZ",
            "sk-***YZ",
            "sk...YZ",
            "sk-pr\u2026XYZ",
            "****WXYZ",
        ),
        f"{key}{key}",
    ):
        for text in (f"Wrong: {shown}.", f"'{shown}'", f"key={shown}; see https://a.b"):
            left = remove_key(text, key)
            assert "(the key)" in left
            assert not any(key[start : start + 3] in left for start in range(len(key) - 2)), left
            assert not left.replace("key", "").strip(".;'").endswith(("YZ", "WXYZ")), left
    for text in ("wait... what", "**bold** words", "HTTP 400: max_tokens", ""):
        assert remove_key(text, key) == text
    assert remove_key("no key *** is set", "") == "no key *** is set"


@pytest.mark.parametrize("key", ["sk-1 two", "sk-1\nX-Other: 2", "sk-\u00e9", "Bearer sk-1"])
def test_a_key_that_no_header_can_hold_is_refused_without_a_word_of_it(
    open_at: Open, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(UserError, match="--judge_key_variable MY_KEY") as caught:
        open_at("http://127.0.0.1:1/v1", judge_key_variable="MY_KEY")
    assert "sk" not in str(caught.value)


def test_a_server_without_keys_gets_none_and_line_breaks_around_a_key_do_not_matter(
    open_at: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(longer_wins) as api:
        compare(open_at(api.url, judge_key_variable="NOT_SET_ANYWHERE"))
        assert all("Authorization" not in headers for headers in api.headers)
        monkeypatch.setenv("MY_KEY", "sk-1\n")
        compare(open_at(api.url, judge_model="other", judge_key_variable="MY_KEY"))
        assert api.headers[-1]["Authorization"] == "Bearer sk-1"


def test_no_proxy_leads_to_this_machine(open_at: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serve(longer_wins) as api:
        assert compare(open_at(api.url)).outcomes[0] == 1.0


KILLED = """
import sys
from tests.support.judges import QUESTIONS, answers, asked
from lora_rlhf.judges.asking import Asker
from lora_rlhf.judges.cache import Cache
from lora_rlhf.judges.choose import open_judge
from lora_rlhf.configs.judge import JudgeConfig
long = [f"answer {i} that wins" for i in range(12)]
config = JudgeConfig(judge="endpoint", judge_model="m", judge_url=sys.argv[1], judge_concurrency=2)
judge = open_judge(config, sys.argv[2], "cpu", False)
judge.compare(asked(*QUESTIONS), answers(*long), answers(*(x[:9] for x in long)))
"""


@pytest.mark.kill
def test_what_was_killed_goes_on_where_it_was(open_at: Open, tmp_path: Path) -> None:
    halfway, count = threading.Event(), iter(range(1000))

    def reply(question: str) -> Raw:
        if next(count) >= 11:
            halfway.set()
            time.sleep(0.2)
        return longer_wins(question)

    with serve(reply) as api:
        command = [sys.executable, "-c", KILLED, api.url, str(tmp_path / "run")]
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2], env={**os.environ, "TQDM_DISABLE": "1"})
        assert halfway.wait(60)
        process.send_signal(signal.SIGKILL)
        process.wait()
        cache_file = tmp_path / "judgements.jsonl"
        before, rows = len(api.bodies), cache_file.read_text().splitlines()[1:]
        assert 8 <= len(rows) < 24
        with cache_file.open("a") as file:
            file.write('{"key": "0123')  # as a kill in the middle of a write leaves it
        long = tuple(f"answer {i} that wins" for i in range(12))
        judge = open_at(api.url, judge_concurrency=2)
        assert compare(judge, long, tuple(text[:9] for text in long)).outcomes == [1.0] * 12
        assert len(api.bodies) - before == 24 + 1 - len(rows) == judge.describe()["calls"]
    lines = cache_file.read_text().splitlines()
    assert len(lines) == 26 and all(json.loads(line) for line in lines), "the torn line is gone"
