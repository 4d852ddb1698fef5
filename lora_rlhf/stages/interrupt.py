"""Ctrl-C, SIGTERM and SIGHUP: the step that runs is finished and saved; a second Ctrl-C stops at once."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from lora_rlhf.system import workers
from lora_rlhf.system.errors import Stopped


@dataclass
class Request:
    """Whether somebody asked this process to stop, and by which signal."""

    signal: int | None = None

    @property
    def is_made(self) -> bool:
        """Whether any process of this run was asked to stop: they all stop after the same step."""
        return workers.any_of(self.signal is not None)

    @property
    def exit_status(self) -> int:
        """The exit status that a shell expects: 128 and the signal's number."""
        return 128 + (self.signal or signal.SIGTERM)


_latest = Request()


def stop_if_asked(done: str) -> None:
    """Raises Stopped where a signal came too late to stop the work of the last `graceful` block."""
    if _latest.is_made:
        raise Stopped(
            f"stopped after {done}, which is finished. Give the same command again to go on", _latest.exit_status
        )


@contextmanager
def graceful(unit: str = "step") -> Iterator[Request]:
    """Inside the block a first Ctrl-C, SIGTERM or SIGHUP (a closed terminal) is only noted.

    A second Ctrl-C raises KeyboardInterrupt.
    `unit` names what is finished first, in the line that the user sees.
    """
    global _latest
    _latest = request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may handle signals
        return

    def note_signal(number: int, _frame: FrameType | None) -> None:
        """Notes the first signal, and tells the user what will happen."""
        if number == signal.SIGINT and request.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if request.signal is None and workers.is_main():
            again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            print(f"\nfinishing this {unit} and saving{again}", file=sys.stderr, flush=True)
        request.signal = number

    # under nohup SIGHUP is ignored, and stays so
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {
        number: signal.signal(number, note_signal) for number in ends if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
