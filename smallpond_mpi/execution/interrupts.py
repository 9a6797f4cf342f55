"""Ctrl-C and SIGTERM between two turns of rank 0's loop, not within one."""

import signal
import sys
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """Keeps SIGINT and SIGTERM from breaking into a turn: what the core has decided must have been carried out before anybody leaves.

    Python's default is to raise in the middle of whatever is being executed. Here the handlers run between two turns.
    """

    def __init__(self) -> None:
        self._pending: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                if callable(signal.getsignal(signum)):
                    self._handlers[signum] = signal.signal(signum, self._note)
        return self

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._pending is not None:
            self._handlers[signum](signum, frame)  # asked for twice: whoever wants out at once gets out
        self._pending = signum

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)

    def raise_if_any(self) -> None:
        """Do now what a signal asked for."""
        if self._pending is not None:
            signum, self._pending = self._pending, None
            self._handlers[signum](signum, sys._getframe())
