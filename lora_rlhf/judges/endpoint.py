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
import re
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx2

from lora_rlhf.configs.judge import JudgeModelConfig
from lora_rlhf.judges.asking import Read, Reply
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import is_number, object_of, quote

FIRST_PAUSE, MAX_PAUSE = 1.0, 60.0  # seconds before a retry
MAX_BYTES = 4 * 2**20  # of an answer; a verdict has a few thousand
SILENT_ROUNDS = 2  # times concurrency: after so many unanswered questions in a row, the server counts as gone
RETRYABLE = {408, 409, 425, 429}  # beside 5xx: the same call may succeed later
FATAL = {
    401: "it refuses the key",
    402: "it wants to be paid",
    403: "it refuses the key",
    404: "there is no such address or model",
    405: "there is no such API at this address",
}


KEY_SIGN = "(the key)"
SHORTEST_PIECE = 6  # characters of a key that are taken for a part of it
# a word that is partly asterisks, dots or crosses
MASKED = re.compile(
    r"(?P<first>[^\s=:,;\"'(\[{<*\u2022\u2026]*?)(?:[*\u2022\u2026]+|\.{3,}|[xX]{4,})(?P<last>[^\s*\u2022\u2026]*)"
)
AROUND_KEY = "\"'`()[]{}<>:;,.=!"
TokenCounts = tuple[int, int] | tuple[()]  # of the prompt and of the reply; empty if the server gives none


class _Fault(Exception):
    """A call without a verdict. `can_retry`: it may succeed later. `is_unanswered`: the server gave no answer.

    `is_late`: it gave none in time. `wait`: seconds until the server accepts another call. `tokens`: those that the
    server charges for this call.
    """

    def __init__(
        self,
        kind: str,
        detail: str = "",
        can_retry: bool = True,
        is_unanswered: bool = False,
        is_late: bool = False,
        wait: float = 0,
        tokens: TokenCounts = (),
    ) -> None:
        super().__init__(kind)
        self.kind, self.detail, self.can_retry, self.is_unanswered = kind, detail, can_retry, is_unanswered
        self.is_late, self.wait, self.tokens = is_late, wait, tokens


