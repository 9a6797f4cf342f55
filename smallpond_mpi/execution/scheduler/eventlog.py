"""The job's own log: what happened to ranks and attempts, a line each, for whoever asks afterwards.

    2026-11-23 09:12:42.123 rank 3 joined: node7, 16 CPUs

Lines are kept in memory and written a few times a minute. It is a file of ours, not a handler of `logging`: that belongs to the user's script.
"""

import time
from collections.abc import Callable
from datetime import datetime
from logging import DEBUG, INFO
from typing import Final

MAX_PENDING: Final = 200
MAX_LINE: Final = 400
MAX_LINES: Final = 20_000
"""A job in which everything fails must not fill the disk."""


class EventLog:
    """Appends to a file what is at least as weighty as `least` (numbers as in `logging`). A disk that is full costs the log, never the job: `problem` says what happened."""

    def __init__(self, path: str, least: int = DEBUG, wall_clock: Callable[[], float] = time.time) -> None:
        self.problem = ""
        self._path = path
        self._least = least
        self._wall_clock = wall_clock
        self._pending: list[str] = []
        self._said = 0

    def say(self, text: str, level: int = INFO) -> None:
        """Add a line."""
        if level < self._least:
            return
        self._said += 1
        if self._said > MAX_LINES:
            return
        when = datetime.fromtimestamp(self._wall_clock()).isoformat(" ", "milliseconds")
        line = " ".join(text.splitlines())
        self._pending.append(f"{when} {line if len(line) <= MAX_LINE else line[: MAX_LINE - 1] + '…'}\n")
        if self._said == MAX_LINES:
            self._pending.append(f"{when} {MAX_LINES:,} lines are enough: nothing more is logged\n")
        if len(self._pending) >= MAX_PENDING:
            self.flush()

    def flush(self) -> None:
        """Write what was said."""
        lines, self._pending = self._pending, []
        if not lines or self.problem:
            return
        try:
            with open(self._path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(lines)
        except OSError as error:
            self.problem = f"the log of the scheduler ends here: {error}"
