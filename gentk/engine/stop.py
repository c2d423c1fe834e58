"""Stopping on request: SIGTERM, SIGUSR1 and the first Ctrl-C ask for a whole state, the second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gentk.errors import Stopped


class StopRequest:
    """Whether a stop was asked for, and whether it may happen anywhere or only where the state is whole."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self.anywhere = False

    def stop(self) -> None:
        """Raises Stopped, naming the signal."""
        raise Stopped(f"stopped by {self.signal}; what is saved is whole", hint="run the same command to finish")

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler."""
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
        if self.anywhere:
            self.stop()


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Collects stop signals for the block; the handlers that were there come back after it.

    In a thread other than the main one, where Python allows no handlers, nothing is listened to.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {s: signal.signal(s, request.handle) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