class Endpoint:
    """Asks a model behind an API. `flag`: the one that chose it, for messages."""

    def __init__(self, config: JudgeModelConfig, flag: str = "judge") -> None:
        """Raises UserError for an API key with characters that a header cannot contain."""
        assert config.judge_url is not None and config.judge_model is not None
        self._config, self._flag = config, flag
        self._url = config.judge_url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._key = os.environ.get(config.judge_key_variable, "").strip()
        if not all("!" <= character <= "~" for character in self._key):
            raise UserError(
                f"--judge_key_variable {config.judge_key_variable}: it holds characters that no key has, such as spaces"
            )
        # Not all servers accept these settings; one that is refused is left out of all later calls.
        self._settings: dict[str, Any] = {"temperature": 0, "max_tokens": config.judge_max_tokens}
        self._answered = False
        self._num_unanswered = 0

    def identity(self) -> dict[str, Any]:
        return {"model": self._config.judge_model, "url": self._url, "max_tokens": self._config.judge_max_tokens}

    def price(self, tokens_in: int, tokens_out: int) -> float | None:
        prices = self._config.judge_price_in, self._config.judge_price_out
        if prices[0] is None or prices[1] is None:
            return None
        return (tokens_in * prices[0] + tokens_out * prices[1]) / 1e6

    def ask(self, questions: Sequence[str], read: Read, on_reply: Callable[[int, Reply], None]) -> None:
        """See `asking.JudgeModel`. Raises UserError if no call can succeed, or if the server no longer answers."""
        try:
            _run_calls(self._ask_all(questions, read, on_reply))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    def close(self) -> None:
        """Does nothing: `ask` closes its connections."""

    async def _ask_all(self, questions: Sequence[str], read: Read, on_reply: Callable[[int, Reply], None]) -> None:
        """Asks all questions, `judge_concurrency` at a time."""
        queue = iter(enumerate(questions))
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        async with httpx2.AsyncClient(
            headers=headers,
            timeout=self._config.judge_timeout,
            limits=httpx2.Limits(max_connections=self._config.judge_concurrency),
            trust_env=not _is_loopback(self._url),
        ) as client:

            async def ask_next_questions(queue: Iterator[tuple[int, str]]) -> None:
                for number, question in queue:
                    on_reply(number, await self._ask_one(client, question, read))

            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._config.judge_concurrency, len(questions))):
                    group.create_task(ask_next_questions(queue))

    async def _ask_one(self, client: httpx2.AsyncClient, question: str, read: Read) -> Reply:
        """The reply to a question, after the allowed number of tries. Raises UserError if no call can succeed."""
        tokens_per_try: list[TokenCounts] = []
        for attempt in range(self._config.judge_retries + 1):
            try:
                content, tokens = await self._request_reply(client, question)
                tokens_per_try.append(tokens)
                self._num_unanswered = 0
                if verdict := read(content):
                    return Reply(verdict, "", "", attempt + 1, *_sum_tokens(tokens_per_try))
                raise _Fault("no verdict in its last line", quote(self._remove_key(content[-200:])))
            except _Fault as fault:
                last = fault
                tokens_per_try.append(fault.tokens)
            if not last.can_retry or attempt == self._config.judge_retries:
                break
            if last.is_unanswered:  # a server that answered needs no pause
                pause = FIRST_PAUSE * 2**attempt * random.uniform(0.75, 1.0)
                await asyncio.sleep(min(MAX_PAUSE, max(pause, last.wait)))
        self._count_unanswered(last)
        is_down = last.is_unanswered and not last.is_late
        return Reply(None, last.kind, last.detail, attempt + 1, *_sum_tokens(tokens_per_try), is_down)

    def _count_unanswered(self, fault: _Fault) -> None:
        """Raises UserError if the server has not answered too many questions in a row."""
        self._num_unanswered = self._num_unanswered + 1 if fault.is_unanswered else 0
        if self._answered and self._num_unanswered >= SILENT_ROUNDS * self._config.judge_concurrency:
            raise UserError(
                f"--{self._flag} endpoint: {self._url} has answered none of the last {self._num_unanswered} questions "
                f"({fault.kind}{': ' + fault.detail if fault.detail else ''}); verdicts so "
                "far are kept: give the same command later"
            )

    async def _request_reply(self, client: httpx2.AsyncClient, question: str) -> tuple[str, TokenCounts]:
        """Returns (the judge's reply, the tokens of the call). Raises _Fault without a reply."""
        while True:
            settings = dict(self._settings)
            body = {
                "model": self._config.judge_model,
                "messages": [{"role": "user", "content": question}],
                **settings,
            }
            status, headers, raw = await self._post(client, json.dumps(body).encode())
            if status != 400 or not self._drop_refused_setting(settings, raw):
                break
        if status == 200:
            self._answered = True
            return _parse_reply(raw)
        detail = self._error_message(raw)
        if status in FATAL or 300 <= status < 400:
            raise UserError(self._fatal_message(status, detail))
        is_busy = status in RETRYABLE or status >= 500
        raise _Fault(
            f"HTTP {status}",
            detail,
            can_retry=is_busy,
            is_unanswered=is_busy,
            wait=_retry_delay(headers.get("retry-after")),
        )

    async def _post(self, client: httpx2.AsyncClient, body: bytes) -> tuple[int, httpx2.Headers, bytes]:
        """Sends a request and returns (status, headers, body). Raises _Fault if the server does not answer it."""
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
            raise _Fault(
                f"no answer within {self._config.judge_timeout:g} s", is_unanswered=True, is_late=True
            ) from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            detail = quote(self._remove_key(str(error)) or type(error).__name__)
            if isinstance(error, httpx2.ConnectError) and not self._answered:
                raise UserError(
                    f"--{self._flag} endpoint: {self._url} cannot be reached ({detail}); correct --judge_url, or start "
                    "the server"
                ) from None
            raise _Fault("the connection failed", detail, is_unanswered=True) from None

    def _drop_refused_setting(self, settings: dict[str, Any], raw: bytes) -> bool:
        """Removes the setting that the server refused. Returns whether the call should be repeated."""
        if settings != self._settings:  # another call has already removed a setting
            return True
        message = raw[:2000].decode("utf-8", "replace")
        if "max_tokens" in settings and "max_completion_tokens" in message:
            self._settings["max_completion_tokens"] = self._settings.pop("max_tokens")
        elif "temperature" in settings and "temperature" in message:
            del self._settings["temperature"]
        else:
            return False
        return True

    def _fatal_message(self, status: int, detail: str) -> str:
        """The text of an error after which no call can succeed."""
        name = self._config.judge_key_variable
        reason = FATAL.get(status, "it lives at another address")
        key = f"a key was sent, from {name}" if self._key else f"no key was sent: {name} is not set"
        return (
            f"--{self._flag} endpoint: {self._url} answers HTTP {status}: {reason} "
            f"({key}; model {self._config.judge_model!r}). It says: {detail}"
        )

    def _error_message(self, raw: bytes) -> str:
        """The server's error message, shortened to a line."""
        text = raw[:2000].decode("utf-8", "replace")
        with contextlib.suppress(ValueError):
            error = object_of(raw).get("error")
            message = error.get("message") if isinstance(error, dict) else error
            text = message if isinstance(message, str) else text
        return quote(self._remove_key(text))

    def _remove_key(self, text: str) -> str:
        """The text without the key and its pieces, which a server may repeat in its message: "sk-ab***yz"."""
        return remove_key(text, self._key)


