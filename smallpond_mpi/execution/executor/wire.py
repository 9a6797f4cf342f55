"""The rank's ends of what it shares with one child: a socket, a pipe of numbers, the file that it prints to, and what was sent so far.

A child may begin an attempt only when it has read the attempt's number from the pipe: what the rank can take back from there, the child
has not begun and can't begin any more.
"""

import os
import socket
from collections import deque
from collections.abc import Mapping

from smallpond_mpi.execution.executor.child import TOKEN_BYTES
from smallpond_mpi.execution.executor.joblog import Spool
from smallpond_mpi.execution.executor.memory import Footprint
from smallpond_mpi.execution.executor.pipe import FrameReader, Work, pack
from smallpond_mpi.execution.model import TaskRuntimeId
from smallpond_mpi.execution.protocol import Blob, Message, RunTask

READ_BYTES = 1 << 20


class Wire:
    """Nothing here waits. `pid` and `footprint` are there once the child is."""

    __slots__ = (
        "_blobs",
        "_next_number",
        "_pending",
        "_reader",
        "_token_read",
        "_token_write",
        "footprint",
        "is_full",
        "pid",
        "sent",
        "sock",
        "spool",
        "was_killed",
    )

    def __init__(self, sock: socket.socket, spool: Spool, token_read: int, token_write: int) -> None:
        self.sock = sock
        self.spool = spool
        self._token_read = token_read
        self._token_write = token_write
        self._reader = FrameReader()
        self._pending: deque[memoryview] = deque()
        self._blobs: set[bytes] = set()
        self._next_number = 0
        self.sent: dict[int, TaskRuntimeId] = {}
        self.pid = 0
        self.footprint: Footprint | None = None
        self.was_killed = False  # by this rank, not by the kernel
        self.is_full = False  # the loop waits until the socket takes more

    def read(self) -> tuple[list[Message], bool]:
        """What the child has said since, and whether it may say more."""
        said: list[Message] = []
        while True:
            try:
                piece = self.sock.recv(READ_BYTES)
            except BlockingIOError:
                return said, True
            except ConnectionResetError:
                return said, False
            if not piece:
                return said, False
            said += self._reader.feed(piece)
            if len(piece) < READ_BYTES // 2:
                return said, True

    def last_words(self) -> list[Message]:
        """What a child that is dead has said since."""
        said: list[Message] = []
        while True:
            more, may_say_more = self.read()
            said += more
            if not may_say_more:
                return said
            try:
                if not self.sock.recv(1, socket.MSG_PEEK):
                    return said
            except (BlockingIOError, ConnectionResetError):
                return said

    def has_replied(self, attempt: TaskRuntimeId) -> None:
        """The child is through with an attempt."""
        number = next(iter(self.sent))  # replies come in the order of the numbers
        if self.sent[number] == attempt:
            del self.sent[number]

    def send_work(self, runs: tuple[RunTask, ...], blobs: Mapping[bytes, Blob]) -> bool:
        """Send attempts, with those of their blobs that this child has not seen. False: see `push`."""
        digests = {digest: None for run in runs for digest in run.blobs if digest not in self._blobs}
        self._blobs.update(digests)
        number = self._next_number
        self._next_number += len(runs)
        self.sent.update((at, run.attempt) for at, run in enumerate(runs, number))
        is_through = self.say(Work(number, runs, tuple([blobs[digest] for digest in digests])))
        # a child may begin what it finds a number of; those that come before their Work make it wait for that
        numbers = b"".join([at.to_bytes(TOKEN_BYTES, "little") for at in range(number, self._next_number)])
        os.write(self._token_write, numbers)
        return is_through

    def say(self, message: Message) -> bool:
        """Send a message. False: see `push`."""
        self._pending.append(memoryview(pack(message)))
        return self.push() if len(self._pending) == 1 else False

    def push(self) -> bool:
        """Send what waits for the child, as far as its socket takes it. False if it takes no more now."""
        pending = self._pending
        while pending:
            try:
                sent = self.sock.send(pending[0])
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                pending.clear()  # it is dead; the fork server tells how
                break
            if sent == len(pending[0]):
                pending.popleft()
            else:
                pending[0] = pending[0][sent:]
        return True

    def take_back(self) -> tuple[TaskRuntimeId, ...]:
        """The attempts that the child has not begun, which it will not begin now."""
        numbers: list[int] = []
        while True:
            try:
                numbers.append(int.from_bytes(os.read(self._token_read, TOKEN_BYTES), "little"))
            except BlockingIOError:
                return tuple([self.sent.pop(number) for number in numbers])

    def close(self) -> None:
        self.sock.close()
        self.spool.close()
        os.close(self._token_read)
        os.close(self._token_write)
