"""A server on this machine that imitates a chat completions API, well or badly."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKENS = {"prompt_tokens": 100, "completion_tokens": 10}
BETWEEN = r"===== answer {0} (\w+)\n(.*?)\n===== end of answer {0} \1\n"


@dataclass(frozen=True)
class Raw:
    """An answer as it goes over the wire; status 0 hangs up instead."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def says(content: Any, finish: str = "stop", usage: Any = TOKENS) -> Raw:
    """A regular answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish}
    return Raw(body=json.dumps({"choices": [choice], "usage": usage}).encode())


def sides(question: str) -> tuple[str, str]:
    """The texts of answers A and B as they stand in a question."""
    first, second = (re.search(BETWEEN.format(side), question, re.DOTALL) for side in "AB")
    assert first and second, question
    return first[2], second[2]


def longer_wins(question: str) -> Raw:
    """A judge without a bias for position."""
    a, b = (len(text) for text in sides(question))
    return says(f"One is longer.\nVerdict: {'A' if a > b else 'B' if b > a else 'tie'}")


@dataclass
class Api:
    """The requests, and how many calls ran at a time."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    running: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def questions(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.bodies]


@contextmanager
def serve(reply: Callable[[str], Raw]) -> Iterator[Api]:
    """reply(question) -> what to answer; it is called from several threads."""
    api = Api()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with api.lock:
                api.bodies.append(body)
                api.headers.append(dict(self.headers))
                api.running += 1
                api.most_at_once = max(api.most_at_once, api.running)
            try:
                self.answer(reply(body["messages"][0]["content"]))
            finally:
                with api.lock:
                    api.running -= 1

        def answer(self, raw: Raw) -> None:
            time.sleep(raw.seconds)
            if not raw.status:
                self.close_connection = True
                self.connection.close()
                return
            try:
                self.send_response(raw.status)
                for name, value in {"Content-Length": str(len(raw.body)), **raw.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw.body)
            except OSError:  # the judge has hung up
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

        def finish(self) -> None:
            with suppress(OSError, ValueError):
                super().finish()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    api.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
