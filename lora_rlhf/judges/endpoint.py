"""A judge behind any server with the OpenAI chat completions API: concurrent calls, retries, counts.

The key is read from the environment and sent in one header; no message, file or traceback contains it.
"""

import asyncio
import contextlib
import email.utils
import ipaddress
import json
import os
import random
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx2

from lora_rlhf.judges.config import JudgeConfig
from lora_rlhf.judges.pairwise import Reply
from lora_rlhf.judges.question import read_verdict
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import is_number, object_of, quote

FIRST_PAUSE, MAX_PAUSE = 1.0, 60.0  # seconds before a retry
MAX_BYTES = 4 * 2**20  # of an answer; a verdict has a few thousand
SILENT_ROUNDS = 2  # so many questions in a row, times concurrency, without an answer: the server has gone
RETRYABLE = {408, 409, 425, 429}  # beside 5xx: the same call may succeed later
FATAL = {
    401: "it refuses the key",
    402: "it wants to be paid",
    403: "it refuses the key",
    404: "there is no such address or model",
    405: "there is no such API at this address",
}


Tokens = tuple[int, int] | tuple[()]  # of the prompt and of the reply; empty where the server does not say


class _Fault(Exception):
    """A call without a verdict. `retry`: the same call may succeed later. `silent`: the server did not answer it.

    `wait`: seconds until the server accepts another call. `tokens`: what it charges all the same.
    """

    def __init__(
        self,
        kind: str,
        detail: str = "",
        retry: bool = True,
        silent: bool = False,
        wait: float = 0,
        tokens: Tokens = (),
    ) -> None:
        super().__init__(kind)
        self.kind, self.detail, self.retry, self.silent = kind, detail, retry, silent
        self.wait, self.tokens = wait, tokens


class Endpoint:
    """Asks a model behind an API."""

    def __init__(self, config: JudgeConfig) -> None:
        """UserError for a key that cannot stand in a header."""
        assert config.judge_url is not None and config.judge_model is not None
        self._config = config
        self._url = config.judge_url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._key = os.environ.get(config.judge_key_variable, "").strip()
        if not all("!" <= character <= "~" for character in self._key):
            raise UserError(
                f"--judge_key_variable {config.judge_key_variable}: it holds characters that no key has, such as spaces"
            )
        # servers differ in these; a setting that is refused once is left out of all later calls
        self._settings: dict[str, Any] = {"temperature": 0, "max_tokens": config.judge_max_tokens}
        self._answered = False
        self._silent = 0

    def identity(self) -> dict[str, Any]:
        return {"model": self._config.judge_model, "url": self._url, "max_tokens": self._config.judge_max_tokens}

    def price(self, tokens_in: int, tokens_out: int) -> float | None:
        prices = self._config.judge_price_in, self._config.judge_price_out
        if prices[0] is None or prices[1] is None:
            return None
        return (tokens_in * prices[0] + tokens_out * prices[1]) / 1e6

    def ask(self, questions: Sequence[str], done: Callable[[int, Reply], None]) -> None:
        """See `pairwise.Asker`. UserError where no call can succeed, or where the server has gone."""
        try:
            _run(self._ask_all(questions, done))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    def close(self) -> None:
        """Connections last as long as a call of `ask`."""

    async def _ask_all(self, questions: Sequence[str], done: Callable[[int, Reply], None]) -> None:
        queue = iter(enumerate(questions))
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limit = self._config.judge_timeout
        async with httpx2.AsyncClient(
            headers=headers,
            timeout=limit,
            limits=httpx2.Limits(max_connections=self._config.judge_concurrency),
            trust_env=not _is_local(self._url),
        ) as client:

            async def work(queue: Iterator[tuple[int, str]]) -> None:
                for number, question in queue:
                    done(number, await self._ask_one(client, question))

            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._config.judge_concurrency, len(questions))):
                    group.create_task(work(queue))

    async def _ask_one(self, client: httpx2.AsyncClient, question: str) -> Reply:
        """The reply to a question, after as many tries as it takes or is allowed. UserError ends everything."""
        spent: list[Tokens] = []
        for attempt in range(self._config.judge_retries + 1):
            try:
                content, tokens = await self._call(client, question)
                spent.append(tokens)
                self._silent = 0
                if verdict := read_verdict(content):
                    return Reply(verdict, "", "", attempt + 1, *_sums(spent))
                raise _Fault("no verdict in its last line", quote(self._clean(content[-200:])))
            except _Fault as fault:
                last = fault
                spent.append(fault.tokens)
            if not last.retry or attempt == self._config.judge_retries:
                break
            if last.silent:  # a server that answers can be asked at once
                pause = FIRST_PAUSE * 2**attempt * random.uniform(0.75, 1.0)
                await asyncio.sleep(min(MAX_PAUSE, max(pause, last.wait)))
        self._count_silence(last)
        return Reply(None, last.kind, last.detail, attempt + 1, *_sums(spent))

    def _count_silence(self, fault: _Fault) -> None:
        """UserError when the server has left too many questions unanswered."""
        self._silent = self._silent + 1 if fault.silent else 0
        if self._answered and self._silent >= SILENT_ROUNDS * self._config.judge_concurrency:
            raise UserError(
                f"--judge endpoint: {self._url} has answered none of the last {self._silent} questions ({fault.kind}"
                f"{': ' + fault.detail if fault.detail else ''}); verdicts so far are kept: give the same command later"
            )

    async def _call(self, client: httpx2.AsyncClient, question: str) -> tuple[str, Tokens]:
        """The judge's reply, and the tokens of the call. _Fault where there is no reply to read."""
        while True:
            settings = dict(self._settings)
            body = {
                "model": self._config.judge_model,
                "messages": [{"role": "user", "content": question}],
                **settings,
            }
            status, headers, raw = await self._post(client, json.dumps(body).encode())
            if status != 400 or not self._adapt(settings, raw):
                break
        if status == 200:
            self._answered = True
            return _parse(raw)
        detail = self._server_message(raw)
        if status in FATAL or 300 <= status < 400:
            raise UserError(self._fatal(status, detail))
        busy = status in RETRYABLE or status >= 500
        raise _Fault(f"HTTP {status}", detail, retry=busy, silent=busy, wait=_retry_after(headers.get("retry-after")))

    async def _post(self, client: httpx2.AsyncClient, body: bytes) -> tuple[int, httpx2.Headers, bytes]:
        raw = b""
        json_type = {"Content-Type": "application/json"}
        try:
            # the library's own timeout limits each read, not the whole call
            async with (
                asyncio.timeout(self._config.judge_timeout),
                client.stream("POST", self._url, content=body, headers=json_type) as response,
            ):
                async for part in response.aiter_bytes():
                    raw += part
                    if len(raw) > MAX_BYTES:
                        raise _Fault(f"an answer of more than {MAX_BYTES:,} bytes")
                return response.status_code, response.headers, raw
        except (TimeoutError, httpx2.TimeoutException):
            raise _Fault(f"no answer within {self._config.judge_timeout:g} s", silent=True) from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            detail = quote(self._clean(str(error)) or type(error).__name__)
            if isinstance(error, httpx2.ConnectError) and not self._answered:
                raise UserError(
                    f"--judge endpoint: {self._url} cannot be reached ({detail}); correct --judge_url, or start the "
                    "server"
                ) from None
            raise _Fault("the connection failed", detail, silent=True) from None

    def _adapt(self, settings: dict[str, Any], raw: bytes) -> bool:
        """Leaves out a setting that the server refused; whether the call is worth repeating."""
        if settings != self._settings:  # another call has changed them meanwhile
            return True
        message = raw[:2000].decode("utf-8", "replace")
        if "max_tokens" in settings and "max_completion_tokens" in message:
            self._settings["max_completion_tokens"] = self._settings.pop("max_tokens")
        elif "temperature" in settings and "temperature" in message:
            del self._settings["temperature"]
        else:
            return False
        return True

    def _fatal(self, status: int, detail: str) -> str:
        name = self._config.judge_key_variable
        reason = FATAL.get(status, "it lives at another address")
        key = f"a key was sent, from {name}" if self._key else f"no key was sent: {name} is not set"
        return (
            f"--judge endpoint: {self._url} answers HTTP {status}: {reason} "
            f"({key}; model {self._config.judge_model!r}). It says: {detail}"
        )

    def _server_message(self, raw: bytes) -> str:
        """The server's message of an error, shortened to a line."""
        text = raw[:2000].decode("utf-8", "replace")
        with contextlib.suppress(ValueError):
            error = object_of(raw).get("error")
            message = error.get("message") if isinstance(error, dict) else error
            text = message if isinstance(message, str) else text
        return quote(self._clean(text))

    def _clean(self, text: str) -> str:
        """The text without the key, which a server may repeat in its message."""
        return text.replace(self._key, "(the key)") if self._key else text


