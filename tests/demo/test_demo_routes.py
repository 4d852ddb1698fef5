"""Which routes the app has, what each answers to whom, and what a page of another site can do with it."""

import http.server
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from lora_rlhf_demo import guard
from lora_rlhf_demo.app import launch_app
from lora_rlhf_demo.config import DemoConfig
from lora_rlhf_demo.requests import Failed, Open
from lora_rlhf_demo.worker import MOST_WAITING, ModelWorker
from playwright.sync_api import Page

from tests.support.demo import PORT, Served

# {route: what it answers without login, where a password is asked for}. The app answers 404 for all others.
WITHOUT_LOGIN = {
    **{"GET /": 200, "HEAD /": 200, "GET /config": 401, "GET /config/": 401, "GET /logout": 200},
    **{"GET /static/{path:path}": 404, "GET /assets/{path:path}": 404, "GET /svelte/{path:path}": 404},
    **{"GET /favicon.ico": 200, "GET /theme.css": 200, "GET /robots.txt": 200},
    **{
        "POST /login": 422,
        "POST /login/": 422,
        "GET /gradio_api/login_check": 401,
        "GET /gradio_api/login_check/": 401,
    },
    **{"GET /gradio_api/app_id": 200, "GET /gradio_api/app_id/": 200, "GET /gradio_api/theme.css": 200},
    **{"GET /gradio_api/queue/data": 401, "POST /gradio_api/queue/join": 401, "GET /gradio_api/startup-events": 200},
    **{"POST /gradio_api/run/{api_name}": 401, "POST /gradio_api/run/{api_name}/": 401},
    **{"POST /gradio_api/cancel": 422, "POST /gradio_api/reset": 422, "POST /gradio_api/reset/": 422},
    "GET /gradio_api/heartbeat/{session_hash}": 200,
}
# What a login changes. The calls are refused for their empty bodies then.
AFTER_LOGIN = {
    **dict.fromkeys(
        ("GET /config", "GET /config/", "GET /gradio_api/login_check", "GET /gradio_api/login_check/"), 200
    ),
    **dict.fromkeys(("GET /gradio_api/queue/data", "POST /gradio_api/queue/join"), 422),
    **dict.fromkeys(("POST /gradio_api/run/{api_name}", "POST /gradio_api/run/{api_name}/"), 422),
}
FILLED = {"path": "no/such", "api_name": "predict", "session_hash": "abc"}


def routes_of(app: Any) -> Iterator[str]:
    """Every route of a server, as METHOD PATH; those of routers within it too."""
    for route in app.routes:
        yield from (f"{method} {route.path}" for method in sorted(getattr(route, "methods", None) or ()))
        if (router := getattr(route, "original_router", None)) is not None:
            yield from routes_of(router)


