"""Two small tools: a profile as text, and an iterator that works ahead in a thread."""

import cProfile
import io
import pstats
import queue
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


def cprofile_to_string(
    perf_profile: cProfile.Profile, order_by: pstats.SortKey = pstats.SortKey.TIME, top_k: int = 20
) -> str:
    """The first `top_k` lines of a profile, ordered by `order_by`."""
    text = io.StringIO()
    pstats.Stats(perf_profile, stream=text).sort_stats(order_by).print_stats(top_k)
    return text.getvalue()


class ConcurrentIterError(Exception):
    """The iterable that a ConcurrentIter reads raised; the original is the cause."""


class _End:
    """The last thing in the queue: the iterable has ended, by an error if there is one."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error


class ConcurrentIter(Generic[T]):
    """Iterates over `iterable` in a thread, at most `max_buffer_size` items ahead of the reader.

    A context manager; on leaving, the thread has ended, also when the reader has stopped early.
    """

    def __init__(self, iterable: Iterable[T], max_buffer_size: int = 1) -> None:
        self._iterable = iterable
        self._queue: queue.Queue[T | _End] = queue.Queue(max(1, max_buffer_size))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work_ahead, name="ConcurrentIter", daemon=True)
        self._started = False
        self._ended = False

    def __enter__(self) -> "ConcurrentIter[T]":
        self._start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.join()

    def __iter__(self) -> Iterator[T]:
        self._start()
        while not self._ended:
            try:
                item = self._queue.get(timeout=1.0)
            except queue.Empty:
                # `clear` may have dropped the end: a thread that is gone puts nothing more.
                self._ended = not self._thread.is_alive() and self._queue.empty()
                continue
            if not isinstance(item, _End):
                yield item
                continue
            self._ended = True
            if item.error is not None:
                raise ConcurrentIterError(str(item.error)) from item.error

    def join(self) -> None:
        """Stop working ahead, drop what is buffered, wait for the thread."""
        self._stopped.set()
        self._ended = True
        while self._thread.is_alive():
            self.clear()
            self._thread.join(0.01)
        self.clear()

    def clear(self) -> None:
        """Drop what is buffered."""
        while True:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                return

    def _start(self) -> None:
        if not self._started:
            self._started = True
            self._thread.start()

    def _work_ahead(self) -> None:
        error: Exception | None = None
        try:
            for item in self._iterable:
                self._queue.put(item)
                if self._stopped.is_set():
                    return
        except Exception as raised:  # noqa: BLE001 - an edge: whatever it is, the reader raises it
            error = raised
        self._queue.put(_End(error))