def _parse(raw: bytes) -> tuple[str, Tokens]:
    """The reply and the tokens of an answer. _Fault for an answer that does not follow the API."""
    try:
        answer = object_of(raw)
    except ValueError as error:
        raise _Fault("an answer that is no JSON object", quote(str(error))) from None
    tokens = _usage(answer.get("usage"))
    try:
        choice = answer["choices"][0]
        content, finish = choice["message"]["content"], choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError):
        raise _Fault("an answer without text", tokens=tokens) from None
    if finish == "length":
        raise _Fault("cut off by --judge_max_tokens", retry=False, tokens=tokens)
    if not isinstance(content, str):
        raise _Fault("an answer without text", tokens=tokens)
    return content, tokens


def _usage(usage: Any) -> Tokens:
    if not isinstance(usage, dict):
        return ()
    fields = usage.get("prompt_tokens"), usage.get("completion_tokens")
    counts = [int(count) for count in fields if is_number(count) and 0 <= count < 1e9]
    return (counts[0], counts[1]) if len(counts) == 2 else ()


def _sums(spent: Sequence[Tokens]) -> tuple[int | None, int | None]:
    """Tokens over all tries of a question; None where no answer came with a count."""
    known = [tokens for tokens in spent if tokens]
    return (sum(first for first, _ in known), sum(second for _, second in known)) if known else (None, None)


def _retry_after(value: str | None) -> float:
    """Seconds to wait, which a server gives as a number or as a date; 0 where it gives nothing."""
    if value is None:
        return 0.0
    with contextlib.suppress(ValueError):
        return max(0.0, float(value)) if value.strip().replace(".", "", 1).isdigit() else _until(value)
    return 0.0


def _until(date: str) -> float:
    return max(0.0, email.utils.parsedate_to_datetime(date).timestamp() - time.time())


def _is_local(url: str) -> bool:
    """Whether an address is this machine's own, which no proxy leads to."""
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _run(calls: Coroutine[Any, Any, None]) -> None:
    """Waits for the calls; on another thread where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(calls)
        return
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, calls).result()