def answer_of(url: str, route: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """Status, beginning of the body, and headers of a route's answer."""
    method, path = route.split(" ", 1)
    path = re.sub(r"\{(\w+)(:path)?\}", lambda match: FILLED.get(match[1], "x"), path)
    data = None if method in ("GET", "HEAD") else b""
    request = urllib.request.Request(url.rstrip("/") + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            body = b"" if "event-stream" in answer.headers["Content-Type"] else answer.read(100_000)
            return answer.status, body, {k.lower(): v for k, v in answer.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, error.read(1000), {k.lower(): v for k, v in error.headers.items()}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An app with a password, without runs."""
    folder = tmp_path_factory.mktemp("secured")
    (folder / "password").touch(0o600)
    (folder / "password").write_text("long enough")
    config = DemoConfig(root=str(folder), port=PORT + 300, password_file=str(folder / "password"))
    with launch_app(config) as blocks:
        yield blocks


def test_every_route_and_what_it_answers_without_login(secured: Any) -> None:
    answers = {route: answer_of(secured.local_url, route)[0] for route in set(routes_of(secured.app))}
    assert len(answers) > 60  # else the list has another form in this version of Gradio
    assert {route: status for route, status in answers.items() if status != 404} == {
        route: status for route, status in WITHOUT_LOGIN.items() if status != 404
    }


def test_every_route_and_what_it_answers_after_login(secured: Any) -> None:
    cookies = "; ".join(cookie.split(";")[0] for cookie in log_in(secured.local_url, "long enough")[1])
    routes = sorted(set(routes_of(secured.app)) - {"GET /logout"})  # it would end the login in the middle
    answers = {route: answer_of(secured.local_url, route, Cookie=cookies)[0] for route in routes}
    opened = {route: status for route, status in answers.items() if status != 404}
    expected = WITHOUT_LOGIN | AFTER_LOGIN
    assert opened == {route: expected[route] for route in routes if expected.get(route, 404) != 404}
    foreign = {"Cookie": cookies, "Origin": "http://evil.example"}
    assert {answer_of(secured.local_url, route, **foreign)[0] for route in opened} <= {403, 404}
    assert {answer_of(secured.local_url, route, Cookie=cookies, Host="evil.example")[0] for route in opened} <= {
        403,
        421,
    }


def test_the_history_of_runs_is_off_and_closed(served: Served) -> None:
    for route in (
        "GET /gradio_api/run-history/buckets",
        "POST /gradio_api/run-history/connect",
        "GET /gradio_api/runs",
    ):
        assert answer_of(served.url, route)[0] == 404
    assert b'"run_history":true' not in answer_of(served.url, "GET /config")[1]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "rebound.test"}, 421),
        ({"Host": "192.168.1.2"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:1"}, 200),
        ({"Origin": "https://other.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:1"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
    ],
)
def test_other_hosts_and_origins_are_refused(served: Served, headers: dict[str, str], status: int) -> None:
    found, body, _ = answer_of(served.url, "GET /config", **headers)
    assert found == status
    assert status == 200 or len(body.splitlines()) == 1


def test_a_name_that_was_given_is_answered() -> None:
    app = guard.GuardedApp({"lab.example", "0.0.0.0"}, is_local=False)
    answers = {name: app._is_name(name) for name in ("lab.example:80", "10.1.2.3:7860", "localhost", "other.example")}
    assert list(answers.values()) == [True, True, True, False]


def test_every_answer_has_the_headers(served: Served) -> None:
    for route in ("GET /", "GET /nothing", "GET /config", "POST /gradio_api/queue/join"):
        headers = answer_of(served.url, route, Origin=served.url.rstrip("/"))[2]
        assert headers["x-frame-options"] == "DENY" and headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert [name for name in headers if name.startswith("access-control")] == []


def test_a_body_is_bounded_and_a_bad_call_is_one_line(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    url = served.url + "gradio_api/run/predict"
    length = str(guard.MOST_BODY_BYTES + 1)
    assert answer_of(served.url, "POST /gradio_api/queue/join", **{"Content-Length": length})[0] == 413
    bad = [b'{"data": [1], "fn_index": %d, "session_hash": "x"}' % number for number in range(40)]
    statuses = []
    for body in (*bad, b"{", b'{"fn_index": 10000000, "data": []}'):
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                statuses.append(answer.status)
        except urllib.error.HTTPError as error:
            statuses.append(error.code)
    assert statuses.count(500) > 0  # of what is wrong within a handler
    assert "Traceback" not in capfd.readouterr().err


def log_in(url: str, password: str, **headers: str) -> tuple[int, list[str]]:
    """Status and cookies."""
    data = f"username=lora&password={password.replace(' ', '+')}".encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url + "login", data, headers), timeout=20) as answer:
            return answer.status, answer.headers.get_all("Set-Cookie")
    except urllib.error.HTTPError as error:
        return error.code, []


def test_cookies_are_for_this_site_alone(secured: Any) -> None:
    for headers, is_secure in (({}, False), ({"X-Forwarded-Proto": "https"}, True)):
        status, cookies = log_in(secured.local_url, "long enough", **headers)
        assert status == 200 and len(cookies) == 2
        for cookie in cookies:
            assert "SameSite=Lax" in cookie and "HttpOnly" in cookie and "none" not in cookie.lower()
            assert cookie.endswith("Secure") == is_secure


def test_wrong_passwords_are_slowed_and_logged(
    secured: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secured.app._failures.clear()
    statuses = [log_in(secured.local_url, "wrong word")[0] for _ in range(guard.MOST_FAILURES + 1)]
    assert statuses == [400] * guard.MOST_FAILURES + [429]
    assert log_in(secured.local_url, "long enough")[0] == 429
    assert caplog.text.count("a login from 127.0.0.1 failed") == guard.MOST_FAILURES
    now = time.monotonic() + guard.FAILURE_SECONDS
    monkeypatch.setattr(guard, "time", SimpleNamespace(monotonic=lambda: now))
    assert log_in(secured.local_url, "long enough")[0] == 200


def test_users_take_turns_and_none_fills_the_queue() -> None:
    begun, order = threading.Event(), []

    class Handler:
        def open(self, request: Open) -> Iterator[Any]:
            begun.wait(20)
            order.append(request.run)
            yield Failed("done")

        def close(self) -> None:
            pass

    worker = ModelWorker(Handler)  # type: ignore[arg-type]
    first = worker.submit(Open("first"), "greedy")
    while worker.position(first) is not None:
        time.sleep(0.01)
    greedy = [worker.submit(Open(f"greedy{number}"), "greedy") for number in range(70)]
    modest = worker.submit(Open("modest"), "modest")
    assert worker.position(modest) == 1 and worker.position(greedy[0]) == 2
    assert sum(worker.position(ticket) is not None for ticket in greedy) == MOST_WAITING // 2
    begun.set()
    list(modest.events())
    assert order[:2] == ["first", "modest"]
    worker.close()


# With a real browser: what a page of another site can do.

EVIL = """<title>evil</title><img id=image src="{url}favicon.ico"><iframe id=frame src="{url}"></iframe><script>
window.results = Promise.all([
  fetch("{url}config", {{credentials: "include"}}).then(a => a.text(), e => "blocked"),
  fetch("{url}gradio_api/queue/join", {{method: "POST", mode: "no-cors", credentials: "include",
    body: '{{"data": [], "fn_index": 0, "session_hash": "evil"}}'}}).then(a => a.type + a.status, e => "blocked"),
]);</script>"""


@pytest.fixture
def evil_url(served: Served) -> Iterator[str]:
    """A page of another origin that asks the app for what it should not get."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(EVIL.format(url=served.url).encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://rebound.test:{server.server_port}/"
    server.shutdown()


@pytest.mark.browser
@pytest.mark.slow
def test_a_page_of_another_site_learns_and_does_nothing(
    browser: Any, served: Served, evil_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[tuple[str, int]] = []
    refusal = guard.GuardedApp._refusal

    def note(self: guard.GuardedApp, scope: Any, headers: Any) -> tuple[int, str]:
        result = refusal(self, scope, headers)
        answers.append((scope["path"], result[0]))
        return result

    monkeypatch.setattr(guard.GuardedApp, "_refusal", note)
    page = browser.new_page()
    page.goto(evil_url)
    results = page.evaluate("window.results")
    page.wait_for_timeout(500)
    assert results[0] == "blocked" and "200" not in results[1]
    assert page.evaluate("document.getElementById('image').naturalWidth") == 0
    frame = next(frame for frame in page.frames if frame != page.main_frame)
    assert "lora-rlhf" not in frame.content()
    posted = [status for path, status in answers if path.endswith("queue/join")]
    assert posted == [403] * len(posted)
    page.close()


@pytest.mark.browser
@pytest.mark.slow
def test_a_name_that_was_rebound_to_this_machine_is_refused(browser: Any, served: Served) -> None:
    page = browser.new_page()
    port = served.url.rstrip("/").rpartition(":")[2]
    answer = page.goto(f"http://rebound.test:{port}/")
    assert answer.status == 421 and "lora-rlhf" not in page.title()
    page.close()


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_keeps_its_own_policy(open_page: Callable[..., Page]) -> None:
    faults: list[str] = []
    page = open_page()
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.reload()
    page.wait_for_selector("#columns input")
    for tab in ("Label", "Watch", "Reward", "Compare"):
        page.get_by_role("tab", name=tab).click()
    page.wait_for_timeout(300)
    assert faults == []
