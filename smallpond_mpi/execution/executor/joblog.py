"""The one log of a rank: what its tasks wrote to stdout and stderr, attempt after attempt, and an index beside it.

Each child writes to a spool file of its own, which has no name. When an attempt ends, what it wrote is copied here in one piece. The index has
one JSON line an attempt that wrote anything: {"attempt", "offset", "length"}.
"""

import json
import os
import tempfile

from smallpond_mpi.common import KB, MB
from smallpond_mpi.execution.model import TaskRuntimeId

TAIL_BYTES = 4 * KB
KEPT_BYTES = 64 * MB
"""Of the output of one attempt; of more, the middle is left out."""
COPY_BYTES = MB


class Spool:
    """What a child writes to. Appends only, so that it can be cut while the child has it open."""

    def __init__(self, directory: str | None) -> None:
        try:
            self.fd = os.open(directory or tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR | os.O_APPEND, 0o600)
        except OSError:  # a file system without O_TMPFILE
            fd, path = tempfile.mkstemp(prefix="smallpond-spool-", dir=directory)
            os.close(fd)
            self.fd = os.open(path, os.O_RDWR | os.O_APPEND)
            os.unlink(path)
        self._taken = 0

    def take(self, end: int | None) -> tuple[int, int]:
        """(begin, end) of what is new up to `end`, or up to all there is."""
        begin = self._taken
        self._taken = max(begin, os.fstat(self.fd).st_size if end is None else end)
        return begin, self._taken

    def cut(self) -> None:
        """Forget all that was taken, so that a child that prints for days fills no disk. Only while the child is idle."""
        os.ftruncate(self.fd, 0)
        self._taken = 0

    def close(self) -> None:
        os.close(self.fd)


class JobLog:
    """Appends to "{path}" and "{path}.index". A disk that is full costs output, never an attempt: `problem` says what happened."""

    def __init__(self, path: str) -> None:
        self.problem = ""
        self._log = self._index = -1
        try:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            self._log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            self._index = os.open(path + ".index", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            self._offset = os.fstat(self._log).st_size
        except OSError as error:
            self.problem = f"no log of tasks: {error}"

    def keep(self, spool: Spool, begin: int, end: int, attempt: TaskRuntimeId) -> None:
        """Copy a part of the spool as the output of this attempt."""
        if self.problem:
            return
        try:
            length = self._copy(spool, begin, end)
            entry = {"attempt": str(attempt), "offset": self._offset, "length": length}
            os.write(self._index, json.dumps(entry).encode() + b"\n")
            self._offset += length
        except OSError as error:
            self.problem = f"the log of tasks ends here: {error}"

    def _copy(self, spool: Spool, begin: int, end: int) -> int:
        if end - begin <= KEPT_BYTES:
            return self._copy_all(spool, begin, end)
        half = KEPT_BYTES // 2
        note = f"\n[{end - begin - KEPT_BYTES} bytes of output left out]\n".encode()
        length = self._copy_all(spool, begin, begin + half) + os.write(self._log, note)
        return length + self._copy_all(spool, end - half, end)

    def _copy_all(self, spool: Spool, begin: int, end: int) -> int:
        at = begin
        while at < end:
            piece = os.pread(spool.fd, min(COPY_BYTES, end - at), at)
            if not piece:
                break
            view = memoryview(piece)
            while view:
                view = view[os.write(self._log, view) :]
            at += len(piece)
        return at - begin

    def close(self) -> None:
        for fd in (self._log, self._index):
            if fd >= 0:
                os.close(fd)
        self._log = self._index = -1
        self.problem = self.problem or "closed"


def tail_of(spool: Spool, begin: int, end: int) -> str:
    """The last few KB of a part of a spool, from the start of a line."""
    start = max(begin, end - TAIL_BYTES)
    text = os.pread(spool.fd, end - start, start).decode(errors="backslashreplace")
    if start > begin and "\n" in text:
        text = text.partition("\n")[2]
    return text