def remove_key(text: str, key: str) -> str:
    """The text without a key, without pieces of SHORTEST_PIECE of its characters, and without its masked form."""
    if not key:
        return text
    text = MASKED.sub(lambda match: KEY_SIGN if _is_masked_key(match, key) else match[0], text)
    length = min(SHORTEST_PIECE, len(key))
    pieces = {key[start : start + length] for start in range(len(key) - length + 1)}
    parts, shown_to, position = [], 0, 0
    while position <= len(text) - length:
        if text[position : position + length] not in pieces:
            position += 1
            continue
        end = position + length
        while end < len(text) and text[end - length + 1 : end + 1] in pieces:
            end += 1
        parts += [text[shown_to:position], KEY_SIGN]
        shown_to = position = end
    return "".join([*parts, text[shown_to:]])


def _is_masked_key(match: re.Match[str], key: str) -> bool:
    """Whether a word with a mask in it begins or ends as the key does."""
    first, last = match["first"].strip(AROUND_KEY), match["last"].strip(AROUND_KEY)
    return (len(first) > 1 and key.startswith(first)) or (len(last) > 1 and key.endswith(last))


def _parse_reply(raw: bytes) -> tuple[str, TokenCounts]:
    """Returns (reply, tokens) of a server's answer. Raises _Fault for an answer that does not follow the API."""
    try:
        answer = object_of(raw)
    except ValueError as error:
        raise _Fault("an answer that is no JSON object", quote(str(error))) from None
    tokens = _token_counts(answer.get("usage"))
    try:
        choice = answer["choices"][0]
        content, finish = choice["message"]["content"], choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError):
        raise _Fault("an answer without text", tokens=tokens) from None
    if finish == "length":
        raise _Fault("cut off by --judge_max_tokens", can_retry=False, tokens=tokens)
    if not isinstance(content, str):
        raise _Fault("an answer without text", tokens=tokens)
    return content, tokens


def _token_counts(usage: Any) -> TokenCounts:
    """The token counts in the field `usage` of an answer; empty if it has none."""
    if not isinstance(usage, dict):
        return ()
    fields = usage.get("prompt_tokens"), usage.get("completion_tokens")
    counts = [int(count) for count in fields if is_number(count) and 0 <= count < 1e9]
    return (counts[0], counts[1]) if len(counts) == 2 else ()


def _sum_tokens(tokens_per_try: Sequence[TokenCounts]) -> tuple[int | None, int | None]:
    """The prompt and reply tokens of all tries of a question; None if no answer had a count."""
    counts = [tokens for tokens in tokens_per_try if tokens]
    return (sum(first for first, _ in counts), sum(second for _, second in counts)) if counts else (None, None)


def _retry_delay(value: str | None) -> float:
    """Seconds to wait, from a retry-after header with a number or a date; 0 without one."""
    if value is None:
        return 0.0
    with contextlib.suppress(ValueError):
        return max(0.0, float(value)) if value.strip().replace(".", "", 1).isdigit() else _seconds_until(value)
    return 0.0


def _seconds_until(date: str) -> float:
    return max(0.0, email.utils.parsedate_to_datetime(date).timestamp() - time.time())


def _is_loopback(url: str) -> bool:
    """Whether an address is that of this machine, which a proxy cannot reach."""
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _run_calls(calls: Coroutine[Any, Any, None]) -> None:
    """Runs the calls; in another thread if an event loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(calls)
        return
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, calls).result()
