"""The thread that handles requests to the model: they wait in a queue, and each gets its own events."""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from lora_rlhf.system.errors import UserError
from lora_rlhf_demo.requests import END, Ask, Event, Failed, Open, Partial, Request, Score, Waiting

if TYPE_CHECKING:
    from lora_rlhf_demo.handler import RequestHandler

log = logging.getLogger("lora_rlhf")

LOOK_EVERY = 0.25  # seconds between two updates of the position in the queue
MOST_WAITING = 64
OUT_OF_MEMORY = (
    "Out of memory. Ask for shorter answers or fewer columns, or begin a new conversation; the app goes on working."
)
BUSY = f"{MOST_WAITING} requests are waiting already; try again in a moment."
GONE = "The app is shutting down."


class Ticket:
    """A request in the queue or at work. The page follows `events`; `stop` ends the answer early."""

    def __init__(self, request: Request, worker: "ModelWorker") -> None:
        self.request = request
        self._worker = worker
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Ends the answer at the next token; a waiting request ends when its turn comes."""
        self._stopped.set()

    @property
    def is_stopped(self) -> bool:
        return self._stopped.is_set()

    def put(self, event: Event) -> None:
        """Adds an event; called by the worker's thread."""
        self._events.put(event)

    def events(self) -> Iterator[Event]:
        """All events to the end; of several waiting `Partial` only the last. Leaving early stops the request."""
        try:
            yield from self._follow()
        finally:
            self.stop()

    def _follow(self) -> Iterator[Event]:
        last_position = None
        while True:
            try:
                event = self._events.get(timeout=LOOK_EVERY)
            except queue.Empty:
                position = self._worker.position(self)
                if position is not None and position != last_position:
                    last_position = position
                    yield Waiting(position)
                continue
            event = self._latest(event)
            yield event
            if isinstance(event, END):
                return

    def _latest(self, event: Event) -> Event:
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
        self._waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._current: Ticket | None = None
        self._thread = threading.Thread(target=self._work, name="handler", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Ticket:
        """Puts a request in the queue."""
        ticket = Ticket(request, self)
        with self._changed:
            if self._closing or len(self._waiting) >= MOST_WAITING:
                ticket.put(Failed(GONE if self._closing else BUSY))
            else:
                self._waiting.append(ticket)
                self._changed.notify()
        return ticket

    def position(self, ticket: Ticket) -> int | None:
        """How many requests come before it, the current one included; None once it is no longer waiting."""
        with self._changed:
            positions = (number for number, waiting in enumerate(self._waiting, start=1) if waiting is ticket)
            return next(positions, None)

    def close(self) -> None:
        """Stops the current request, fails the waiting ones, ends the thread and frees the model."""
        with self._changed:
            self._closing = True
            if self._current is not None:
                self._current.stop()
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (ticket := self._next()) is not None:
            try:
                self._handle(ticket)
            except UserError as error:
                ticket.put(Failed(str(error)))
            except Exception as error:  # the thread must live on: other requests wait
                ticket.put(Failed(self._unexpected(error)))
        if self._handler is not None:
            self._handler.close()

    def _unexpected(self, error: Exception) -> str:
        """The message to the user for an error that is not the user's."""
        # by name: torch is not imported for this
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            error.__traceback__ = None  # its frames hold the tensors of the answer that did not fit
            if self._handler is not None:
                self._handler.free()
            return OUT_OF_MEMORY
        log.error("a request of the app failed", exc_info=error)
        return f"{type(error).__name__}: {error}"

    def _next(self) -> Ticket | None:
        with self._changed:
            self._current = None
            while not self._waiting and not self._closing:
                self._changed.wait()
            if self._closing:
                for ticket in self._waiting:
                    ticket.put(Failed(GONE))
                return None
            self._current = self._waiting.popleft()
            return self._current

    def _handle(self, ticket: Ticket) -> None:
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
            ticket.put(event)
