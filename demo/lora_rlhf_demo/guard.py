"""Before every request: whose it may be, which routes there are, how large a body is, and what a browser may do."""

import ipaddress
import logging
import re
import sys
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

import gradio.queueing
import gradio.routes
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse

log = logging.getLogger("lora_rlhf")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MOST_BODY_BYTES = 4 * 2**20
MOST_FAILURES, FAILURE_SECONDS = 5, 60.0  # of logins: of one address, within this time
LOGIN = "/login"
# All that the page asks for; every other route of Gradio is closed. tests/demo/test_demo_routes.py lists them.
API = "/gradio_api"
ROUTES = {
    "GET": re.compile(
        r"/|/config/?|/(assets|static|svelte)/.+|/favicon\.ico|/theme\.css|/robots\.txt|/logout|"
        rf"{API}/(theme\.css|queue/data|heartbeat/\w+|startup-events|login_check/?|app_id/?)"
    ),
    "POST": re.compile(rf"{LOGIN}/?|{API}/(queue/join|run/[\w-]+/?|cancel|reset/?)"),
}
HEADERS = {
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    # Gradio's page has scripts within it and makes functions from text. Nothing comes from, or goes to, another host.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
}


class GuardedApp(gradio.routes.App):
    """Gradio's server behind checks of each request. `names`: the host names by which it may be asked for.

    An IP address cannot be another site's name, so any may be used where others can reach the app.
    """

    def __init__(self, names: set[str], is_local: bool) -> None:
        super().__init__(default_response_class=gradio.routes.ORJSONResponse)
        self.names, self._is_local = names | {"localhost"}, is_local
        self._failures: dict[str, deque[float]] = defaultdict(deque)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers a request that is refused with one line, and hands on the others."""
        if scope["type"] == "lifespan":
            await super().__call__(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers, sender = Headers(scope=scope), _Sender(scope, send)
        status, reason = self._refusal(scope, headers)
        if status == 200:
            try:
                await super().__call__(scope, _bounded(receive), sender.send)
            except Exception as error:
                log.error("%s %r failed: %s", scope["method"], scope["path"], one_line(error))
                status, reason = 500, "this request failed"
        if status != 200 and not sender.has_started:
            await PlainTextResponse(f"{reason}\n", status)(scope, receive, sender.send)
        if scope["path"].rstrip("/") == LOGIN and sender.status == 400:
            self._failures[_address(scope)].append(time.monotonic())
            log.warning("a login from %s failed", _address(scope))

    def _refusal(self, scope: Message, headers: Headers) -> tuple[int, str]:
        """(200, "") for a request that is handed on, else status and reason."""
        host = headers.get("host", "")
        if not self._is_name(host):
            return 421, "this host name is not the app's; give it with --host_names"
        origin = headers.get("origin")
        is_foreign = headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate"
        if is_foreign or (origin is not None and urlsplit(origin).netloc != host):
            return 403, "asked from another site"
        method = {"HEAD": "GET"}.get(scope["method"], scope["method"])
        if method not in ROUTES or ROUTES[method].fullmatch(scope["path"]) is None:
            return 404, "not found"
        if (
            not headers.get("content-length", "0").isdecimal()
            or int(headers.get("content-length", "0")) > MOST_BODY_BYTES
        ):
            return 413, f"more than {MOST_BODY_BYTES:,} bytes"
        if scope["path"].rstrip("/") == LOGIN and self._num_failures(_address(scope)) >= MOST_FAILURES:
            return 429, "too many wrong passwords; wait a minute"
        return 200, ""

    def _is_name(self, host: str) -> bool:
        name = urlsplit(f"//{host}").hostname or ""
        if name in self.names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self._is_local

    def _num_failures(self, address: str) -> int:
        """Wrong passwords from this address in the last minute; older ones are forgotten."""
        failures = self._failures[address]
        while failures and failures[0] < time.monotonic() - FAILURE_SECONDS:
            failures.popleft()
        return len(failures)


class _Sender:
    """Sends an answer with the headers of every answer, and remembers its status."""

    def __init__(self, scope: Message, send: Send) -> None:
        self._send = send
        self._is_https = "https" in (scope["scheme"], Headers(scope=scope).get("x-forwarded-proto"))
        self.status = 0

    @property
    def has_started(self) -> bool:
        return self.status != 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            kept = [pair for pair in map(self._header, message["headers"]) if pair is not None]
            message["headers"] = [*kept, *((name.lower().encode(), value.encode()) for name, value in HEADERS.items())]
        await self._send(message)

    def _header(self, pair: tuple[bytes, bytes]) -> tuple[bytes, bytes] | None:
        """A header as it is sent: none for other origins, and cookies for this site alone."""
        name, value = pair
        if name.lower().startswith(b"access-control-"):
            return None
        if name.lower() == b"set-cookie":
            attributes = [part for part in value.split(b"; ") if not part.lower().startswith((b"samesite", b"secure"))]
            return name, b"; ".join([*attributes, b"SameSite=Lax", *([b"Secure"] if self._is_https else [])])
        return pair


def _bounded(receive: Receive) -> Receive:
    """`receive` that raises once a body whose length nobody said has more bytes than any that the page sends."""
    num_bytes = 0

    async def receive_part() -> Message:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > MOST_BODY_BYTES:
            raise ValueError(f"a body of more than {MOST_BODY_BYTES:,} bytes")
        return message

    return receive_part


def _address(scope: Message) -> str:
    """The address that a request comes from."""
    return str((scope.get("client") or ("unknown",))[0])


def one_line(error: BaseException | None) -> str:
    """The kind of an error and the first line of its message, shortened."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]!r}"


class _OneLine:
    """Stands for the module `traceback` in Gradio: what any visitor can cause is one line of the log."""

    @staticmethod
    def print_exc() -> None:
        """Logs the error that is being handled."""
        log.error("a call of the page failed: %s", one_line(sys.exception()))


for _module in (gradio.queueing, gradio.routes):
    vars(_module)["traceback"] = _OneLine
