"""SIGINT and SIGTERM as a request to stop after the step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM."""


class StopRequest:
    """Whether a signal asked to stop, and which."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def leave(self) -> None:
        """Raise what the signal stands for, if there was one."""
        if self.signal is not None:
            raise Terminated if self.signal == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn the first signal into a request, so that no step is cut in two; a second one acts at
    once.

    Only in the main thread, and only where nobody else handles the signal.
    """
    request = StopRequest()
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        defaults: dict[int, Any] = {
            signal.SIGINT: signal.default_int_handler,
            signal.SIGTERM: signal.SIG_DFL,
        }
        before = {
            number: defaults[number]
            for number in SIGNALS
            if signal.getsignal(number) is defaults[number]
        }

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: object) -> None:
        restore()
        request.signal = number

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
    request.leave()
