"""The thread that handles requests to the model: they wait in a queue, and each gets its own events."""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lora_rlhf.system.errors import UserError
from lora_rlhf_demo.requests import END, Ask, Event, Failed, Open, Partial, Replaced, Request, Score, Waiting

if TYPE_CHECKING:
    from lora_rlhf_demo.handler import RequestHandler

log = logging.getLogger("lora_rlhf")

POLL_SECONDS = 0.25  # seconds between two updates of the position in the queue
MOST_WAITING = 64
OUT_OF_MEMORY = (
    "Out of memory. Ask for shorter answers or fewer columns, or begin a new conversation; the app goes on working."
)
BUSY = f"{MOST_WAITING} requests are waiting already; try again in a moment."
GONE = "The app is shutting down."


class Ticket:
    """A request in the queue or in work. The page reads `events`; `stop` ends the answer early."""

    def __init__(self, request: Request, worker: "ModelWorker", user: str) -> None:
        self.request, self.user = request, user
        self._worker = worker
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._is_read = False
        self._reading = threading.Lock()

    def stop(self) -> None:
        """Ends the answer at the next token; a waiting request ends when its turn comes."""
        self._stopped.set()

    @property
    def is_stopped(self) -> bool:
        return self._stopped.is_set()

    def replace(self, updates: Mapping[Any, Any]) -> bool:
        """Stops the request; whoever reads its events displays the updates as the last. False if it has ended.

        Two streams reach a page in any order: what an act displays must not come before the end of what it ends.
        """
        self.stop()
        with self._reading:
            if not self._is_read:
                self._events.put(Replaced(updates))
            return not self._is_read

    def add_event(self, event: Event) -> None:
        """Adds an event; called by the worker's thread."""
        self._events.put(event)

    def events(self) -> Iterator[Event]:
        """All events to the end; of several unread `Partial` only the last. To leave the loop stops the request."""
        try:
            yield from self._iterate_events()
        finally:
            self.stop()
            with self._reading:
                self._is_read = True

    def _iterate_events(self) -> Iterator[Event]:
        """Yields the events, and the position in the queue whenever it changes."""
        last_position = None
        while True:
            try:
                event = self._events.get(timeout=POLL_SECONDS)
            except queue.Empty:
                position = self._worker.position(self)
                if position is not None and position != last_position:
                    last_position = position
                    yield Waiting(position)
                continue
            event = self._skip_to_latest(event)
            yield event
            if isinstance(event, END):
                break
        while (replaced := self._take_replacement()) is not None:
            yield replaced

    def _take_replacement(self) -> Replaced | None:
        """What replaced the request since its end; None if nothing did, and from then on nothing can."""
        replaced = None
        with self._reading:
            while not self._events.empty():
                event = self._events.get()
                replaced = event if isinstance(event, Replaced) else replaced
            self._is_read = replaced is None
        return replaced

    def _skip_to_latest(self, event: Event) -> Event:
        """The event; if it is a `Partial`, the newest unread event in its place."""
        while isinstance(event, Partial):
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                break
        return event


class ModelWorker:
    """Takes requests from any thread, and handles them one after the other in its own thread.

    That thread makes the handler at the first request, so that a page need not wait for the import of torch.
    """

    def __init__(self, make_handler: "Callable[[], RequestHandler]") -> None:
        self._make_handler = make_handler
        self._handler: RequestHandler | None = None
        self._queue: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._current: Ticket | None = None
        self._num_handled = 0
        self._last_turns: dict[str, int] = {}  # {user: number of the request that was handled last}
        self._thread = threading.Thread(target=self._handle_requests, name="handler", daemon=True)
        self._thread.start()

    def submit(self, request: Request, user: str = "") -> Ticket:
        """Puts a request in the queue. Users take turns, and none may fill more than half of it.

        user: who asks, which is the address of the browser.
        """
        ticket = Ticket(request, self, user)
        with self._changed:
            num_of_user = sum(queued_ticket.user == user for queued_ticket in self._queue)
            if self._is_closing or len(self._queue) >= MOST_WAITING or num_of_user >= MOST_WAITING // 2:
                ticket.add_event(Failed(GONE if self._is_closing else BUSY))
            else:
                self._queue.append(ticket)
                self._changed.notify()
        return ticket

    def position(self, ticket: Ticket) -> int | None:
        """How many requests come before this one, the current one included; None if it no longer waits."""
        with self._changed:
            queued, last_turns, number = list(self._queue), dict(self._last_turns), self._num_handled
            if ticket not in queued:
                return None
            while (next_ticket := _next_in_turn(queued, last_turns)) is not ticket:
                queued.remove(next_ticket)
                number += 1
                last_turns[next_ticket.user] = number
            return number - self._num_handled + 1

    def close(self) -> None:
        """Stops the current request, fails the waiting ones, ends the thread and frees the model."""
        with self._changed:
            self._is_closing = True
            if self._current is not None:
                self._current.stop()
            self._changed.notify()
        self._thread.join()

    def _handle_requests(self) -> None:
        """The loop of the thread: handles one ticket after another until the app closes."""
        while (ticket := self._wait_for_ticket()) is not None:
            try:
                self._handle_ticket(ticket)
            except UserError as error:
                ticket.add_event(Failed(str(error)))
            except Exception as error:  # the thread must live on: other requests wait
                ticket.add_event(Failed(self._error_message(error)))
        if self._handler is not None:
            self._handler.close()

    def _error_message(self, error: Exception) -> str:
        """The message to the user for an error that is not the user's; frees memory if memory ran out."""
        # by name: torch is not imported for this
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            error.__traceback__ = None  # its frames hold the tensors of the answer that did not fit
            if self._handler is not None:
                self._handler.free_memory()
            return OUT_OF_MEMORY
        log.error("a request of the app failed", exc_info=error)
        return f"{type(error).__name__}: {error}"

    def _wait_for_ticket(self) -> Ticket | None:
        """Waits for the next ticket and makes it the current one; None when the app closes."""
        with self._changed:
            self._current = None
            while not self._queue and not self._is_closing:
                self._changed.wait()
            if self._is_closing:
                for ticket in self._queue:
                    ticket.add_event(Failed(GONE))
                return None
            self._current = _next_in_turn(self._queue, self._last_turns)
            self._queue.remove(self._current)
            self._num_handled += 1
            self._last_turns[self._current.user] = self._num_handled
            return self._current

    def _handle_ticket(self, ticket: Ticket) -> None:
        """Sends all events of one request to its page."""
        self._handler = handler = self._handler or self._make_handler()
        request = ticket.request
        match request:
            case Open():
                events = handler.open(request)
            case Ask():
                events = handler.answer(request, lambda: ticket.is_stopped)
            case Score():
                events = handler.score(request)
        for event in events:
            ticket.add_event(event)


def _next_in_turn(queued: Collection[Ticket], last_turns: Mapping[str, int]) -> Ticket:
    """The oldest request of the user whose last turn is the longest ago."""
    return min(queued, key=lambda ticket: last_turns.get(ticket.user, 0))
